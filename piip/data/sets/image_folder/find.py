"""Folders of images per class, in folders per split or not."""

from __future__ import annotations

from piip.data.check import Split
from piip.data.find import FoundData, Tree, split_of
from piip.data.findings import Findings
from piip.data.folders import list_folder, list_images
from piip.data.sets.image_folder.config import ImageFolderData
from piip.data.split import names_in_part


def find_image_folders(tree: Tree) -> FoundData | None:
    """Two folders or more of images, below those of splits or in the folder itself."""
    tops = {split_of(top): top for top in tree.tops}
    base, val_top = tops.get("train", "."), tops.get("val") or tops.get("test")
    root = tree.folder / base
    if "train" in tops and val_top:
        train, val = ImageFolderData(root=root), ImageFolderData(root=tree.folder / val_top)
    else:
        train, val = ImageFolderData(root=root, part="train"), ImageFolderData(root=root, part="val")
    prefix = "" if base == "." else f"{base}/"
    inside = [parent[len(prefix) :] for parent in tree.image_folders if parent.startswith(prefix) and parent != "."]
    if len({parent.split("/")[0] for parent in inside}) < 2:
        return None
    names = list_folder(root, ()).folders
    return FoundData(tree.folder, "a folder of images per class", "classification", train, val, names)


def inspect_image_folders(config: ImageFolderData, name: str) -> Split:
    """The images of every class, for `piip data check`."""
    findings, folders = Findings(name), list_folder(config.root, ()).folders
    files = {folder: [*list_images(config.root, findings, folder)] for folder in folders}
    kept = names_in_part((file for names in files.values() for file in names), config.part)
    images = {config.root / file: (0, 0) for names in files.values() for file in names if file in kept}
    counts = {folder: [sum(file in kept for file in names)] for folder, names in files.items()}
    return Split(name, str(config.root), findings, folders, images, counts, "images")
