"""The ops called directly, as saved programs do: what does not fit is an exception, never a read beyond a tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import piip.ops  # noqa: F401  registers the ops

ROOT = Path(__file__).parents[2]
OPS = torch.ops.piip
SHAPES = [4, 5, 2, 3]
R = torch.rand
ATTENTION = (R(2, 26, 2, 6), SHAPES, R(2, 3, 2, 2), R(2, 3, 2, 2, 4, 2), R(2, 3, 2, 8))
LOCATIONS = (R(2, 26, 2, 6), SHAPES, R(2, 3, 2, 2, 4, 2), R(2, 3, 2, 2, 4))
GRAD = R(2, 3, 12)
SETTINGS = ([4, 4, 8, 9], [0.0, 0.0, 0.0, 0.0], "bilinear", False, None, None, torch.float32, None)
PYRAMID = (R(2, 3, 8, 9), False, *SETTINGS)
LEVELS = ([R(2, 3, 4, 4), R(2, 3, 8, 9)], [2, 3, 8, 9], *SETTINGS)
CALLS = {
    OPS.deform_attn: ATTENTION,
    OPS.deform_attn_backward: (GRAD, *ATTENTION),
    OPS.ms_deform_attn: LOCATIONS,
    OPS.ms_deform_attn_backward: (GRAD, *LOCATIONS),
    OPS.pyramid_resize: PYRAMID,
    OPS.pyramid_resize_backward: LEVELS,
}


def changed(arguments, changes):
    return [changes.get(i, argument) for i, argument in enumerate(arguments)]


def to_meta(argument):
    if isinstance(argument, list) and argument and isinstance(argument[0], torch.Tensor):
        return [tensor.to("meta") for tensor in argument]
    return argument.to("meta") if isinstance(argument, torch.Tensor) else argument


WRONG = [
    (OPS.deform_attn, {0: R(2, 25, 2, 6)}, r"value must have shape .*26.*got \(2, 25, 2, 6\)"),
    (OPS.deform_attn, {0: R(26, 2, 6)}, "value must have shape"),
    (OPS.deform_attn, {0: R(2, 26, 2, 6).byte()}, "value must be float32"),
    (OPS.deform_attn, {0: R(2, 26, 2, 0)}, "value must have at least one head and one channel"),
    (OPS.deform_attn, {1: [4, 5, 2]}, "spatial_shapes must hold .H, W. pairs"),
    (OPS.deform_attn, {1: [-4, -5, 2, 3]}, "spatial_shapes must hold .H, W. pairs, positive"),
    (OPS.deform_attn, {1: []}, "spatial_shapes must hold"),
    (OPS.deform_attn, {1: [1, 1] * 17}, "at most 16 maps, got 17"),
    (OPS.deform_attn, {2: R(2, 4, 2, 2)}, "reference_points must have shape"),
    (OPS.deform_attn, {2: R(3, 3, 2, 2)}, "reference_points must have shape"),
    (OPS.deform_attn, {2: R(2, 3, 2, 4)}, r"the op takes reference points \(x, y\) only; call piip.ops.deform_attn"),
    (OPS.deform_attn, {3: R(2, 3, 2, 2, 5, 2)}, "attention_logits must have shape"),
    (OPS.deform_attn, {3: R(2, 500, 2, 2, 4, 2)}, "reference_points must have shape"),
    (OPS.deform_attn, {4: R(2, 3, 2, 7)}, "attention_logits must have shape"),
    (OPS.deform_attn_backward, {0: R(1)}, "the gradient must have shape"),
    (OPS.deform_attn_backward, {0: R(2, 3, 13)}, "the gradient must have shape"),
    (OPS.deform_attn_backward, {5: R(2, 3, 2, 9)}, "attention_logits must have shape"),
    (OPS.ms_deform_attn, {2: R(2, 50000, 2, 2, 4, 2)}, "attention_weights must have shape"),
    (OPS.ms_deform_attn, {3: R(2, 3, 2, 8)}, "attention_weights must have shape"),
    (OPS.ms_deform_attn, {2: R(2, 3, 2, 1, 4, 2)}, "sampling_locations must have shape"),
    (OPS.ms_deform_attn_backward, {0: R(2, 3, 11)}, "the gradient must have shape"),
    (OPS.pyramid_resize, {0: R(3, 8, 9)}, "images must have shape"),
    (OPS.pyramid_resize, {0: R(2, 17, 8, 9)}, "images must have shape .*1 to 16 channels"),
    (OPS.pyramid_resize, {0: R(2, 3, 8, 9).int()}, "images must be uint8 or a float dtype"),
    (OPS.pyramid_resize, {1: True}, "channels_last is for uint8 images of 3 channels"),
    (OPS.pyramid_resize, {2: [4, 4, 8]}, "sizes and factors must hold two numbers"),
    (OPS.pyramid_resize, {2: [4, 4, -8, 9]}, "sizes must hold positive numbers"),
    (OPS.pyramid_resize, {3: [0.0, 0.0, 0.5, 0.5]}, r"sizes must be floor\(in \* factor\)"),
    (OPS.pyramid_resize, {3: [0.0]}, "sizes and factors must hold two numbers"),
    (OPS.pyramid_resize, {4: "nearest"}, "mode must be one of"),
    (OPS.pyramid_resize, {6: [1.0]}, "give both of mean and std"),
    (OPS.pyramid_resize, {6: [1.0] * 3, 7: [0.0] * 3}, "std must not be zero"),
    (OPS.pyramid_resize, {8: torch.uint8}, "dtype must be float32"),
    (OPS.pyramid_resize, {9: [8, 9]}, r"valid_sizes must hold 2 \(h, w\)"),
    (OPS.pyramid_resize, {9: [8, 9, 9, 9]}, r"valid_sizes must hold 2 \(h, w\) within \(8, 9\)"),
    (OPS.pyramid_resize_backward, {0: [R(2, 3, 4, 4)]}, "gradients must have the shapes of the levels"),
    (OPS.pyramid_resize_backward, {0: [R(1, 3, 4, 4), R(2, 3, 8, 9)]}, "gradients must have the shapes of the levels"),
    (OPS.pyramid_resize_backward, {0: [R(2, 3, 4, 4), R(2, 3, 8, 9).half()]}, "gradients must .*one float dtype"),
    (OPS.pyramid_resize_backward, {1: [2, 3, 8]}, "images must have shape"),
    (OPS.pyramid_resize_backward, {2: [4000, 4, 8, 9]}, "gradients must have the shapes of the levels"),
]


@pytest.mark.parametrize("op", CALLS, ids=str)
def test_the_sound_call_is_taken(op):
    found, described = op(*CALLS[op]), op(*map(to_meta, CALLS[op]))
    pairs = zip(*([x] if isinstance(x, torch.Tensor) else x for x in (found, described)), strict=True)
    assert all((real.shape, real.dtype) == (meta.shape, meta.dtype) for real, meta in pairs)


@pytest.mark.parametrize(("op", "changes", "message"), WRONG)
def test_what_does_not_fit_is_named_by_the_op_and_its_fake_alike(op, changes, message):
    arguments = changed(CALLS[op], changes)
    with pytest.raises((ValueError, TypeError), match=message):
        op(*arguments)
    with pytest.raises((ValueError, TypeError), match=message):
        op(*map(to_meta, arguments))


@pytest.mark.parametrize("op", list(CALLS)[:4], ids=str)
def test_tensors_of_two_devices_are_refused(op):
    for i, argument in enumerate(CALLS[op]):
        if isinstance(argument, torch.Tensor):
            with pytest.raises(ValueError, match=r"must be on (cpu|meta) like value"):
                op(*changed(CALLS[op], {i: argument.to("meta")}))


FUZZ = """
import random
import torch
from tests.ops.test_direct_calls import CALLS, to_meta

