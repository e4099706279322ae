"""A web page to try networks on: drop an image, see what is found and what every branch sees."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from piip.config.experiment import Config
from piip.data.images import read_image
from piip.data.transforms.batch import prepare
from piip.errors import PiipError, first_line
from piip.load import load_model
from piip.model import Model
from piip.ops import pyramid_resize

if TYPE_CHECKING:
    import gradio

# Files with more bytes, and images with more pixels, are refused.
MAX_BYTES, MAX_PIXELS = 20 * 2**20, 2**25
# Networks that are kept ready.
_READY = 2
# The threshold that the slider begins with; what has a score below LEAST is never shown.
THRESHOLD, LEAST = 0.3, 0.05


class Seen(NamedTuple):
    """What was found on an image (3, h, w) uint8 by a network."""

    model: Model
    pixels: Tensor
    result: Any


def build_page(networks: Mapping[str, tuple[Config, Path]], device: torch.device) -> gradio.Blocks:
    """The page. networks: by the name to choose them by, their configs and weights; the first is chosen at first."""
    import gradio

    @lru_cache(_READY)
    def model_of(name: str) -> Model:
        config, weights = networks[name]
        return load_model(config, weights, device=device, precision=config.train.precision)

    def look(name: str, file: str | None, threshold: float) -> tuple[Any, ...]:
        """Everything that the page shows of an image."""
        if file is None:
            raise gradio.Error("drop an image first")
        try:
            pixels = read_image(file, MAX_PIXELS)
            model = model_of(name)
            with _times(model) as times:
                result = model.predict(pixels, threshold=LEAST)
        except PiipError as error:
            # A name in a folder of the server says nothing to the person at the page.
            raise gradio.Error(str(error).replace(str(file), Path(file).name)) from None
        seen = Seen(model, pixels, result)
        return seen, *show(seen, threshold), _in_words(times), _levels(model, pixels)

    def show(seen: Seen | None, threshold: float) -> tuple[Image.Image | None, Any]:
        """The overlay and the table, of what has at least this score."""
        if seen is None:
            return None, None
        writer = seen.model.config.head.build_writer(seen.model.names, score_threshold=threshold)
        columns, rows = writer.table(seen.result)
        return writer.draw(seen.pixels, seen.result), {"headers": columns, "data": rows}

    with gradio.Blocks(title="PIIP", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown("# PIIP\nDrop an image, and see what a network finds and what each of its branches sees.")
        seen = gradio.State(None)
        with gradio.Row():
            with gradio.Column():
                name = gradio.Dropdown(list(networks), value=next(iter(networks)), label="Network")
                file = gradio.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", elem_id="image"
                )
                # The path of what was uploaded, undecoded: `read_image` has limits, and words for what is wrong.
                file.preprocess = lambda given: None if given is None else given.path  # type: ignore[assignment]
                threshold = gradio.Slider(LEAST, 1, THRESHOLD, step=0.05, label="Least score", elem_id="threshold")
                button = gradio.Button("Predict", variant="primary", elem_id="predict")
            with gradio.Column():
                overlay = gradio.Image(
                    label="Found", interactive=False, buttons=["download", "fullscreen"], elem_id="overlay"
                )
                times = gradio.Markdown(elem_id="times")
        table = gradio.Dataframe(label="Results", interactive=False, elem_id="results")
        levels = gradio.Gallery(label="What the branches see", columns=4, elem_id="levels", interactive=False)
        button.click(look, [name, file, threshold], [seen, overlay, table, times, levels], api_visibility="private")
        threshold.change(
            show, [seen, threshold], [overlay, table], api_visibility="private", trigger_mode="always_last"
        )
    return page


def serve(page: gradio.Blocks, *, host: str, port: int | None) -> str:
    """Starts to serve the page, and returns its address; `page.block_thread()` waits for the end.

    port: None takes the first free one from 7860 on. No file of this machine can be read through the page, but for
    uploads and what the page itself has made of them. Raises PiipError if the address is taken.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_BYTES,
            allowed_paths=[],
            show_error=True,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        where = f"{host}, port {port or 7860}"
        raise PiipError(f"cannot serve at {where}: {first_line(error)}; choose another --port") from None
    return address


@contextmanager
def _times(model: Model) -> Iterator[dict[str, float]]:
    """Milliseconds that backbone and neck take in the block, and all the rest of it."""
    times: dict[str, float] = {}
    started: dict[nn.Module, float] = {}

    def clock() -> float:
        if next(model.parameters()).is_cuda:
            torch.cuda.synchronize()
        return 1000 * time.perf_counter()

    def start(module: nn.Module, inputs: Any) -> None:
        started[module] = clock()

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        name = "backbone" if module is model.backbone else "neck"
        times[name] = times.get(name, 0.0) + clock() - started[module]

    handles = [part.register_forward_pre_hook(start) for part in (model.backbone, model.neck)]
    handles += [part.register_forward_hook(stop) for part in (model.backbone, model.neck)]
    begin = clock()
    try:
        yield times
    finally:
        times["head and the rest"] = clock() - begin - sum(times.values())
        for handle in handles:
            handle.remove()


def _in_words(times: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.0f} ms" for name, value in times.items())
    return f"{sum(times.values()):.0f} ms: {parts}"


def _levels(model: Model, pixels: Tensor) -> list[tuple[Image.Image, str]]:
    """The image as every branch sees it, finest first, with what to call it."""
    assert model.transforms is not None
    backbone = model.config.backbone
    batch, [(height, width)] = prepare([pixels], model.transforms)
    image = batch[:, :, :height, :width].float()
    factors = [resolution / backbone.resolutions[0] for resolution in backbone.resolutions]
    levels = []
    for branch, level in zip(backbone.branches, pyramid_resize(image, scale_factors=factors), strict=True):
        array = level[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
        levels.append((Image.fromarray(array), f"{branch.label}: {array.shape[1]} x {array.shape[0]} pixels"))
    return levels
