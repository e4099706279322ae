"""Conventions that several rooms share which know nothing of each other."""

from __future__ import annotations

# What messages and results know an image by: its number in an annotation file, or its own file.
ImageId = int | str

# The value of a pixel in a label map that has no label.
NO_LABEL = 255

# Images whose headers announce more pixels are refused before anything is decoded.
MAX_IMAGE_PIXELS = 100_000_000

# Quality of the JPEG files that are written, from 0 to 100.
JPEG_QUALITY = 92
