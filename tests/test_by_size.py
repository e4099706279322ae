"""What depends on sizes alone is computed once, and whoever uses it later never notices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.by_size import BySize


def ramp(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def test_equal_sizes_dtypes_and_devices_share_a_result_and_others_do_not() -> None:
    kept, like = BySize(ramp, limit=8), torch.zeros(1)
    first = kept(like, 3)
    assert first.equal(torch.tensor([0.0, 1, 2]))
    assert kept(nn.Parameter(torch.ones(5)), 3) is first
    assert len(kept(like, 4)) == 4
    assert kept(like.double(), 3).dtype == torch.float64
    assert kept(like.to("meta"), 3).is_meta


def test_only_the_latest_results_are_kept() -> None:
    kept, like = BySize(ramp, limit=2), torch.zeros(1)
    first, second = kept(like, 1), kept(like, 2)
    kept(like, 3)
    assert kept(like, 2) is second
    assert kept(like, 1) is not first


def test_what_was_made_in_inference_mode_serves_training() -> None:
    kept = BySize(ramp, limit=8)
    weight = nn.Parameter(torch.ones(3))
    with torch.inference_mode():
        kept(torch.zeros(1), 3)
    (weight * kept(weight, 3)).sum().backward()  # an inference tensor could not be saved for this
    assert weight.grad.equal(torch.tensor([0.0, 1, 2]))


def test_no_gradient_and_no_graph_is_kept() -> None:
    kept = BySize(lambda like, count: like[:count] * 2, limit=8)
    assert not kept(nn.Parameter(torch.ones(3)), 2).requires_grad


def test_fake_tensors_neither_enter_nor_meet_what_is_kept() -> None:
    kept = BySize(ramp, limit=8)
    real = kept(torch.zeros(1), 3)
    with FakeTensorMode() as mode:
        like = mode.from_tensor(torch.zeros(1))
        assert type(kept(like, 3) + like) is type(like)
        kept(like, 4)
    assert kept(torch.zeros(1), 3) is real
    assert type(kept(torch.zeros(1), 4)) is Tensor


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_graph_holds_the_computation_itself() -> None:
    kept = BySize(ramp, limit=8)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: x + kept(x, x.shape[0]), backend=backend, fullgraph=True)
    x = torch.randn(3)
    assert compiled(x).equal(x + torch.arange(3.0))
    assert any("arange" in str(node.target) for node in graphs[0].graph.nodes)
    assert not kept._kept


def test_a_deep_copy_keeps_its_own_results() -> None:
    kept, like = BySize(ramp, limit=8), torch.zeros(1)
    first = kept(like, 3)
    other = copy.deepcopy(kept)
    assert other(like, 3).equal(first)
    assert other(like, 3) is not first
