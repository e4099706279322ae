"""`piip search`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piip.cli.options import Device, Json

if TYPE_CHECKING:
    from piip.search.search import Candidate


def search(
    letters: Annotated[
        list[str] | None, typer.Argument(metavar="[LETTERS]...", help="Sets of branches, as in tsb; by default all.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="GMACS", help="Most that the backbone may cost, as in 300G.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Most that one image may take here, as in 40ms or 2s.")
    ] = None,
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the config of the best here.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option("--frontier", metavar="FILE", dir_okay=False, help="Draw cost against AP as a PNG.")
    ] = None,
    json: Json = False,
) -> None:
    """Find the resolutions that promise the most box AP for a budget, by a fit to the paper's table."""
    from piip.cli.console import out, paragraphs, print_json
    from piip.cli.tables import print_table
    from piip.errors import ConfigError
    from piip.search.published import fit
    from piip.search.search import SETS, as_config, candidates, fastest_within, frontier

    if (budget is None) == (latency is None):
        raise typer.BadParameter("give either --budget, as in 300G, or --latency, as in 40ms")
    most = _quantity(budget, "--budget", {"G": 1.0, "T": 1000.0}) if budget is not None else None
    limit = _quantity(latency, "--latency", {"ms": 1.0, "s": 1000.0}) if latency is not None else None
    found = [one for one in candidates([name.lower() for name in letters or SETS]) if one.known]
    best = frontier(found)
    measured: dict[str, float] = {}
    if most is not None:
        best = [one for one in best if one.gmacs <= most]
        cheapest = min(found, key=lambda one: one.gmacs)
        if not best:
            raise ConfigError(f"the cheapest that the fit knows is {cheapest.name} with {cheapest.gmacs:.0f}G")
    elif limit is not None:
        best, measured = fastest_within(best, limit, _clock(device))
        if not best:
            told = ", ".join(f"{name} {time:.0f} ms" for name, time in measured.items())
            raise ConfigError(f"nothing that the fit knows is as fast here: {told}")
    errors = fit()
    if output is not None:
        from piip.files import write_file

        write_file(output, as_config(best[-1]))
    if chart is not None:
        from piip.search.chart import draw

        draw(found, best, chart)
    if json:
        documents = [one._asdict() | {"milliseconds": measured.get(one.name)} for one in best]
        print_json({"best": documents[-1], "frontier": documents, "rms": errors.rms, "worst": errors.worst})
        return
    console = out()
    rows = [
        (
            one.name,
            f"{one.gmacs:.0f}",
            f"{one.box_ap:.1f}",
            f"{measured[one.name]:.0f}" if one.name in measured else None,
        )
        for one in best[-12:]
    ]
    columns = ("the frontier, the best last", "GMACs", "box AP")
    print_table(console, (*columns, "ms") if measured else columns, [row if measured else row[:3] for row in rows])
    paragraphs(
        console,
        "box AP: of Mask R-CNN, 1x schedule, on COCO val2017, by a fit to the 25 rows of the paper's table 12. Rows "
        f"that are left out of it are missed by {errors.rms:.2f} (root mean square), at most by {errors.worst:.2f}: "
        "smaller differences mean nothing. Considered are resolutions near published rows.",
        "GMACs: of the backbone, as the paper counts.",
    )
    for what, path in (("config", output), ("picture", chart)):
        if path is not None:
            console.print(f"{what} written to {path}")


def _quantity(text: str, option: str, units: dict[str, float]) -> float:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([A-Za-z]+)?", text.strip())
    unit = match[2] if match else None
    if match is None or (unit is not None and unit not in units):
        raise typer.BadParameter(f"{option} '{text}': give a number with {' or '.join(units)}")
    return float(match[1]) * units[unit or next(iter(units))]


def _clock(device: str | None) -> Callable[[Candidate], float]:
    """How long a candidate's Mask R-CNN takes for one image on a device, in milliseconds; it tells what it measures."""
    from piip.bench.network import measure
    from piip.config.load import load_config
    from piip.engine.device import choose_device

    target = choose_device(device)

    def clock(one: Candidate) -> float:
        base = {"tsb": "tsb_1568_1120_672", "sbl": "sbl_1568_1120_672", "tsbl": "tsbl_1568_1120_672_448"}[one.letters]
        config = load_config(
            f"detection/mask_rcnn_piip_{base}", [f"model.backbone.resolutions={list(one.resolutions)}"]
        )
        (found,) = measure([config], device=target, repeats=3)
        typer.echo(f"{one.name}: {found.median:.0f} ms", err=True)
        return found.median

    return clock
