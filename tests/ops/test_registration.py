"""What PyTorch is told of the ops: opcheck, gradcheck, compile, export, autocast, FLOPs, and refusals with advice."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from piip.ops import MSDeformAttn, deform_attn, ms_deform_attn, pyramid_resize, reference, register_flop_formulas
from tests.ops.cases import make_case, relative_error

FACTORS = [1.0, 0.5, 0.3]


def resize_arguments(images, **changes):
    arguments = {
        "images": images,
        "channels_last": False,
        "sizes": [8, 9, 4, 4],
        "factors": [0.0, 0.0, 0.5, 0.5],
        "mode": "bilinear",
        "antialias": False,
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
        "dtype": torch.float32,
        "valid": [7, 9, 8, 5],
    } | changes
    return tuple(arguments.values())


def test_opcheck_accepts_every_op(device):
    case = make_case().to(device=device).leaves()
    shapes = [5, 7, 3, 4]
    grad = torch.randn(2, 9, 12, device=device)
    locations = torch.rand(2, 9, 2, 2, 3, 2, device=device).requires_grad_()
    weights = torch.rand(2, 9, 2, 2, 3, device=device).requires_grad_()
    images = torch.rand(2, 3, 8, 9, device=device).requires_grad_()
    ops = torch.ops.piip
    torch.library.opcheck(ops.deform_attn, (case.value, shapes, *case.tensors[1:]))
    torch.library.opcheck(ops.ms_deform_attn, (case.value, shapes, locations, weights))
    torch.library.opcheck(ops.pyramid_resize, resize_arguments(images))
    value, *others = (t.detach() for t in case.tensors)
    torch.library.opcheck(ops.deform_attn_backward, (grad, value, shapes, *others))
    torch.library.opcheck(ops.ms_deform_attn_backward, (grad, value, shapes, locations.detach(), weights.detach()))
    settings = resize_arguments(images)[2:]
    grads = [torch.rand(2, 3, 8, 9, device=device), torch.rand(2, 3, 4, 4, device=device)]
    torch.library.opcheck(ops.pyramid_resize_backward, (grads, [2, 3, 8, 9], *settings))


def test_gradcheck_of_deformable_attention(device):
    case = (
        make_case(shapes=[(3, 4), (2, 3)], queries=3, width=3, points=2, dtype=torch.float64).to(device=device).leaves()
    )
    assert torch.autograd.gradcheck(lambda *t: deform_attn(t[0], case.shapes, *t[1:]), case.tensors)
    boxes = (
        make_case(shapes=[(3, 4)], queries=2, width=2, points=2, boxes=True, dtype=torch.float64)
        .to(device=device)
        .leaves()
    )
    assert torch.autograd.gradcheck(lambda *t: deform_attn(t[0], boxes.shapes, *t[1:]), boxes.tensors)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_gradcheck_of_pyramid_resize(device, mode, antialias):
    images = torch.rand(2, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    settings = {
        "mode": mode,
        "antialias": antialias,
        "mean": [0.1, 0.2],
        "std": [2.0, 3.0],
        "valid_sizes": [(4, 6), (5, 3)],
    }
    assert torch.autograd.gradcheck(
        lambda x: tuple(pyramid_resize(x, scale_factors=[1.0, 0.5, 1.3], **settings)), images
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break(device, dynamic):
    torch.compiler.reset()
    attention = MSDeformAttn(16, 2, 2, 2, 0.5).to(device)

    def network(images, query, points, features):
        levels = pyramid_resize(images, scale_factors=FACTORS)
        return attention(query, points, features, [(3, 4), (2, 2)]).sum() + sum(
            level.square().sum() for level in levels
        )

    inputs = [torch.rand(2, 3, 20, 24), torch.randn(2, 5, 16), torch.rand(2, 5, 2, 2), torch.randn(2, 16, 16)]
    results = []
    for run in (network, torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
        leaves = [t.to(device).requires_grad_() for t in inputs]
        attention.zero_grad()
        loss = run(*leaves)
        loss.backward()
        results.append([loss.detach(), *(t.grad for t in leaves), attention.value_proj.weight.grad])
    for eager, compiled in zip(*results):
        assert relative_error(compiled, eager.cpu()) < 1e-5


def test_exported_program_holds_the_ops_and_gives_the_same_result(device):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MSDeformAttn(16, 1, 2, 2)

        def forward(self, images, query, points, features):
            return pyramid_resize(images, sizes=[(5, 6)])[0].sum() + self.attention(query, points, features, [(3, 4)])

    inputs = tuple(
        t.to(device)
        for t in (torch.rand(1, 3, 8, 9), torch.randn(1, 5, 16), torch.rand(1, 5, 1, 2), torch.randn(1, 12, 16))
    )
    network = Network().to(device)
    program = torch.export.export(network, inputs)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"piip.deform_attn.default", "piip.pyramid_resize.default"} <= targets
    assert torch.allclose(program.module()(*inputs), network(*inputs))


def test_meta_tensors_get_shapes_without_data():
    case = make_case().to(device=torch.device("meta"))
    assert case.run(deform_attn).shape == (2, 9, 12)
    assert [
        tuple(t.shape) for t in pyramid_resize(torch.empty(2, 3, 896, 896, device="meta"), scale_factors=[448 / 1344])
    ] == [(2, 3, 298, 298)]


def test_autocast_lowers_the_values_only(device):
    case = make_case(width=24).to(device=device).leaves()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = case.run(deform_attn)
        also = ms_deform_attn(
            case.value,
            case.shapes,
            None,
            torch.rand(2, 9, 2, 2, 3, 2, device=device),
            torch.rand(2, 9, 2, 2, 3, device=device),
        )
    assert out.dtype == also.dtype == torch.bfloat16
    lowered = make_case(width=24)
    lowered.value = lowered.value.bfloat16()
    expected = lowered.run(lambda v, *rest: reference.deform_attn(v.double(), *rest))
    assert relative_error(out, expected) < 4e-3
    out.float().sum().backward()
    assert case.value.grad.dtype == case.offsets.grad.dtype == torch.float32


def test_flop_counts_are_the_published_ones():
    register_flop_formulas()
    # Table entry of PIIP-TSB 1120/896/448: 12 interactions of two units, each attending both ways, value ratio 0.5.
    grids = {"T": (70, 192), "S": (56, 384), "B": (28, 768)}
    with FlopCounterMode(display=False) as counter:
        for fine, coarse in (("T", "S"), ("S", "B")):
            for queries, keys in ((fine, coarse), (coarse, fine)):
                side, width = grids[queries]
                other = grids[keys][0]
                value = torch.empty(1, other**2, 16, width // 2 // 16, device="meta")
                ref = torch.empty(1, side**2, 1, 2, device="meta")
                deform_attn(
                    value,
                    [(other, other)],
                    ref,
                    torch.empty(1, side**2, 16, 1, 4, 2, device="meta"),
                    torch.empty(1, side**2, 16, 4, device="meta"),
                )
    assert 12 * counter.get_total_flops() == 948326400


def test_the_backward_of_the_attention_counts_twice_its_forward():
    register_flop_formulas()
    case = make_case().leaves()
    with FlopCounterMode(display=False) as counter:
        out = case.run(deform_attn)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 10 * 2 * 9 * 2 * 6 * 6
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    ("settings", "taps"),
    [
        ({}, 2 * 2),
        ({"mode": "bicubic"}, 4 * 4),
        ({"antialias": True}, 4 * 4),  # pixels that a filter of twice two reaches, on each axis
        ({"mode": "bicubic", "antialias": True}, 8 * 8),
    ],
)
def test_the_pyramid_counts_a_multiply_add_for_every_pixel_that_is_read(settings, taps):
    register_flop_formulas()
    images = torch.rand(2, 3, 8, 12, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        (level,) = pyramid_resize(images, scale_factors=[0.5], **settings)
        forward = counter.get_total_flops()
        level.sum().backward()
    assert forward == 2 * taps * level.numel()
    assert counter.get_total_flops() == 2 * forward
    last = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        pyramid_resize(last, scale_factors=[0.5, 1.0], **settings)
    assert counter.get_total_flops() == forward + 2 * last.numel()  # pixels that are copied are read once


def test_formulas_are_registered_when_asked_for_and_as_often_as_asked():
    script = (
        "import sys, piip.ops; assert 'torch.utils.flop_counter' not in sys.modules\n"
        "piip.ops.register_flop_formulas(); piip.ops.register_flop_formulas()\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "print(sum('piip.' in str(op) for op in flop_registry))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7"]


def test_vmap_is_refused_with_advice():
    case = make_case()
    with pytest.raises(NotImplementedError, match="fold the mapped dimension into the batch"):
        torch.func.vmap(lambda v: deform_attn(v, case.shapes, *case.tensors[1:]))(case.value[None])
    with pytest.raises(NotImplementedError, match="fold the mapped dimension into the batch"):
        torch.func.vmap(lambda x: pyramid_resize(x, scale_factors=[0.5])[0])(torch.rand(2, 1, 3, 8, 8))


ONCE = r"is not supported; differentiate the op once, by backward\(\) or torch\.autograd\.grad"
CASE = make_case()  # outside of the transforms, in which random numbers are refused
LOCATIONS = torch.rand(2, 9, 2, 2, 3, 2)


def run_attention(value):
    return deform_attn(value, CASE.shapes, *(t.to(value.device) for t in CASE.tensors[1:]))


def run_locations(value):
    locations = LOCATIONS.to(value.device)
    return ms_deform_attn(value, CASE.shapes, None, locations, locations[..., 0])


def run_resize(images):
    return pyramid_resize(images.reshape(1, 1, 1, -1), scale_factors=[(1.0, 0.5)])[0]


RUNS = {"deform_attn": run_attention, "ms_deform_attn": run_locations, "pyramid_resize": run_resize}


@pytest.mark.parametrize("op", RUNS)
def test_double_backward_is_refused_with_advice(op, device):
    value = CASE.value.to(device, copy=True).requires_grad_()
    grad = torch.autograd.grad(RUNS[op](value).square().sum(), value, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=f"double backward through {op} {ONCE}"):
        grad.sum().backward()


@pytest.mark.parametrize("op", RUNS)
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian])
def test_torch_func_is_refused_with_advice(op, transform):
    with pytest.raises(NotImplementedError, match=rf"{op} under torch\.func {ONCE}"):
        transform(lambda value: RUNS[op](value).sum())(CASE.value)


@pytest.mark.parametrize("op", RUNS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_is_refused_with_advice(op, mode, requires_grad, device):
    value = CASE.value.to(device, copy=True).requires_grad_(requires_grad)
    with mode(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(value, value)
        with pytest.raises(NotImplementedError, match=f"forward-mode differentiation of {op} {ONCE}"):
            RUNS[op](dual)


@pytest.mark.parametrize("op", RUNS)
def test_forward_mode_through_the_backward_is_refused_with_advice(op, device):
    value = CASE.value.to(device, copy=True).requires_grad_()
    out = RUNS[op](value)
    with torch.autograd.forward_ad.dual_level():
        grad = torch.autograd.forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(NotImplementedError, match=f"forward-mode differentiation of {op} {ONCE}"):
            torch.autograd.grad(out, value, grad)


def test_without_the_extension_the_definition_runs(monkeypatch):
    from piip.ops import _extension

    case = make_case().leaves()
    expected = case.run(deform_attn)
    expected.sum().backward()
    monkeypatch.setattr(_extension, "_C", None)
    again = make_case().leaves()
    actual = again.run(deform_attn)
    actual.sum().backward()
    assert relative_error(actual, expected) < 1e-6
    assert relative_error(again.offsets.grad, case.offsets.grad) < 1e-5
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    pyramid_resize(images, scale_factors=[0.5])[0].sum().backward()
    assert images.grad.shape == images.shape
