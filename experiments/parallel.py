"""Several processes on one run, as torchrun starts them; one process where it did not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .settings import SettingsError

__all__ = ["World", "join"]


@dataclass(frozen=True)
class World:
    """This process among `size` of them.

    Every process draws the whole batch and works on its own part, so that the result is one process's with the same
    batch, up to the rounding of the sums.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """This process's members of a batch."""
        return batch.chunk(self.size)[self.rank].to(self.device)

    def wrap(self, network: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over the processes."""
        return network if self.size == 1 else nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def join(device: str, batch: int) -> Iterator[World]:
    """The processes of this run, by the environment variables RANK, LOCAL_RANK and WORLD_SIZE that torchrun sets.

    Args:
        device: "auto" (CUDA where there is a device), "cpu", "cuda" or one device, such as "cuda:1".
        batch: members of a whole batch.

    Raises:
        SettingsError: an unknown device, no such device here, or a batch that the processes cannot share evenly.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"device={device} is unknown: expected auto, cpu, cuda or cuda:0.") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device={device} is not on this machine: use device=auto or device=cpu.")
    if batch % size:
        raise SettingsError(f"batch={batch} cannot be shared by {size} processes: use a multiple of {size}.")
    if size == 1:
        yield World(0, 1, where)
        return
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield World(rank, size, where)
    finally:
        dist.destroy_process_group()
