"""`piip init`."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from piip.data.find import FoundData

# By task: a small network that trains from scratch, and the long side of its images at scale 1.
BASES = {
    "detection": ("detection/mask_rcnn_piip_nano_shapes", 128),
    "segmentation": ("segmentation/upernet_piip_nano_shapes", 128),
    "classification": ("classification/piip_nano_shapes", 64),
}
# The long side of images that a CPU learns from in minutes, and the one that a GPU does.
_ON_CPU, _ON_GPU = 256, 1024
# The fewest steps of a run, the fewest images of a step, and the MiB of GPU memory that each image of a step takes.
_STEPS, _BATCH, _MEMORY = 1500, 4, 2000


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images with what is on them.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The YAML to write; FOLDER's name by default.")
    ] = None,
) -> None:
    """Write a config for a folder of data and this machine, with comments, to train as it is or to change."""
    from piip.cli.console import out
    from piip.data.find import find_data
    from piip.errors import DataError
    from piip.files import write_file, writing

    output = output or Path(f"{folder.resolve().name}.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise typer.BadParameter(f"--output {output}: configs end in .yaml")
    if output.exists():
        raise DataError(f"{output} exists; choose another --output")
    text = describe(find_data(folder), command=f"piip init {folder}")
    with writing(output):
        write_file(output, text)
    out().print(f"{output} written; look at it, then: piip train {output}")


def describe(found: FoundData, *, command: str) -> str:
    """The config as YAML. command: the command that writes it, which the first line names."""
    from piip.data.check import check_data, small_shares, suggest_side
    from piip.errors import DataError, first_few

    base, side = BASES[found.task]
    splits = train, val = check_data({"train": found.train, "val": found.val}, pixels=False)
    for split in splits:
        if not split.images:
            split.findings.raise_errors(found.folder)
            raise DataError(f"{split.findings.source}: there is no image to use; `piip data check` says why")
    memory = _gpu_memory()
    batch = max(_BATCH, min(16, memory // _MEMORY))
    most = _ON_GPU if memory else _ON_CPU
    suggested = suggest_side(small_shares(train)) if found.task == "detection" else None
    scale = max(1, min(suggested or most, most) // side) if found.task != "classification" else 2
    batch = min(batch, max(1, len(train.images)))
    epochs = max(10, math.ceil(_STEPS * batch / max(1, len(train.images))))
    every = max(1, epochs // 10)
    machine = f"a GPU of {memory / 1024:.0f} GiB" if memory else f"{os.cpu_count()} CPU cores"
    head = {"num_classes": len(found.class_names)} | ({} if found.masks is None else {"masks": found.masks})
    sizes = f"images of {side * scale} pixels, {scale} times those of the base"
    if suggested and suggested > side * scale:
        sizes += f"; for the smallest objects {suggested} would be better"
    lines = [
        f"# Written by `{command}` for {machine}.",
        f"# {found}.",
        f"# {len(train.images)} images to train on, {len(val.images)} to evaluate; `piip data check` says more.",
        "",
        f"base: {base}  # a small network that trains from scratch; `piip models` has larger ones",
        f"scale: {scale}  # {sizes}",
        "model:",
        f"  head: {_flow(head)}  # {first_few(found.class_names)}",
        "data:",
        f"  train: {_flow(found.train.given())}",
        f"  val: {_flow(found.val.given())}",
        f"  batch_size: {batch}  # images per step; fewer need less memory",
        f"  eval_batch_size: {batch}",
        f"  workers: {min(8, max(1, (os.cpu_count() or 2) - 1))}  # processes that read images",
        "schedule:",
        f"  epochs: {epochs}  # about {math.ceil(epochs * len(train.images) / batch)} steps",
        "  iterations: null",
        f"train: {{eval_every: {every}, checkpoint_every: {every}}}  # in epochs",
        "",
    ]
    return "\n".join(lines)


def _flow(data: dict[str, Any]) -> str:
    """A mapping on one line of YAML."""
    import yaml

    return yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True).strip()


def _gpu_memory() -> int:
    """MiB of the first NVIDIA GPU, without importing torch; 0 without one."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return int(lines[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
