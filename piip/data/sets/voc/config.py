"""The settings of images with an XML file each, as Pascal VOC has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.find import FoundData, Tree
    from piip.data.sets.instances.records import Instances


class VocData(InstanceData):
    """Images and XML files in Pascal VOC's format, in one folder or in Annotations, JPEGImages and ImageSets."""

    find_rank: ClassVar = 3
    type: Literal["voc"] = "voc"
    root: Path
    split: str | None = Field(None, description="only the images that ImageSets/Main/SPLIT.txt lists")

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        from piip.data.sets.instances.find import found_documents, found_instances

        described = next(tree.with_ending(".xml"), None) is not None
        for parent, names in tree.files.items():
            if described and parent.endswith("ImageSets/Main") and {"train.txt", "val.txt"} <= {*names}:
                root = (tree.folder / parent).parents[1]
                splits: dict[str | None, InstanceData] = {s: cls(root=root, split=s) for s in ("train", "val")}
                return found_instances(tree, "Pascal VOC annotations", splits, look_at_both=True)
        return found_documents(
            tree, "Pascal VOC annotations", ".xml", b"<annotation", lambda top: cls(root=tree.folder / top)
        )

    def read(self) -> Instances:
        from piip.data.sets.voc.reader import read_voc

        return read_voc(self.root, split=self.split, class_names=self.class_names)
