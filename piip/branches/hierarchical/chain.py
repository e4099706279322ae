"""What a network of timm has to be so that it can be cut anywhere: a stem, and then a chain of blocks on maps.

The property that is asked for: after the stem (`stem` or `patch_embed`, with learned positions added where the network
has those of SAM 2's Hiera), each module of its stages, in the order in which the network itself calls them, is given
what the one before has returned, and nothing else is computed in between. It is found out by running the network once
without values and watching its modules, so that nothing about an architecture has to be believed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from piip.branches.timm_names import timm_network
from piip.errors import first_few
from piip.features import FeatureSpec

_SIDES = (256, 384)  # of the watched image; their ratio tells which axes of a map are its sides
_NEAR = "Swin, ConvNeXt, SAM 2's Hiera, DaViT, FocalNet, MambaOut and FastViT can"


class _Call(NamedTuple):
    """A module, what it was given, what it returned, and how often each had been written to at that time.

    alone: whether it was given nothing else.
    """

    name: str
    given: Tensor
    given_version: int
    alone: bool
    output: Tensor
    output_version: int


class Chain(NamedTuple):
    """stem: the name of the module that makes the first map. units: the names of the blocks in their order.

    channels_last: whether each block takes maps (B, H, W, C), and whether it returns such, as the stem may; else they
    are (B, C, H, W). specs: the map after each block. multiple: what the sides of images have to be multiples of.
    """

    stem: str
    stem_channels_last: bool
    units: list[str]
    channels_last: list[tuple[bool, bool]]
    specs: list[FeatureSpec]
    multiple: int


def sizing(name: str) -> dict[str, Any]:
    """The arguments with which timm's network of this name takes images of any size, as dense tasks need them."""
    known = inspect.signature(type(timm_network(name)).__init__).parameters
    return {key: value for key, value in (("strict_img_size", False), ("always_partition", True)) if key in known}


@cache
def find_chain(model: str) -> Chain:
    """The chain that timm's network of this name is. Raises ValueError with the reason where it is none."""
    network = timm_network(model, **sizing(model))
    name = type(network).__name__
    stem = next((name for name in ("stem", "patch_embed") if isinstance(getattr(network, name, None), nn.Module)), None)
    candidates = _candidates(network)
    if stem is None or not candidates:
        raise ValueError(f"has no stem followed by stages of blocks, being a {name}; {_NEAR}")
    calls: list[_Call] = []
    names = {id(module): name for name, module in network.named_modules()}
    hooks = [hook for module in (network.get_submodule(stem), *candidates) for hook in _watch(module, names, calls)]
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):  # which counts what is written
            network.forward_features(torch.empty(1, 3, *_SIDES))
    except Exception as error:
        raise ValueError(
            f"takes no image of {_SIDES[0]} x {_SIDES[1]} pixels ({type(error).__name__}); {_NEAR}"
        ) from None
    finally:
        for handle in hooks:
            handle.remove()
    chain = _checked(network, name, stem, calls, len(candidates))
    divisors = (divisor for divisor in (1, chain.specs[0].stride) if _runs(network, divisor))
    return chain._replace(multiple=next(divisors, chain.specs[-1].stride))


def _watch(module: nn.Module, names: Mapping[int, str], calls: list[_Call]) -> list[RemovableHandle]:
    """Notes every call of a module."""
    versions: list[int] = []

    def before(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        versions.append(args[0]._version)

    def after(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        alone = all(value is None for value in (*args[1:], *kwargs.values()))
        version = output._version if isinstance(output, Tensor) else 0
        calls.append(_Call(names[id(module)], args[0], versions.pop(), alone, output, version))

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def _runs(network: Any, divisor: int) -> bool:
    """Whether the network takes sides that are odd multiples of a number."""
    with torch.no_grad(), torch.device("meta"):
        try:
            network.forward_features(torch.empty(1, 3, *(side + divisor for side in _SIDES)))
        except (RuntimeError, AssertionError, ValueError):
            return False
    return True


def _checked(network: Any, name: str, stem: str, calls: list[_Call], count: int) -> Chain:
    units: list[str] = []
    channels_last: list[tuple[bool, bool]] = []
    specs: list[FeatureSpec] = []
    called = [call.name for call in calls]
    if called.count(stem) != 1 or len(set(called)) != len(calls) != count + 1:
        raise ValueError(f"does not run every block once; {_NEAR}")
    for index, (before, call) in enumerate(pairwise(calls)):
        embeds = not index and hasattr(network, "pos_embed_window")
        if not all(isinstance(x, Tensor) and x.dim() == 4 for x in (call.given, call.output)):
            raise ValueError(f"does not compute on maps in {call.name}; {_NEAR}")
        if not call.alone:
            raise ValueError(f"gives {call.name} more than a map; {_NEAR}")
        untouched = call.given_version == before.output_version and _same(before.output, call.given)
        if not embeds and not untouched:
            raise ValueError(f"computes something before {call.name} that belongs to no block; {_NEAR}")
        units.append(call.name)
        last = _is_channels_last(call.output)
        channels_last.append((_is_channels_last(call.given), last))
        specs.append(FeatureSpec(call.output.shape[3 if last else 1], _SIDES[0] // call.output.shape[1 if last else 2]))
    parts = {id(p) for unit in (stem, *units) for p in network.get_submodule(unit).parameters()}
    beside = [
        f"{child}.{key}"
        for child in sorted({unit.partition(".")[0] for unit in units})
        for key, parameter in network.get_submodule(child).named_parameters()
        if id(parameter) not in parts
    ]
    if calls[0].output.dim() != 4:
        raise ValueError(f"does not compute on maps in {stem}; {_NEAR}")
    if beside:
        raise ValueError(f"has parameters in its stages that belong to no block: {first_few(beside, 3)}")
    return Chain(stem, _is_channels_last(calls[0].output), units, channels_last, specs, 1)


def _candidates(network: Any) -> list[nn.Module]:
    """The downsampling layers and the blocks of all stages; or all blocks of a network that lists no stages."""
    stages = next((getattr(network, name) for name in ("stages", "layers") if hasattr(network, name)), None)
    if not isinstance(stages, nn.Sequential | nn.ModuleList):
        blocks = getattr(network, "blocks", None)
        return list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    found: list[nn.Module] = []
    for stage in stages:
        downsample, blocks = getattr(stage, "downsample", None), getattr(stage, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList):
            return []
        if isinstance(downsample, nn.Module) and not isinstance(downsample, nn.Identity):
            found.append(downsample)
        found += list(blocks)
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or one is the other with its axes in another order."""
    return a is b or (a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.numel() == b.numel())


def _is_channels_last(x: Tensor) -> bool:
    return x.shape[1] * _SIDES[1] == x.shape[2] * _SIDES[0]
