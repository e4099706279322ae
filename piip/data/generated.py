"""Folders of generated files that are either whole or not there."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from piip.errors import PiipError
from piip.files import sync

logger = logging.getLogger(__name__)

_JPEG_QUALITY = 92


def write_once(final: Path, write: Callable[[Path], None]) -> None:
    """Makes sure that the folder `final` exists, with what `write` puts into the folder it is given.

    That is a temporary folder, renamed at the end, so several processes may ask for it at once.
    Raises PiipError when the files cannot be written.
    """
    if final.is_dir():
        return
    logger.info("drawing images of shapes in %s", final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            write(temporary)
            temporary.chmod(0o755)
            try:
                temporary.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise PiipError(f"cannot write the generated images to {final}: {error.strerror or error}") from None


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image, in the format that the path's ending names, and waits until it is on the disk."""
    image.save(path, quality=_JPEG_QUALITY)
    sync(path)
