"""Everything that a stranger adds to the toolkit, defined here and known nowhere in `piip`.

A new task, counting dots: a branch, a neck, a head with its writer, a data set with a file format of its own, a recipe
of transforms and a metric go through every command. docs/extending.md explains this file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import piip
from piip.branches.base import Branch, Tokens
from piip.branches.config import BranchConfig
from piip.config.load import load_config
from piip.config.strict import Component
from piip.data.findings import Findings
from piip.data.images import read_image
from piip.data.sets.base import ImageDataset
from piip.data.sets.config import DatasetConfig
from piip.data.transforms.config import TransformsConfig
from piip.data.transforms.resize import resize_image, resized_size
from piip.errors import DataError
from piip.features import FeatureSpec
from piip.heads.base import Head
from piip.heads.config import HeadConfig
from piip.metrics.base import Metric
from piip.metrics.config import MetricConfig
from piip.necks.base import Neck
from piip.necks.config import NeckConfig
from piip.results.base import ResultWriter
from tests.cli.chain import figures, succeed

DOCUMENT = Path(__file__).parent.parent / "docs" / "extending.md"

# ---------------------------------------------------------------------------------------------------------- a branch


class PatchesConfig(BranchConfig):
    """Patches, and residual 3 x 3 convolutions between them."""

    type: Literal["patches"] = "patches"
    dim: int
    depth: int = 2

    def build(self) -> Patches:
        return Patches(self)


class Patches(Branch):
    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, config.dim, 16, stride=16)
        self.blocks = nn.ModuleList(nn.Conv2d(config.dim, config.dim, 3, padding=1) for _ in range(config.depth))
        self.specs = [FeatureSpec(config.dim, 16)] * config.depth  # channels and stride after each block

    def embed(self, images: Tensor) -> Tokens:
        return Tokens(self.patch(images).permute(0, 2, 3, 1))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        y = x.map.permute(0, 3, 1, 2)
        for block in self.blocks[start:stop]:
            y = y + F.relu(block(y))
        return Tokens(y.permute(0, 2, 3, 1))


# ------------------------------------------------------------------------------------------------------------ a neck


class SumConfig(NeckConfig):
    """All maps in one, on the finest grid."""

    type: Literal["sum"] = "sum"
    dim: int = 16

    def build(self, specs: Sequence[FeatureSpec]) -> Sum:
        return Sum(self, specs)


class Sum(Neck):
    def __init__(self, config: SumConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(spec.channels, config.dim, 1) for spec in specs)
        self.specs = [FeatureSpec(config.dim, specs[0].stride)]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        size = features[0].shape[2:]
        maps = [projection(x) for projection, x in zip(self.projections, features, strict=True)]
        return [torch.stack([F.interpolate(x, size=size) for x in maps]).sum(dim=0)]


# ----------------------------------------------------------------------------------------------- a head of a new task


class CounterConfig(HeadConfig):
    """Counts the dots of an image: the sum of a density over the finest map."""

    task: ClassVar = "counting"
    type: Literal["counter"] = "counter"
    num_classes: int = 1

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"points"})

    def build(self, specs: Sequence[FeatureSpec]) -> Counter:
        return Counter(specs)

    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> CountWriter:
        return CountWriter(class_names, score_threshold=score_threshold)


class Counter(Head):
    def __init__(self, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.stride = specs[0].stride
        self.density = nn.Conv2d(specs[0].channels, 1, 1)

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        counts = self.detect(features, image_sizes)
        return {"loss_count": F.l1_loss(counts, counts.new_tensor([len(target["points"]) for target in targets]))}

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """One count per image (B,), of the cells that are no padding."""
        density = F.softplus(self.density(features[0]))[:, 0]
        cells = [(math.ceil(h / self.stride), math.ceil(w / self.stride)) for h, w in image_sizes]
        return torch.stack([image[:h, :w].sum() for image, (h, w) in zip(density, cells, strict=True)])

    def restore(
        self, outputs: Tensor, image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        return [{"count": count} for count in outputs]  # which knows no pixels


class CountWriter(ResultWriter):
    """Counts as a document, images as they are."""

    def __init__(self, class_names: Sequence[str], *, score_threshold: float) -> None:
        super().__init__(class_names, score_threshold=score_threshold)
        self.document = {"images": []}

    def add(self, file: Path, image: Tensor, result: dict[str, Tensor], picture: Path) -> dict[str, float]:
        count = float(result["count"])
        self.document["images"].append({"file_name": str(file), "count": count})
        self.save(Image.fromarray(image.permute(1, 2, 0).numpy()), picture)
        return {self.class_names[0]: count}

    def describe(self, found: dict[str, float]) -> str:
        return ", ".join(f"{count:.1f} {name}" for name, count in found.items())


# -------------------------------------------------------------------------------------------------------- a data set


class DotsConfig(DatasetConfig):
    """Images and their dots in a text file: `name.png: x,y x,y ...`, one image per line, beside the images."""

    type: Literal["dots"] = "dots"
    file: Path

    def build(self, *, training: bool) -> Dots:
        return Dots(self)

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return (CountErrorConfig(),)


class Dots(ImageDataset):
    class_names: ClassVar = ["dot"]
    provides = frozenset({"points"})

    def __init__(self, config: DotsConfig) -> None:
        self.source, self.report, self._config = config.file, Findings(str(config.file)), config
        self._images: list[tuple[Path, list[list[float]]]] = []
        for number, line in enumerate(config.file.read_text().splitlines(), 1):
            name, _, dots = line.partition(": ")
            try:
                points = [[float(number) for number in dot.split(",")] for dot in dots.split()]
            except ValueError:
                raise DataError(f"{config.file}, line {number}: give dots as x,y; got '{dots}'") from None
            self._images.append((config.file.parent / name, points))
        sizes = [Image.open(file).size for file, _ in self._images]
        self.aspect_ratios = np.array([height / width for width, height in sizes])

    def __len__(self) -> int:
        return len(self._images)

    def image_id(self, index: int) -> str:
        return self._images[index][0].name

    def image(self, index: int) -> Tensor:
        return read_image(self._images[index][0], self._config.max_image_pixels)

    def target(self, index: int) -> dict[str, Tensor]:
        return {"points": torch.tensor(self._images[index][1]).view(-1, 2)}


# -------------------------------------------------------------------------------------------- a recipe of transforms


class CountingTransforms(TransformsConfig):
    """Fits the image into a square; mirrors half of the images in training."""

    in_pixels: ClassVar = ("size",)
    task: ClassVar = "counting"
    type: Literal["counting"] = "counting"
    size: int = 64

    @property
    def long_side(self) -> int:
        return self.size

    def transform(self, sample: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        height, width = sample["image"].shape[1:]
        h, w = resized_size(height, width, (self.size, self.size))
        image = resize_image(sample["image"], (h, w))
        if rng is None:  # evaluation, where a sample has no target
            return sample | {"image": image}
        points = sample["target"]["points"] * torch.tensor([w / width, h / height])
        if rng.random() < 0.5:
            image, points = image.flip(-1), torch.tensor([w, 0]) + points * torch.tensor([-1, 1])
        return sample | {"image": image, "target": {"points": points}}


# ---------------------------------------------------------------------------------------------------------- a metric


class CountErrorConfig(MetricConfig):
    """How far counts are from the truth."""

    type: Literal["count_error"] = "count_error"

    def build(self, class_names: Sequence[str]) -> CountError:
        return CountError(class_names)


class CountError(Metric[tuple[float, int]]):
    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self._class_names = class_names

    def update(
        self, results: Sequence[dict[str, Tensor]], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[int | str]
    ) -> None:
        for result, truth, image_id in zip(results, truths, image_ids, strict=True):
            self._found[image_id] = (float(result["count"]), len(truth["points"]))

    def compute(self) -> dict[str, float]:
        """The main figure first, which is better the higher it is."""
        errors = [abs(count - truth) for count, truth in self._found.values()]
        return {"exact": sum(error < 0.5 for error in errors) / len(errors), "mae": sum(errors) / len(errors)}

    def table(self) -> list[dict[str, Any]]:
        return [{"class": self._class_names[0], "images": len(self._found), **self.compute()}]


# ------------------------------------------------------------------------------------------------------------ the tests

# Defining a member makes it known to the whole process, in which other tests say which types there are.
TOYS: list[type[Component]] = [
    *(PatchesConfig, SumConfig, CounterConfig, DotsConfig, CountingTransforms, CountErrorConfig)
]
for toy in TOYS:
    del toy.members[toy.model_fields["type"].default]


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for toy in TOYS:
            patch.setitem(toy.members, toy.model_fields["type"].default, toy)
        yield


EXPERIMENT = """
model:
  backbone:
    branches: [{type: patches, dim: 32}, {type: patches, dim: 64}]
    resolutions: [64, 32]
    interactions: 2
    interaction: {num_heads: 2}
  neck: {type: sum}
  head: {type: counter}
