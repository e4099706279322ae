"""Folders of generated files that are either whole or not there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from piip.conventions import JPEG_QUALITY
from piip.errors import PiipError
from piip.files import making, sync
from piip.signals import check_stop

logger = logging.getLogger(__name__)


def write_once(final: Path, write: Callable[[Path], None]) -> None:
    """Makes sure that the folder `final` exists, with what `write` puts into the folder it is given.

    That is a temporary folder, renamed at the end, so several processes may ask for it at once. One that a killed
    process left behind is removed.
    Raises PiipError when the files cannot be written.
    """
    if final.is_dir():
        return
    logger.info("drawing images of shapes in %s", final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with making(final) as temporary:
            write(temporary)
    except OSError as error:
        raise PiipError(f"cannot write the generated images to {final}: {error.strerror or error}") from None


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image, in the format that the path's ending names, and waits until it is on the disk.

    Raises Stopped or KeyboardInterrupt where a signal asks for it: a set may take minutes.
    """
    check_stop()
    image.save(path, quality=JPEG_QUALITY)
    sync(path)
