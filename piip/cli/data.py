"""`piip data check` and `piip data show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piip.cli.options import Json, with_data

if TYPE_CHECKING:
    from piip.data.check import Split
    from piip.data.sets.config import DatasetConfig

_STYLES = {"error": "bold red", "left out": "red", "suspect": "yellow", "repaired": "yellow", "note": ""}

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A folder of data, a COCO file, or a config or run with its data.")
]


def check(
    source: Source,
    repair: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a clean COCO file; of several splits a folder of them.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The images of a COCO file, if they are elsewhere.")
    ] = None,
    pixels: Annotated[bool, typer.Option(help="Read every image, to find damaged ones and copies.")] = True,
    json: Json = False,
) -> None:
    """Show everything that is wrong with data; ends with exit code 3 where anything is."""
    from piip.cli.console import out, print_json
    from piip.data.check import as_document, check_data, wrong
    from piip.errors import CheckError

    sets, sides = find_sets(source, images)
    splits = check_data(sets, pixels=pixels)
    done = [] if repair is None else _repair(splits, repair)
    if json:
        print_json(as_document(splits, sides) | {"repaired": done})
    else:
        for split in splits:
            _show(split, sides, out())
        for line in done:
            out().print(line)
    if count := wrong(splits):
        raise CheckError(
            f"{count} {'thing is' if count == 1 else 'things are'} wrong; what became of them is said above"
        )


def show(
    source: Source,
    output: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where the pictures are written.")],
    config: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Whose augmentation is shown of a folder; else a small one's.")
    ] = None,
) -> None:
    """Draw data as the network sees them, the extreme objects of each class, and histograms."""
    from piip.cli.console import out
    from piip.cli.init import BASES
    from piip.config.load import load_config
    from piip.data.find import find_data
    from piip.files import writing

    if _is_data(source):
        base = config or BASES[find_data(Path(source)).task][0]
        settings = load_config(base, with_data(None, Path(source)))
    else:
        settings = load_config(source)
    from piip.data.show import show_data

    data = settings.data
    sets = {"train": data.train.build(training=True), "val": data.val.build(training=False)}
    with writing(f"to {output}"):
        files = show_data(sets, data.train_transforms, output)
    out().print(f"{len(files)} pictures in {output}: {', '.join(file.name for file in files[:8])}")


def _is_data(source: str) -> bool:
    """Whether this is a folder of data, and not a run."""
    return Path(source).is_dir() and not (Path(source) / "config.yaml").is_file()


def find_sets(source: str, images: Path | None = None) -> tuple[dict[str, DatasetConfig], tuple[int, ...]]:
    """The data sets by their splits that a folder, an annotation file or a config names, and long sides to look at."""
    from piip.config.load import load_config
    from piip.data.check import LONG_SIDES
    from piip.data.find import data_of_file, find_data

    if source.endswith(".json"):
        return {"all": data_of_file(Path(source), images)}, LONG_SIDES
    if _is_data(source):
        found = find_data(Path(source))
        typer.echo(str(found), err=True)
        return {"train": found.train, "val": found.val}, LONG_SIDES
    config = load_config(source)
    for split in ("train", "val"):
        getattr(config.data, split).check_files(f"data.{split}")
    sides = sorted({config.data.val_transforms.long_side, *LONG_SIDES})
    return {"train": config.data.train, "val": config.data.val}, tuple(sides)


def _show(split: Split, sides: tuple[int, ...], console: Any) -> None:
    from rich.text import Text

    from piip.cli.console import table
    from piip.data.check import LEAST_SIDE, small_shares, suggest_side
    from piip.errors import visible

    console.print(f"{split.name}: {len(split.images)} images of {split.source}", style="bold")
    effects = split.findings.effects
    found = sorted(split.findings.counts.items(), key=lambda item: [*_STYLES].index(effects[item[0]]))
    for kind, count in found:
        effect = effects[kind]
        console.print(Text(f"  {effect:8}", style=_STYLES[effect]), f"{count} x {kind}")
        for example in split.findings.examples[kind]:
            console.print(f"           {visible(example)}", style="dim")
    if not found:
        console.print("  nothing found")
    columns = ("class", "small", "medium", "large", "all") if split.unit == "objects" else ("class", split.unit)
    rows = [(name, *counts, *([sum(counts)] if len(counts) > 1 else [])) for name, counts in split.objects.items()]
    if rows:
        console.print(table(columns, rows))
    shares = small_shares(split, sides)
    if shares:
        side = suggest_side(shares)
        told = ", ".join(f"{share:.0%} at {side}" for side, share in shares.items())
        console.print(
            f"objects below {LEAST_SIDE} pixels by the long side of resized images: {told}; suggested: {side}"
        )
    console.print()


def _repair(splits: list[Split], output: Path) -> list[str]:
    """Writes a file, or one per split into a folder. Returns what was done."""
    from piip.data.check import repaired
    from piip.errors import DataError
    from piip.files import check_outputs, to_json, write_file, writing

    files = [output / f"{split.name}.json" for split in splits] if len(splits) > 1 else [output]
    if len(splits) > 1 and output.suffix == ".json":
        raise DataError(f"{output} is one file, but there are {len(splits)} splits; give a folder")
    lines: list[str] = []
    check_outputs(files, [Path(split.source) for split in splits if split.source])
    for split, file in zip(splits, files):
        lines.append(f"{file}:")
        document = repaired(split, lambda line: lines.append(f"  {line}"))
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, to_json(document))
    return lines
