"""One stream of random numbers per member of a batch, so that no member's numbers depend on its neighbours."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

__all__ = ["MemberRandom"]


class MemberRandom:
    """Standard normal, uniform and Poisson numbers, one stream per (seed, draw, measurement).

    The numbers are made on the CPU in float32 and moved, so that a draw starts from the same noise on every device.
    The global random state is neither read nor written.

    Args:
        seed: any integer from 0 on; 0 is a seed like every other.
        members: (draw, measurement) of each member of the batch.

    Raises:
        ValueError: if the seed is negative or not an integer.

    >>> a = MemberRandom(0, [(0, 0), (1, 0)]).normal(torch.empty(2, 3))
    >>> b = MemberRandom(0, [(1, 0)]).normal(torch.empty(1, 3))
    >>> torch.equal(a[1], b[0])
    True
    """

    def __init__(self, seed: int, members: Iterable[tuple[int, int]]) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed is {seed!r}: expected an integer from 0 on.")
        self._streams = [_stream(int(seed), draw, measurement) for draw, measurement in members]

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of `like`, (b, ...), with b the number of streams.

        Raises:
            ValueError: if `like` has another number of members.
        """
        self._check(like)
        noise = torch.empty(like.shape)
        for row, stream in zip(noise, self._streams, strict=True):
            torch.randn(row.shape, generator=stream, out=row)
        return noise.to(like)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers from [0, 1) in the shape, dtype and device of `like`, (b, ...), at least float32.

        Raises:
            ValueError: if `like` has another number of members.
        """
        self._check(like)
        numbers = torch.stack([torch.rand(like.shape[1:], generator=stream) for stream in self._streams])
        return numbers.to(like)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts of mean `rate`, (b, ...) and not negative, with b the number of streams."""
        pairs = zip(rate.detach().cpu(), self._streams, strict=True)
        return torch.stack([torch.poisson(mean, generator=stream) for mean, stream in pairs]).to(rate)

    def _check(self, like: Tensor) -> None:
        if like.shape[0] != len(self._streams):
            raise ValueError(f"like has {like.shape[0]} members: expected {len(self._streams)}, one per stream.")


def _stream(*key: int) -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
