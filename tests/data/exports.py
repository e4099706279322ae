"""Small sets of two objects per image, a box and a disc, as tools export them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
BOX = (6, 6, 20, 20)  # x, y, w, h
OTHER = (34, 10, 24, 30)
NAMES = ["box", "disc"]


def save_images(folder: Path, count: int, *, first: int = 0, ending: str = "png") -> list[str]:
    """Noise, different in every image. Returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"im{number}.{ending}" for number in range(first, first + count)]
    for number, name in enumerate(names, first):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def rectangle(box: tuple[int, int, int, int]) -> list[int]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco(names: list[str], *, masks: bool = True) -> dict[str, Any]:
    objects = [(1, BOX), (2, OTHER)]
    return {
        "images": [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names, 1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES, 1)],
        "annotations": [
            {
                "id": 10 * image + label,
                "image_id": image,
                "category_id": label,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                **({"segmentation": [rectangle(box)]} if masks else {}),
            }
            for image in range(1, len(names) + 1)
            for label, box in objects
        ],
    }


def write_coco(file: Path, names: list[str], **settings: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco(names, **settings)))
    return file


def write_yolo(folder: Path, stems: list[str], *, polygons: bool = False) -> None:
    """Label files: a box, and a box or a polygon."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y, w, h = BOX
    box = f"0 {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
    a, b, c, d = OTHER
    outline = " ".join(str(v / (HEIGHT if i % 2 else WIDTH)) for i, v in enumerate(rectangle(OTHER)))
    other = f"1 {outline}" if polygons else f"1 {(a + c / 2) / WIDTH} {(b + d / 2) / HEIGHT} {c / WIDTH} {d / HEIGHT}"
    for stem in stems:
        (folder / f"{stem}.txt").write_text(f"{box}\n{other}\n")


def voc(name: str, *, difficult: int = 0, database: str = "mine") -> str:
    def corners(box: tuple[int, int, int, int]) -> str:
        x, y, w, h = box
        return f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"

    objects = "".join(
        f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox>{corners(box)}</bndbox></object>"
        for kind, box, hard in ((NAMES[0], BOX, 0), (NAMES[1], OTHER, difficult))
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    source = f"<source><database>{database}</database></source>"
    return f"<annotation><filename>{name}</filename>{source}{size}{objects}</annotation>"


def labelme(name: str) -> dict[str, Any]:
    """A rectangle, a polygon in two parts, a point, and a mask."""
    x, y, w, h = BOX
    mask = io.BytesIO()
    Image.fromarray(np.full((5, 7), 255, dtype=np.uint8)).convert("1").save(mask, format="PNG")
    corners = np.array(rectangle(OTHER), dtype=float).reshape(-1, 2)
    shapes = [
        {"label": "box", "shape_type": "rectangle", "points": [[x, y], [x + w, y + h]]},
        {"label": "disc", "shape_type": "polygon", "group_id": 1, "points": corners.tolist()},
        {"label": "disc", "shape_type": "polygon", "group_id": 1, "points": [[30, 2], [32, 2], [32, 4], [30, 4]]},
        {"label": "disc", "shape_type": "point", "points": [[1, 1]]},
        {
            "label": "box",
            "shape_type": "mask",
            "points": [[40, 40], [46, 44]],
            "mask": base64.b64encode(mask.getvalue()).decode(),
        },
    ]
    return {"imagePath": f"..\\photos\\{name}", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
