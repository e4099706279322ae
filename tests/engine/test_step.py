"""One optimizer step against plain autograd, and what it refuses to do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piip.config.experiment import OptimConfig
from piip.data.batch import Batch
from piip.engine.step import Step, StepResult, optimizer_step
from piip.errors import NonFiniteLoss
from tests.no_waits import Waits


class Regression(nn.Module):
    """Two losses of a linear map; an image id of 13 spoils a loss, one of 17 only the gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 3)
        self.bad = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.linear(batch.images.flatten(1))
        spoilt = torch.tensor(float("nan") if 13 in batch.image_ids else 0.0)
        # The square root has the value 0 and an infinite slope here.
        steep = self.bad.abs().sqrt().sum() if 17 in batch.image_ids else self.bad.sum()
        return {"square": outputs.square().mean() + steep, "linear": outputs.mean() + spoilt}


def batches(*image_ids: Iterable[int]) -> Iterator[Batch]:
    for ids in image_ids:
        ids = list(ids)
        images = torch.stack([torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(i)) for i in ids])
        sizes = [(2, 2)] * len(ids)
        yield Batch(images=images, image_sizes=sizes, original_sizes=sizes, image_ids=ids, targets=[])


def launch(
    model: nn.Module,
    data: Iterator[Batch],
    optimizer: torch.optim.Optimizer | None = None,
    before_update: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Step:
    return optimizer_step(
        model,
        optimizer or torch.optim.SGD(model.parameters(), lr=1.0, fused=True),
        data,
        config=OptimConfig(**settings),
        device=torch.device("cpu"),
        precision="auto",
        signal=0,
        before_update=before_update,
    )


def step(model: nn.Module, data: Iterator[Batch], **settings: Any) -> StepResult:
    return launch(model, data, **settings).result()


def test_accumulated_passes_give_the_step_of_one_large_batch() -> None:
    small, large = Regression(), Regression()
    result = step(small, batches([0, 1], [2, 3]), accumulate=2)
    step(large, batches([0, 1, 2, 3]))
    torch.testing.assert_close(small.linear.weight, large.linear.weight)
    expected = Regression()(next(batches([0, 1, 2, 3])))
    assert result.losses == pytest.approx({name: loss.item() for name, loss in expected.items()})


def test_clipping_bounds_the_norm_of_the_whole_step() -> None:
    free, clipped, start = Regression(), Regression(), Regression()
    result = step(free, batches([0, 1]))
    step(clipped, batches([0, 1]), clip_grad_norm=0.01)
    moved = torch.cat([(a - b).flatten() for a, b in zip(free.parameters(), start.parameters(), strict=True)])
    bounded = torch.cat([(a - b).flatten() for a, b in zip(clipped.parameters(), start.parameters(), strict=True)])
    assert result.grad_norm == pytest.approx(moved.norm().item(), rel=1e-5)
    assert bounded.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(bounded / bounded.norm(), moved / moved.norm())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[1, 2], [13, 4]], ["linear nan", "on the images 13, 4"]),
        ([[1, 2], [17, 4]], ["the losses are finite", "the gradient of bad is not", "images 1, 2, 17, 4"]),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing_and_is_explained(
    images: list[list[int]], words: list[str]
) -> None:
    model, start = Regression(), Regression()
    with pytest.raises(NonFiniteLoss) as caught:
        step(model, batches(*images), accumulate=2)
    assert all(word in str(caught.value) for word in words), caught.value
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, fused=True)


def assert_unchanged(model: nn.Module, optimizer: torch.optim.Optimizer, before: dict[str, Any]) -> None:
    after = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
    assert after["optimizer"].keys() == before["optimizer"].keys()
    for name, value in after["model"].items():
        assert torch.equal(value, before["model"][name]), name
    for index, values in after["optimizer"].items():
        assert all(torch.equal(value, before["optimizer"][index][name]) for name, value in values.items()), index


@pytest.mark.parametrize("bad", [13, 17])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_bad_step_leaves_weights_moments_and_step_count_before_anyone_has_read_it(
    bad: int, clip: float | None
) -> None:
    model = Regression()
    optimizer = adamw(model)
    launch(model, batches([0, 1]), optimizer, clip_grad_norm=clip).result()
    torch.nn.init.zeros_(model.bad)  # where its slope is infinite
    before = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]})
    launched = launch(model, batches([2, bad]), optimizer, clip_grad_norm=clip)
    assert_unchanged(model, optimizer, before)

    # It is read by the next step, which is computed by then, but changes nothing.
    def read() -> None:
        launched.result()

    with pytest.raises(NonFiniteLoss, match=f"on the images 2, {bad}") as caught:
        launch(model, batches([5, 6]), optimizer, read, clip_grad_norm=clip)
    assert ("the gradient of bad is not" in str(caught.value)) == (bad == 17)
    assert_unchanged(model, optimizer, before)


def test_steps_read_one_step_late_are_the_steps_read_at_once() -> None:
    early, late = Regression(), Regression()
    optimizers = adamw(early), adamw(late)
    expected = [launch(early, batches([i, i + 1]), optimizers[0]).result() for i in range(4)]
    results: list[StepResult] = []
    steps: list[Step] = []
    for i in range(4):
        read = [lambda: results.append(steps[-1].result())] if steps else [lambda: None]
        steps.append(launch(late, batches([i, i + 1]), optimizers[1], read[0]))
    results.append(steps[-1].result())
    assert [(r.losses, r.grad_norm) for r in results] == [(r.losses, r.grad_norm) for r in expected]
    assert all(torch.equal(a, b) for a, b in zip(early.parameters(), late.parameters(), strict=True))


def test_a_step_never_waits_for_the_device_until_it_is_read() -> None:
    model = Regression()
    optimizer = adamw(model)
    launch(model, batches([0]), optimizer, clip_grad_norm=0.1)
    data = list(batches([1], [2]))
    with Waits(forbidden=True):
        launch(model, iter(data), optimizer, clip_grad_norm=0.1, accumulate=2)


def test_an_optimizer_that_cannot_skip_on_the_device_is_refused() -> None:
    model = Regression()
    with pytest.raises((AssertionError, RuntimeError)):
        launch(model, batches([0]), torch.optim.SGD(model.parameters(), lr=1.0))


def test_bf16_is_used_on_a_cpu_only_when_asked_for() -> None:
    seen: list[torch.dtype] = []

    def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output.dtype)

    model = Regression()
    model.linear.register_forward_hook(look)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    for precision in ("auto", "fp32", "bf16"):
        optimizer_step(
            model,
            optimizer,
            batches([0]),
            config=OptimConfig(),
            device=torch.device("cpu"),
            precision=precision,
            signal=0,
        )
    assert seen == [torch.float32, torch.float32, torch.bfloat16]
