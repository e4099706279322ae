"""Sharded training by PyTorch's FSDP2: every process holds a share of each parameter, its gradient and its moments.

A block's parameters are whole only while the block computes (Rajbhandari et al., 2020, "ZeRO", stage 3). Between steps
everything else of the engine sees `Shards`: the shares of this process as plain parameters, which optimizer and moving
average take like those of any module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from piip.config.experiment import ParallelConfig
from piip.engine import distributed
from piip.errors import ConfigError
from piip.regions import regions


def make_mesh(config: ParallelConfig, device: torch.device) -> DeviceMesh | None:
    """The processes that share the parameters, and perhaps in a first dimension those that repeat them.

    None where every process holds all parameters. Raises ConfigError for numbers that do not make up the processes.
    """
    processes = distributed.world_size()
    shard = processes if config.shard == "all" else config.shard
    replicate = config.replicate or max(1, processes // shard)
    if shard * replicate != processes:
        raise ConfigError(
            f"parallel.shard {shard} times parallel.replicate {replicate} has to be the number of processes, which is "
            f"{processes}; start torchrun with --nproc-per-node {shard * replicate}, or set parallel.shard=all"
        )
    if shard == 1:
        return None
    if config.offload and device.type == "cpu":
        raise ConfigError("parallel.offload keeps parameters of a GPU in the host's memory; leave it out on a CPU")
    if replicate == 1:
        return init_device_mesh(device.type, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (replicate, shard), mesh_dim_names=("replicate", "shard"))


# Parameters of a region that is gathered for itself; a smaller one takes longer to gather than it saves memory.
_SMALLEST_UNIT = 2**20


class Shards(nn.Module):
    """The shares that this process has of a network's parameters, as plain parameters, and the network's buffers.

    Names have / where those of the network have dots.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, parameter in network.named_parameters():
            local = parameter
            if isinstance(parameter, DTensor):
                local = nn.Parameter(parameter.to_local().detach(), requires_grad=parameter.requires_grad)
            self.register_parameter(_encoded(name), local)
        kept = network.state_dict(keep_vars=True)
        for name, buffer in network.named_buffers():
            self.register_buffer(_encoded(name), buffer, persistent=name in kept)

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The shares, under the names of the whole parameters."""
        return ((_decoded(name), parameter) for name, parameter in self.named_parameters())


class Sharding:
    """A network whose parameters lie in shares over the processes, and the shares of this one.

    network: any module on the meta device, which is sharded here and takes part in a step as before; it has no values
    until `load`. Each region of some size is a unit that is gathered for itself, and all else is another one. dtype:
    what blocks compute in, and are gathered in. Scalars, which cannot be divided, are whole everywhere.
    """

    def __init__(
        self, network: nn.Module, mesh: DeviceMesh, config: ParallelConfig, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.network, self._mesh = network, mesh
        settings: dict[str, Any] = {
            "mesh": mesh,
            "offload_policy": CPUOffloadPolicy() if config.offload else OffloadPolicy(),
            "ignored_params": {parameter for parameter in network.parameters() if parameter.dim() == 0},
            "reshard_after_forward": config.reshard_after_forward,
        }
        policy = MixedPrecisionPolicy()
        if dtype != torch.float32:
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for unit in units(network):
            fully_shard(unit, mp_policy=policy, **settings)
        fully_shard(network, **settings)
        network.to_empty(device="cpu" if config.offload else device)
        self.shares = Shards(network)

    def load(self, source: nn.Module | None) -> None:
        """Hands the values of a whole network of the main process out to all; in the others it is None."""
        values = {} if source is None else {**dict(source.named_parameters()), **dict(source.named_buffers())}
        self._hand_out(self.shares, values, [*self.shares.named_parameters(), *self.shares.named_buffers()])

    def load_state(self, shares: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Hands a state dict of the whole, of which the main process's counts, out to shares or to their average."""
        self._hand_out(shares, state, list(shares.state_dict(keep_vars=True).items()))

    def whole(self, shares: nn.Module) -> dict[str, Tensor]:
        """The state dict of the whole network, from shares or their average, on the CPU of the main process."""
        found = {}
        for name, local in shares.state_dict().items():
            tensor = self._gather(_decoded(name), local)
            if distributed.is_main():
                found[_decoded(name)] = tensor.cpu()
        return found

    def fill(self, network: nn.Module, shares: nn.Module) -> None:
        """Gives a whole network in every process the values of shares or their average."""
        for name, own in (*network.named_parameters(), *network.named_buffers()):
            with torch.no_grad():
                own.copy_(self._gather(name, getattr(shares, _encoded(name))))

    def collect_gradients(self) -> None:
        """Moves the gradients from the network to the shares; those of scalars are averaged over the processes."""
        for name, parameter in self.network.named_parameters():
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                self.shares.get_parameter(_encoded(name)).grad = gradient.to_local()
                parameter.grad = None
            elif gradient is not None:
                distributed.mean_(gradient)

    def norms(self, parameters: Sequence[nn.Parameter], norms: Tensor) -> Tensor:
        """The norms of whole gradients from those of the shares that these parameters are."""
        first = self._mesh.get_local_rank("shard") == 0
        counted = torch.tensor([first or parameter.dim() > 0 for parameter in parameters], device=norms.device)
        squares = norms.square() * counted
        dist.all_reduce(squares, group=self._mesh.get_group("shard"))
        return squares.sqrt()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state dict of an optimizer of the shares as one of the whole has it, on the CPU of the main process."""
        state = optimizer.state_dict()
        # The dicts inside are the optimizer's own, which has to keep its shares.
        state["state"] = {number: dict(moments) for number, moments in state["state"].items()}
        for name, moments in _moments(state):
            for key, value in moments.items():
                if value.dim():
                    whole = self._gather(name, value)
                    moments[key] = whole.cpu() if distributed.is_main() else None
        return state

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Hands such a state dict, of which the main process's tensors count, out to an optimizer of the shares."""
        for name, moments in _moments(state):
            for key, value in moments.items():
                if value.dim():
                    moments[key] = self._share(name, value)
        optimizer.load_state_dict(state)

    def _hand_out(self, shares: nn.Module, values: Mapping[str, Tensor], names: Sequence[tuple[str, Tensor]]) -> None:
        for name, own in names:
            with torch.no_grad():
                own.copy_(self._share(_decoded(name), values.get(_decoded(name))))

    def _share(self, name: str, whole: Tensor | None) -> Tensor:
        """This process's share of a tensor in the shape of a parameter or buffer, which the main process has whole."""
        like = self._like(name)
        tensor = torch.empty(like.shape, dtype=like.dtype, device=self._mesh.device_type)
        if distributed.is_main():
            assert whole is not None
            tensor.copy_(whole)
        if isinstance(like, DTensor):
            return distribute_tensor(tensor, self._mesh, like.placements, src_data_rank=0).to_local()
        dist.broadcast(tensor, 0)
        return tensor

    def _gather(self, name: str, local: Tensor) -> Tensor:
        """The whole of what lies in shares as a parameter does; all processes call it alike."""
        like = self._like(name)
        if not isinstance(like, DTensor):
            return local
        local = local.to(self._mesh.device_type)
        spread = DTensor.from_local(local, self._mesh, like.placements, shape=like.shape, stride=like.stride())
        return spread.full_tensor()

    def _like(self, name: str) -> Tensor:
        """The parameter or buffer of the network."""
        module, _, last = name.rpartition(".")
        found: Tensor = getattr(self.network.get_submodule(module), last)
        return found


def _moments(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each parameter and what an optimizer keeps of it."""
    for group in state["param_groups"]:
        for number, name in zip(group["params"], group["param_names"], strict=True):
            if number in state["state"]:
                yield name, state["state"][number]


def units(network: nn.Module) -> list[nn.Module]:
    """The regions that are gathered one by one: those of some size."""
    found = regions(network).values()
    return [region for region in found if sum(p.numel() for p in region.parameters()) >= _SMALLEST_UNIT]


def checkpoint_regions(network: nn.Module, kind: str) -> None:
    """Lets regions compute again in the backward pass instead of keeping what they need for it.

    kind: none; all; or matmul, where the results of matrix products are kept and the rest is computed again.
    """
    if kind == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "matmul":
        aten = torch.ops.aten
        kept: list[Any] = [aten.mm.default, aten.addmm.default, aten.bmm.default]
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    for region in regions(network).values():
        region.forward = partial(_checkpointed, region.forward, settings)


def _checkpointed(forward: Any, settings: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, **settings, **kwargs)


def _encoded(name: str) -> str:
    """Names of parameters have no dots."""
    return name.replace(".", "/")


def _decoded(name: str) -> str:
    return name.replace("/", ".")
