"""Mean, standard deviation and quantiles of draws that need not all be in memory, leaving out those that failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .stored import Stored

__all__ = ["at_positions", "moments", "quantiles", "stored_moments", "stored_quantiles"]

# Values that are sorted at a time: with the sorted ones and their order 256 MB in float32.
_AT_ONCE = 2**24


def moments(blocks: Iterable[Tensor], failed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ddof = 1) along the first axis, in one pass.

    Parts are joined in float64 by the update of Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample
    Variance", eq. 2.1. Where there is one value the standard deviation is NaN.

    Args:
        blocks: (k, [m,] ...), one after another.
        failed: which to leave out, (draws, [m]).
    """
    count = mean = squares = torch.zeros(())
    first, dtype = 0, torch.float32
    for block in blocks:
        dtype, values = block.dtype, block.detach().double()
        here = torch.zeros(len(values), dtype=torch.bool) if failed is None else failed[first : first + len(values)]
        keep = ~here.to(values.device).reshape(*here.shape, *(1,) * (values.ndim - here.ndim))
        first += len(values)
        n = keep.sum(0).double()
        centre = torch.where(keep, values, 0.0).sum(0) / n.clamp_min(1)
        spread = torch.where(keep, values - centre, 0.0).square().sum(0)
        count, mean, squares = (part.to(n) for part in (count, mean, squares))
        total, step = count + n, centre - mean
        mean = mean + step * n / total.clamp_min(1)
        squares = squares + spread + step.square() * count * n / total.clamp_min(1)
        count = total
    # 0 / 0 where there is one value, and where all failed: not a number, which says what it is.
    std = (squares / (count - 1).clamp_min(0)).sqrt()
    return torch.where(count > 0, mean, torch.nan).to(dtype), std.to(dtype)


def quantiles(draws: Tensor, failed: Tensor | None, probabilities: Sequence[float]) -> list[Tensor]:
    """Quantiles of draws (K, [m,] ...) at the positions (K + 1) q, without those that failed, (K, [m])."""
    if failed is None:
        return at_positions(draws.sort(0).values, probabilities)
    if failed.ndim == 1:
        return at_positions(draws[~failed].sort(0).values, probabilities)
    columns = [at_positions(draws[~failed[:, j], j].sort(0).values, probabilities) for j in range(draws.shape[1])]
    return [torch.stack(parts) for parts in zip(*columns, strict=True)]


def stored_moments(stored: Stored, count: int) -> tuple[Tensor, Tensor]:
    """`moments` of the first draws of a folder, a chunk at a time."""
    parts = []
    for columns in stored.columns():
        failed = torch.from_numpy(stored.failed[:count, columns] > 0)
        parts.append(moments(stored.blocks(count, columns), failed if stored.batched else failed[:, 0]))
    if not stored.batched:
        return parts[0]
    mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, std


def stored_quantiles(stored: Stored, count: int, probabilities: Sequence[float]) -> list[Tensor]:
    """`quantiles` of the first draws of a folder, some values of some images at a time."""
    inside = stored.shape[2:] if stored.batched else stored.shape[1:]
    size, whole = math.prod(inside), []
    for columns in stored.columns():
        width, parts = max(1, _AT_ONCE // (count * (columns.stop - columns.start))), []
        failed = torch.from_numpy(stored.failed[:count, columns] > 0)
        none = None if not bool(failed.any()) else failed
        for first in range(0, size, width):
            slab = torch.from_numpy(stored.slab(count, columns, slice(first, min(first + width, size))))
            parts.append(quantiles(slab, none, probabilities))
        whole.append([torch.cat(part, -1) for part in zip(*parts, strict=True)])
    joined = [torch.cat(part).reshape(-1, *inside) for part in zip(*whole, strict=True)]
    return joined if stored.batched else [values[0] for values in joined]


def at_positions(ordered: Tensor, probabilities: Sequence[float]) -> list[Tensor]:
    """Quantiles of values that are sorted along the first axis; not a number where they are too few."""
    count = ordered.shape[0]
    out = []
    for q in probabilities:
        position = (count + 1) * q
        if not 1 <= position + 1e-9 <= count + 2e-9:
            out.append(ordered.new_full(ordered.shape[1:], torch.nan))
            continue
        below = min(max(math.floor(position + 1e-9), 1), count)
        above = min(below + 1, count)
        out.append(ordered[below - 1].lerp(ordered[above - 1], max(position - below, 0.0)))
    return out
