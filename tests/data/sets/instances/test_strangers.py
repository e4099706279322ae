"""A format of somebody's own is a config that reads records: everything else follows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest

from piip.data.check import check_data, wrong
from piip.data.find import FoundData, Tree, find_data
from piip.data.findings import Findings
from piip.data.sets.config import DatasetConfig
from piip.data.sets.instances.config import InstanceData
from piip.data.sets.instances.find import found_instances
from piip.data.sets.instances.records import ImageRecord, Instances, clean
from tests.data.exports import BOX, HEIGHT, WIDTH, save_images


class TableData(InstanceData):
    """A line of 'image class x y width height' per object in table.csv."""

    find_rank: ClassVar = 0
    type: Literal["table"] = "table"
    root: Path

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        if "table.csv" not in tree.files["."]:
            return None
        return found_instances(tree, "a table", {None: cls(root=tree.folder)}, look_at_both=False)

    def read(self) -> Instances:
        findings, images = Findings("table.csv"), {}
        for number, line in enumerate((self.root / "table.csv").read_text().splitlines(), 1):
            name, label, *numbers = line.split()
            x, y, w, h = map(float, numbers)
            image = images.setdefault(name, ImageRecord(name, name, HEIGHT, WIDTH, ()))
            found = clean(findings, image, number, int(label), (x, y, w, h))
            if found is not None:
                images[name] = image._replace(annotations=(*image.annotations, found))
        return Instances(self.root / "table.csv", self.root, ["box", "disc"], [*images.values()], findings, [0, 1])


# Defining a member makes it known to the whole process, in which other tests say which types there are.
del DatasetConfig.members["table"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(DatasetConfig.members, "table", TableData)
    lines = [f"{name} 0 {' '.join(map(str, BOX))}" for name in save_images(tmp_path, 5)]
    (tmp_path / "table.csv").write_text("\n".join([*lines, "im0.png 1 60 40 -20 -10"]))
    return tmp_path


def test_it_is_found_split_read_cleaned_and_checked(table: Path) -> None:
    found = find_data(table)
    assert (found.format, found.class_names, found.masks) == ("a table", ["box", "disc"], False)
    train, val = found.train.build(training=True), found.val.build(training=False)
    assert len(train) + len(val) == 5
    whole = TableData(root=table).build(training=True)
    assert whole.truth(0)["xywh"].tolist() == [list(BOX), [40, 30, 20, 10]]
    assert whole.report.counts == {"box of negative width or height turned round": 1}
    assert wrong(check_data({"all": TableData(root=table)})) == 1
    assert DatasetConfig.known()["table"] is TableData
