"""Reading on the host what a device has computed, while the device goes on with the work that follows."""

from __future__ import annotations

import torch
from torch import Tensor


def is_host(device: torch.device) -> bool:
    """Whether tensors on the device lie in host memory, so that to read one costs nothing."""
    return device.type == "cpu"


class HostCopy:
    """A tensor on its way to the host, while the device goes on with what it is told next.

    From a GPU the copy lands in pinned memory behind all work given to the current stream so far.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=tensor.device.type != "mps")  # which has no event to wait for
        self._arrived = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def wait(self) -> Tensor:
        """The tensor in host memory; waits until it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
