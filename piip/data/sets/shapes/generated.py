"""The generated set on the disk, which is either whole or not there."""

from __future__ import annotations

import logging

from piip.data.sets.shapes import crops, instances, label_maps
from piip.data.sets.shapes.config import ShapesData
from piip.errors import PiipError
from piip.files import making

logger = logging.getLogger(__name__)

_WRITERS = {"instances": instances.write, "label_maps": label_maps.write, "crops": crops.write}


def write_once(config: ShapesData) -> None:
    """Makes sure that the folder of a set exists.

    It is drawn in a temporary folder, renamed at the end, so several processes may ask for it at once. One that a
    killed process left behind is removed.
    Raises PiipError when the files cannot be written.
    """
    if config.folder.is_dir():
        return
    logger.info("drawing images of shapes in %s", config.folder)
    try:
        config.root.mkdir(parents=True, exist_ok=True)
        with making(config.folder) as temporary:
            _WRITERS[config.form](config, temporary)
    except OSError as error:
        raise PiipError(f"cannot write the generated images to {config.folder}: {error.strerror or error}") from None