random.seed({seed})
SIZES = [0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 13, 26, 1000]

def other(argument):
    if isinstance(argument, torch.Tensor):
        shape = list(argument.shape)
        for _ in range(random.randint(1, 2)):
            kind = random.random()
            if kind < 0.6 and shape:
                shape[random.randrange(len(shape))] = random.choice(SIZES)
            elif kind < 0.8 and shape:
                shape.pop(random.randrange(len(shape)))
            else:
                shape.insert(random.randint(0, len(shape)), random.choice(SIZES))
        if torch.Size(shape).numel() > 10**7:
            return argument
        kinds = [torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
        return torch.zeros(shape).to(random.choice(kinds))
    if isinstance(argument, list) and argument:
        result = list(argument)
        if random.random() < 0.3:
            result.pop(random.randrange(len(result)))
        else:
            i = random.randrange(len(result))
            last = result[i]
            result[i] = other(last) if isinstance(last, torch.Tensor) else type(last)(random.choice([-1, 0, 1, *SIZES]))
        return result
    if isinstance(argument, bool):
        return not argument
    if argument is None:
        return random.choice([None, [1.0], [1.0, 2.0, 3.0], [8, 9, 8, 9], [1, 1, 3, 3]])
    return argument

refused = taken = 0
for _ in range({calls}):
    op, arguments = random.choice(list(CALLS.items()))
    arguments = list(arguments)
    for i in random.sample(range(len(arguments)), random.randint(1, 2)):
        arguments[i] = other(arguments[i])
    outcomes = []
    for given in (arguments, list(map(to_meta, arguments))):
        try:
            result = op(*given)
            outcomes.append([t.shape for t in ([result] if isinstance(result, torch.Tensor) else result)])
        except (ValueError, TypeError) as error:
            outcomes.append(type(error))
        except RuntimeError as error:
            # Only the dispatcher's own refusals of an argument's type.
            assert "expected" in str(error).lower() or "cast" in str(error).lower(), error
            outcomes.append(RuntimeError)
    if outcomes[0] != outcomes[1]:
        print(op, [getattr(a, "shape", a) for a in arguments], outcomes, flush=True)
        raise SystemExit(2)
    refused += isinstance(outcomes[0], type)
    taken += not isinstance(outcomes[0], type)
print(refused, taken)
"""


def test_random_wrong_calls_end_in_an_exception_or_a_result_and_never_the_process():
    script = FUZZ.format(seed=0, calls=3000)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    refused, taken = map(int, done.stdout.split())
    assert refused > 1000
    assert taken > 100
