"""Files of torch.save, read without executing anything in them, and with errors of our own words."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from piip.errors import CheckpointError, first_line


def load_pickle(path: Path, *, foreign: bool = False, mapped: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU: only tensors, plain values and containers of them are made.

    foreign: objects of other classes are replaced by inert stand-ins; else such a file is refused. mapped: tensors are
    mapped, as those of foreign files are, so that they take memory only where they are used. Raises CheckpointError,
    whatever is in the file.
    """
    try:
        zipped = zipfile.is_zipfile(path)  # older files are plain pickles, which cannot be mapped
        if zipped:
            _check_size(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if foreign and zipped else []
        stand_ins = torch.serialization.safe_globals([_stand_in(name) for name in names])
        with stand_ins, warnings.catch_warnings():
            # torch asks for reports of what it may not be able to read; what it cannot is told below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and (foreign or mapped))
    except Exception as error:  # a damaged or hostile pickle makes torch raise anything
        raise CheckpointError(f"{path} {_why(error)}") from None


def _check_size(path: Path) -> None:
    """torch.save does not compress, so an archive that claims to hold more than its own size is none of its."""
    with zipfile.ZipFile(path) as archive:
        size, claimed = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if claimed > size:
        raise ValueError(f"its {size} bytes claim to unpack to {claimed}")


def _why(error: Exception) -> str:
    """The reason without torch's advice, which is to execute what the file says."""
    code = re.search(r"GLOBAL:? (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if code:
        return f"asks for code to be run ({code[1]}), and is not loaded; get it from a source that you trust"
    if isinstance(error, pickle.UnpicklingError):
        return "is damaged or not a checkpoint of torch.save"
    return f"is damaged or not a checkpoint of torch.save: {first_line(error)}"


class _StandIn:
    """Takes the place of a foreign object (an argparse.Namespace, a numpy scalar, ...) and drops what it held."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> type[_StandIn]:
    """A class that torch takes for the one of this full name."""
    module, _, last = name.rpartition(".")
    return type(last, (_StandIn,), {"__module__": module})
