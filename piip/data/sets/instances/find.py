"""What is found alike of all formats of instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from piip.data.find import FoundData, Tree, pair_up, split_of
from piip.data.sets.instances.config import InstanceData


def found_instances(
    tree: Tree, words: str, options: Mapping[str | None, InstanceData], *, look_at_both: bool
) -> FoundData | None:
    """Data whose classes and masks are read from the files, those of evaluation, which are fewer, or of both.

    words: the format. options: the data by split.
    """
    pair = pair_up(options)
    if pair is None:
        return None
    train, val = pair
    reads = [val.read()]
    if look_at_both and train.model_copy(update={"part": val.part}) != val:
        reads.append(train.read())
    names = list(dict.fromkeys(name for read in reads for name in read.class_names))
    if any(read.class_names != names for read in reads):
        # Numbered by their first appearance, or without those that no object has.
        names.sort()
        train, val = (data.model_copy(update={"class_names": tuple(names)}) for data in (train, val))
    return FoundData(tree.folder, words, "detection", train, val, names, any(read.has_masks for read in reads))


def found_documents(
    tree: Tree, words: str, ending: str, mark: bytes, build: Callable[[str], InstanceData]
) -> FoundData | None:
    """Data with a file per image that has an ending and holds a mark.

    They are divided by split where every file lies in a folder of one. build: the data of a folder in that of the tree.
    """
    first = next(tree.with_ending(ending), None)
    if first is None or mark not in tree.ends(first):
        return None
    tops = {path.split("/")[0] if "/" in path else "." for path in tree.with_ending(ending)}
    splits = {top: split_of(top) for top in tops}
    if None in splits.values() or len({*splits.values()}) < len(splits):
        splits = {".": None}
    options = {split: build(top) for top, split in splits.items()}
    return found_instances(tree, words, options, look_at_both=True)
