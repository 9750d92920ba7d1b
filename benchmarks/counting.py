"""An operator that counts how often it is applied."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from invdiff.operators import Operator, Spectral

__all__ = ["Count", "counting"]


@dataclass
class Count:
    """Applications of A or of its adjoint to a batch, in halves, and whether one is under way."""

    halves: int = 0
    busy: bool = False

    @property
    def calls(self) -> float:
        return self.halves / 2


def counting(operator: Operator) -> tuple[Operator, Count]:
    """The operator with a count of its applications, which its copies for other members and devices share.

    A x, A^T y, a product with the Jacobian and a closed-form inverse count one, and a change to or from singular
    coordinates one half, since A x takes two of them. What an application does inside itself is not counted again.

    Args:
        operator: any operator; it is not changed.
    """
    count = Count()
    weights = {"forward": 2, "adjoint": 2, "vjp": 2}
    if isinstance(operator, Spectral):
        weights |= {"pinv": 2, "damped_pinv": 2, "vt": 1, "v": 1, "ut": 1, "u": 1}
    kind = type(operator)
    methods: dict[str, Any] = {
        name: _counted(getattr(kind, name), weight, count) for name, weight in weights.items() if hasattr(kind, name)
    }
    # Of the same name, so that a record of the run names the operator and not the one that counts.
    counted = type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})
    copy: Operator = object.__new__(counted)
    copy.__dict__.update(operator.__dict__)
    return copy, count


def _counted(method: Callable[..., Tensor], weight: int, count: Count) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def call(self: Operator, *arguments: Any, **options: Any) -> Tensor:
        if count.busy:
            return method(self, *arguments, **options)
        count.busy = True
        try:
            out = method(self, *arguments, **options)
        finally:
            count.busy = False
        count.halves += weight
        if out.requires_grad:
            out.register_hook(passed)
        return out

    def passed(gradient: Tensor) -> None:
        # The way back through A is its adjoint.
        count.halves += weight

    return call
