"""The settings of images with a JSON file each, as labelme writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.find import FoundData, Tree
    from piip.data.sets.instances.records import Instances


class LabelmeData(InstanceData):
    """Images and labelme's JSON files beside them, or in a folder of their own."""

    find_rank: ClassVar = 4
    type: Literal["labelme"] = "labelme"
    root: Path

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        from piip.data.sets.instances.find import found_documents

        return found_documents(
            tree, "labelme annotations", ".json", b'"shapes"', lambda top: cls(root=tree.folder / top)
        )

    def read(self) -> Instances:
        from piip.data.sets.labelme.reader import read_labelme

        return read_labelme(self.root, class_names=self.class_names)
