"""Fine-tuning: a run that starts from the weights of another one, perhaps for other classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from piip.errors import CheckpointError, first_few, visible
from piip.model import Model
from piip.weights.files import read_weights, warn_of_non_finite
from piip.weights.find import find_weights

_log = logging.getLogger(__name__)

# Names that a message lists.
_SHOWN = 8


def start_from(model: Model, weights: Path, class_names: Sequence[str], *, partial: bool = False) -> None:
    """Loads a run, a checkpoint or a weight file into a model that is to be trained on classes of these names.

    Weights that depend on the classes are carried over class by class: a class keeps its weights if the file has one of
    the same name, under whatever label, and else starts anew. A file that names no classes is taken to have those of
    the data if it has as many, and else all classes start anew. The log says by name what started anew.
    partial: weights that the file does not have, or has in another shape, start anew too, instead of being an error.
    Raises CheckpointError; the model is then unchanged.
    """
    file = find_weights(weights)
    given, loaded = read_weights(file)
    own, rows = model.state_dict(), model.class_rows()
    classes = _Classes(class_names, loaded.class_names)
    missing = [name for name in own if name not in given]
    fitting = {}
    for name in own.keys() & given.keys():
        tensor = classes.merge(own[name], given[name], rows[name]) if name in rows else given[name]
        if tensor is not None and tensor.shape == own[name].shape:
            fitting[name] = tensor
    misshapen = [name for name in own if name in given and name not in fitting]
    unexpected = [name for name in given if name not in own]
    found = (("missing", missing), ("of another shape", misshapen), ("unexpected", unexpected))
    faults = [f"{len(names)} {kind}: {first_few(names, _SHOWN)}" for kind, names in found if names]
    if not fitting or (faults and not partial):
        advice = "--weights-partial takes over what fits and starts the rest anew" if fitting else "nothing of it fits"
        raise CheckpointError("\n  ".join([f"{file} holds the weights of another network:", *faults, advice]))
    warn_of_non_finite(file, fitting)
    model.load_state_dict(fitting, strict=False)
    step = "" if loaded.step is None else f" (step {loaded.step})"
    _log.info("training starts from the weights of %s%s", file, step)
    if missing or misshapen:
        _log.warning("parameters that start anew: %s", ", ".join(missing + misshapen))
    if unexpected:
        _log.warning("parameters of the file that are left out: %s", ", ".join(unexpected))
    if carried := [name for name in rows if name in fitting]:
        _log.info("%s; parameters with rows per class: %s", classes.describe(), ", ".join(carried))


class _Classes:
    """The classes of the data and those of a weight file, which names them or not."""

    def __init__(self, names: Sequence[str], file_names: Sequence[str] | None) -> None:
        self.names, self.file_names = names, file_names
        labels = {name: label for label, name in enumerate(file_names or ())}
        # Label in the data and in the file of the classes that have the same name in both.
        self.shared = [(label, labels[name]) for label, name in enumerate(names) if name in labels]
        self.by_position = False

    def merge(self, own: Tensor, given: Tensor, rows: int) -> Tensor | None:
        """The model's tensor with the file's rows of the classes that both have; None where the shapes do not fit.

        rows: how many rows along the first dimension each class has. Rows that belong to no class come last, and are
        the file's.
        """
        mine = rows * len(self.names)
        others = len(own) - mine
        theirs = len(given) - others
        expected = theirs // rows if self.file_names is None else len(self.file_names)
        if given.shape[1:] != own.shape[1:] or theirs < 0 or theirs != rows * expected:
            return None
        shared = self.shared
        if self.file_names is None and mine == theirs:
            self.by_position = True
            shared = [(label, label) for label in range(len(self.names))]
        merged = own.clone()
        merged[mine:] = given[theirs:]
        for new, old in shared:
            merged[new * rows : (new + 1) * rows] = given[old * rows : (old + 1) * rows]
        return merged

    def describe(self) -> str:
        """Which classes keep their weights and which start anew, by name."""
        if self.by_position:
            return f"the file does not name its {len(self.names)} classes, which are taken to be those of the data"
        known = {label for label, _ in self.shared}
        kept = ", ".join(visible(name) for label, name in enumerate(self.names) if label in known)
        new = ", ".join(visible(name) for label, name in enumerate(self.names) if label not in known)
        return f"classes that keep their weights: {kept or 'none'}; that start anew: {new or 'none'}"