data:
  train: {type: dots, file: train/dots.txt}
  val: {type: dots, file: val/dots.txt}
  train_transforms: {type: counting}
  val_transforms: {type: counting}
  batch_size: 2
metrics: [{type: count_error}]
schedule: {iterations: 4, warmup_iterations: 1}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the experiment, its data, and a run that was trained on them; it is the current one."""
    root = tmp_path_factory.mktemp("counting")
    (root / "counting.yaml").write_text(EXPERIMENT)
    rng = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 3)):
        (root / split).mkdir()
        lines = []
        for index in range(images):
            pixels = np.full((48 + 16 * (index % 2), 80, 3), 40, dtype=np.uint8)
            dots = [(int(rng.integers(4, 76)), int(rng.integers(4, 44))) for _ in range(index)]
            for x, y in dots:
                pixels[y - 3 : y + 4, x - 3 : x + 4] = 220
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            lines.append(f"{index}.png: {' '.join(f'{x},{y}' for x, y in dots)}")
        (root / split / "dots.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        settings = ["train.eval_every=4", "train.checkpoint_every=4", "train.log_every=1"]
        succeed("train", "counting.yaml", *settings, "--output", "run")
        yield root


def records(event: str) -> list[dict[str, Any]]:
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def test_a_task_made_of_strange_parts_is_trained(experiment: Path) -> None:
    losses = [record["losses"]["loss_count"] for record in records("train")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert load_config("run").model.head.type == "counter"


def test_its_evaluation_gives_what_training_reported_by_the_metric_that_the_config_names(experiment: Path) -> None:
    document = json.loads(succeed("eval", "counting.yaml", "--weights", "run", "--json").stdout)
    assert document["metrics"] == pytest.approx(records("eval")[-1]["metrics"])
    assert document["metrics"].keys() == {"exact", "mae"}
    assert [row["class"] for row in document["classes"]] == ["dot"]
    by_default = json.loads(succeed("eval", "counting.yaml", "metrics=[]", "--weights", "run", "--json").stdout)
    assert by_default["metrics"] == document["metrics"]


def test_its_predictions_are_those_of_the_model(experiment: Path) -> None:
    done = succeed("predict", "counting.yaml", "val", "--weights", "run", "--output", "out")
    document = json.loads(Path("out/predictions.json").read_text())
    model = piip.create_model("counting.yaml", "run")
    expected = [float(result["count"]) for result in model.predict([f"val/{index}.png" for index in range(3)])]
    assert [image["count"] for image in document["images"]] == pytest.approx(expected)
    assert Path("out/2.jpg").is_file()
    assert "dot" in done.stdout


def test_its_cost_is_counted_by_part(experiment: Path) -> None:
    document = json.loads(succeed("flops", "counting.yaml", "--json").stdout)
    macs = {part["name"]: part["macs"] for part in document["parts"]}
    assert macs["patches 64"] == 4 * 4 * 32 * (3 * 16 * 16 + 2 * 9 * 32)
    assert macs["density head"] == 16 * 16 * 16
    assert document["paper"] is None
    assert "patches 64" in succeed("flops", "counting.yaml").stdout


def test_it_is_listed_among_the_models(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piip.config.load.shipped_configs", lambda: {"counting/dots": experiment / "counting.yaml"})
    (row,) = json.loads(succeed("models", "--json").stdout)
    assert (row["name"], row["resolutions"], row["paper"]) == ("counting/dots", [64, 32], None)
    assert "counting/dots" in figures(succeed("models").stdout)["1"]


def test_what_the_document_shows_is_in_this_file() -> None:
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    code = Path(__file__).read_text()
    assert len(blocks) >= 7
    assert [block for block in blocks if block not in code] == []
