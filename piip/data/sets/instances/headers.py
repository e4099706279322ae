"""Whether image files have the sizes that annotations say, as far as their headers tell, before anything is trained."""

from __future__ import annotations

from piip.data.images import read_pixels, read_size
from piip.data.sets.instances.records import ImageRecord, Instances
from piip.errors import DataError

# Headers that are read before training; of larger sets every so many images. A minute on a slow disk.
_MOST = 10_000


def check_headers(found: Instances, *, max_pixels: int) -> None:
    """Adds images of another size than annotated to the findings, as errors."""
    step = -(-len(found.images) // _MOST) or 1
    for image in found.images[::step]:
        try:
            size = read_size(found.folder / image.file_name, max_pixels)
            if size != (image.height, image.width):
                check_size(found, image)
        except DataError:
            continue  # which is told when it is its turn: training takes another one, evaluation counts it as missed


def check_size(found: Instances, image: ImageRecord) -> None:
    """Tells of an image whose size is not that of the annotations, after a look at all of the file."""
    pixels = read_pixels(found.folder / image.file_name)
    height, width = pixels.shape[:2]
    if (height, width) == (image.height, image.width):
        return
    hint = "; was it annotated without the image's EXIF rotation?" if (width, height) == (image.height, image.width) else ""
    what = f"{image.file_name} has {width} x {height} pixels, by {found.source.name} {image.width} x {image.height}{hint}"
    found.findings.add("image of another size than annotated", what, "error")
