"""Kernels run on the GPUs that they were compiled for; on others a warning says why not, and the definition runs."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import piip.doctor
from piip.ops import _extension, deform_attn, ms_deform_attn
from tests.ops.cases import make_case, relative_error


class Extension:
    """A module with CUDA kernels; GPU 1 is one that they were not compiled for."""

    cuda_version, cuda_architectures = "13.0", "sm_80 sm_90 compute_90"
    compiler, openmp = "12.2.0", True

    def __init__(self):
        self.asked = []

    def cuda_problem(self, index):
        self.asked.append(index)
        return "no kernel image is available for execution on the device" if index == 1 else None

    def cpu_instruction_set(self):
        return "avx2"


@pytest.fixture
def extension(monkeypatch):
    module = Extension()
    monkeypatch.setattr(_extension, "_C", module)
    monkeypatch.setattr(_extension, "_cuda_problems", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    return module


def on_gpu(index):
    """What has_kernels looks at, of a tensor on a GPU."""

    class OnGpu(torch.Tensor):
        is_cpu, is_cuda, is_meta = False, True, False

        def get_device(self):
            return index

    return OnGpu()


@pytest.fixture
def plain(monkeypatch):
    """Stand-ins count as plain tensors."""
    monkeypatch.setattr(_extension, "type", lambda tensor: torch.Tensor, raising=False)


def test_a_gpu_is_asked_once_and_told_of_once_with_its_reason_and_the_remedy(extension, plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(_extension.has_kernels(on_gpu(0)) for _ in range(3))
    words = r"definition on GPU 1, slowly: no kernel image is available.*CUDA 13.0 for sm_80 sm_90 compute_90; .*=7.0"
    with pytest.warns(UserWarning, match=words) as told:
        assert not any(_extension.has_kernels(on_gpu(1)) for _ in range(3))
    assert len(told) == 1
    assert extension.asked == [0, 1]


def test_a_trace_asks_no_device(extension):
    with FakeTensorMode():
        tensor = torch.empty(2, device="cuda:1")
        assert tensor.is_cuda
        assert _extension.has_kernels(tensor)
    assert extension.asked == []


def test_without_kernels_for_gpus_the_definition_runs_there_without_asking(extension, plain):
    extension.cuda_version = None
    assert not _extension.has_kernels(on_gpu(0))
    assert extension.asked == []


def test_the_doctor_names_the_gpu_that_the_kernels_cannot_run_on(extension, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = SimpleNamespace(name="V100", total_memory=2**34, major=7, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = {finding.name: finding for finding in piip.doctor._devices(extension)}
    assert found["CUDA kernels"].status == "info"
    assert found["kernels on GPU 1"].status == "note"
    assert "no kernel image" in found["kernels on GPU 1"].value
    assert "kernels on GPU 0" not in found


def test_direct_calls_run_the_definition_where_there_are_no_kernels(monkeypatch):
    """Programs that were traced elsewhere call the ops themselves."""
    ops, case = torch.ops.piip, make_case()
    shapes, grad = [side for shape in case.shapes for side in shape], torch.randn(2, 9, 12)
    locations, weights = torch.rand(2, 9, 2, 2, 3, 2), torch.rand(2, 9, 2, 2, 3)
    images, grads = torch.rand(2, 3, 8, 9), [torch.rand(2, 3, 8, 9), torch.rand(2, 3, 4, 4)]
    settings = ([8, 9, 4, 4], [0.0, 0.0, 0.5, 0.5], "bicubic", False, [0.1] * 3, [2.0] * 3, torch.float32, [7, 9, 8, 5])

    def results():
        return [
            ops.deform_attn(case.value, shapes, *case.tensors[1:]),
            *ops.deform_attn_backward(grad, case.value, shapes, *case.tensors[1:]),
            ops.ms_deform_attn(case.value, shapes, locations, weights),
            *ops.ms_deform_attn_backward(grad, case.value, shapes, locations, weights),
            *ops.pyramid_resize(images, False, *settings),
            ops.pyramid_resize_backward(grads, [2, 3, 8, 9], *settings),
        ]

    expected = results()
    monkeypatch.setattr(_extension, "_C", None)
    for found, wanted in zip(results(), expected, strict=True):
        assert relative_error(found, wanted) < 2e-5


def test_samples_of_a_head_are_limited_alike_forward_and_backward_on_gpus():
    from piip.ops._checks import MAX_SAMPLES

    assert _extension._C.max_samples == MAX_SAMPLES
    with FakeTensorMode():
        for points, fits in ((MAX_SAMPLES // 2, True), (MAX_SAMPLES // 2 + 1, False)):
            case = make_case(points=points, queries=2)
            arguments = [torch.empty(t.shape, device="cuda", requires_grad=True) for t in case.tensors]
            if fits:
                assert deform_attn(arguments[0], case.shapes, *arguments[1:]).shape == (2, 2, 12)
                continue
            with pytest.raises(ValueError, match=r"on CUDA .* at most 512 samples \(levels times points\), got 514"):
                deform_attn(arguments[0], case.shapes, *arguments[1:])
            weights = arguments[3].view(2, 2, 2, 2, points)
            with pytest.raises(ValueError, match="at most 512 samples"):
                ms_deform_attn(arguments[0], case.shapes, None, arguments[2], weights)
    case = make_case(points=MAX_SAMPLES, queries=2)  # on CPUs there is none
    assert case.run(deform_attn).shape == (2, 2, 12)


def test_an_emulated_device_that_is_not_there_is_named_with_the_reason(emulations):
    for emulation in emulations.values():
        assert emulation.module.cuda_problem(0) is None
        assert emulation.module.cuda_problem(1) == "piip: using CUDA device 1 failed: invalid device ordinal"
