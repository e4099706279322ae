"""ONNX export: the graph holds standard operators only and gives what the kernels give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from piip.ops import MSDeformAttn, ms_deform_attn, pyramid_resize

SHAPES = [(4, 6), (2, 3)]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MSDeformAttn(16, 2, 2, 3, 0.5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, query, points, features):
        return self.attention(query, points, features, SHAPES)


class Sampling(nn.Module):
    def forward(self, value, locations, weights):
        return ms_deform_attn(value, SHAPES, None, locations, weights)


class Pyramid(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, images):
        return pyramid_resize(images, scale_factors=[0.5, 0.3], mode=self.mode, mean=[0.1] * 3, std=[2.0] * 3)


def exported(network: nn.Module, inputs: tuple[torch.Tensor, ...], **settings) -> ModelProto:
    with torch.no_grad():
        program = torch.onnx.export(network.eval(), inputs, dynamo=True, verbose=False, **settings)
    assert program is not None
    return program.model_proto


def assert_runs_alike(model: ModelProto, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    names = [item.name for item in model.graph.input]
    results = ReferenceEvaluator(model).run(None, {name: t.numpy() for name, t in zip(names, inputs)})
    with torch.no_grad():
        outputs = network(*inputs)
    for result, output in zip(results, [outputs] if isinstance(outputs, torch.Tensor) else outputs, strict=True):
        np.testing.assert_allclose(result, output.numpy(), atol=2e-6)


def attention_inputs(batch: int, queries: int, coordinates: int = 2) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, queries, 16), torch.rand(batch, queries, 2, coordinates), torch.randn(batch, 30, 16)


def test_exported_attention_runs_for_any_batch_and_number_of_queries():
    batch, queries = torch.export.Dim("batch"), torch.export.Dim("queries")
    network = Attention()
    dynamic = ({0: batch, 1: queries}, {0: batch, 1: queries}, {0: batch})
    model = exported(network, attention_inputs(2, 5), dynamic_shapes=dynamic)
    for shape in ((2, 5), (3, 7)):
        assert_runs_alike(model, network, attention_inputs(*shape))


def test_exported_attention_runs_with_boxes():
    network, inputs = Attention(), attention_inputs(2, 5, coordinates=4)
    assert_runs_alike(exported(network, inputs), network, inputs)


def test_exported_samples_outside_and_at_no_place_contribute_nothing():
    value, weights = torch.randn(2, 30, 2, 4), torch.rand(2, 5, 2, 2, 3)
    locations = torch.rand(2, 5, 2, 2, 3, 2) * 1.6 - 0.3
    locations[0, 0, 0, 0] = torch.tensor([[float("nan"), 0.5], [0.5, float("inf")], [1e9, -1e9]])
    inputs = (value, locations, weights)
    assert_runs_alike(exported(Sampling(), inputs), Sampling(), inputs)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_exported_pyramid_runs_alike(mode):
    inputs = (torch.rand(1, 3, 20, 24),)
    assert_runs_alike(exported(Pyramid(mode), inputs), Pyramid(mode), inputs)
