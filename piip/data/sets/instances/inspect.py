"""What readers say of instances, for `piip data check`."""

from __future__ import annotations

from piip.data.check import Split
from piip.data.findings import Findings
from piip.data.folders import list_images
from piip.data.sets.instances.config import InstanceData

# COCO's small, medium and large objects: areas in pixels between these.
_SMALL, _LARGE = 32**2, 96**2


def inspect_instances(config: InstanceData, name: str) -> Split:
    """The objects of every class by their size, classes without one, and images that nothing is said of."""
    found = config.load()
    objects = {class_name: [0, 0, 0] for class_name in found.class_names}
    for image in found.images:
        for a in image.annotations:
            area = a.measure(image.height, image.width)
            objects[found.class_names[a.label]][int(area >= _SMALL) + int(area >= _LARGE)] += not a.crowd
    for class_name, counts in objects.items():
        if not any(counts):
            found.findings.add("class without objects", class_name, "note")
    images = {found.folder / image.file_name: (image.height, image.width) for image in found.images}
    unlisted = [file for file in list_images(found.folder, Findings("")) if found.folder / file not in images]
    if unlisted and config.part == "all":
        kind = "image in the folder that the annotations do not list"
        found.findings.add(kind, unlisted[0], "note", count=len(unlisted))
    return Split(name, str(found.source), found.findings, found.class_names, images, objects, instances=found)
