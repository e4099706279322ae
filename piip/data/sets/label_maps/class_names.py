"""The names of the classes of label maps: from the config, from a text file, or those of ADE20K."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from piip.data.class_names import read_lines
from piip.errors import DataError

# The classes of ADE20K's scene parsing benchmark (Zhou et al., 2017), in the order of their labels.
_ADE20K = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
    chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
    case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
    hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
    fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""
ADE20K_CLASSES = [name.strip() for name in _ADE20K.split(",")]


def read_class_names(given: Sequence[str] | Path | Literal["ade20k"]) -> list[str]:
    """The names themselves, those of a text file with one per line, or those of ADE20K.

    Raises DataError for empty lines and for names that occur twice.
    """
    if given == "ade20k":
        return list(ADE20K_CLASSES)
    if not isinstance(given, (str, Path)):
        return list(given)
    names: dict[str, None] = {}
    for number, line in enumerate(read_lines(Path(given)), start=1):
        name = line.strip()
        if not name or name in names:
            raise DataError(f"{given}, line {number}: {f'{name!r} stands there twice' if name else 'no name'}")
        names[name] = None
    return list(names)
