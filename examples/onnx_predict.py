"""Runs a detector that `piip export CONFIG --final` wrote, with onnxruntime, numpy and Pillow alone.

python onnx_predict.py model.onnx photo.jpg shown.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

THRESHOLD = 0.3


def main(model: str, photo: str, shown: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    height, width = session.get_inputs()[0].shape[2:]
    image = Image.open(photo).convert("RGB")
    # As large as fits, in the upper left corner; the rest is filled with the mean colour, which normalises to about 0.
    scale = min(width / image.width, height / image.height)
    size = round(image.width * scale), round(image.height * scale)
    canvas = Image.new("RGB", (width, height), tuple(round(value) for value in json.loads(about["mean"])))
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR))
    pixels = np.asarray(canvas).transpose(2, 0, 1)[None]
    found = dict(zip([item.name for item in session.get_outputs()], session.run(None, {"images": pixels})))

    pen, names = ImageDraw.Draw(image), json.loads(about["class_names"])
    for box, score, label in zip(found["boxes"] / scale, found["scores"], found["labels"]):
        if score >= THRESHOLD:
            print(f"{names[label]:12} {score:.2f} {' '.join(f'{side:.1f}' for side in box)}")
            pen.rectangle([float(side) for side in box], outline="red", width=2)
            pen.text((float(box[0]) + 3, float(box[1]) + 1), f"{names[label]} {score:.2f}", fill="red")
    image.save(shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
