"""Conjugate gradients per member, and checks that find what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from invdiff.operators import Blur, Identity, LinearOperator, Mask, Matrix, Spectral, checks, conjugate_gradient
from invdiff.operators.linalg import inner, norm


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def system() -> tuple[torch.Tensor, torch.Tensor]:
    """Three symmetric positive definite matrices of very different condition, and their right-hand sides."""
    root = random(3, 12, 12) - 0.5
    ridge = torch.tensor([10.0, 1e-1, 1e-3], dtype=torch.float64)
    return root @ root.mT + ridge[:, None, None] * torch.eye(12, dtype=torch.float64), random(3, 12, seed=1)


def apply(matrices: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: (matrices @ x[..., None])[..., 0]


def test_conjugate_gradients_solve_every_member(system: tuple[torch.Tensor, torch.Tensor]) -> None:
    matrices, rhs = system
    result = conjugate_gradient(apply(matrices), rhs, tol=1e-12)
    torch.testing.assert_close(result.x, torch.linalg.solve(matrices, rhs), rtol=1e-8, atol=1e-8)
    expected = norm(rhs - apply(matrices)(result.x)) / norm(rhs)
    torch.testing.assert_close(result.residual, expected)
    assert bool(result.converged.all())
    assert 12 <= result.iterations < 60


def test_a_member_does_not_depend_on_its_neighbours(system: tuple[torch.Tensor, torch.Tensor]) -> None:
    matrices, rhs = system
    # Neighbours a million times larger, a zero one, and one that is not finite at all.
    rhs = torch.cat([rhs, 1e6 * rhs[:1], 0 * rhs[:1], float("nan") * rhs[:1]])
    matrices = torch.cat([matrices, matrices[:1], matrices[:1], matrices[:1]])
    together = conjugate_gradient(apply(matrices), rhs, tol=1e-6)
    for i in range(5):
        alone = conjugate_gradient(apply(matrices[i : i + 1]), rhs[i : i + 1], tol=1e-6)
        assert torch.equal(together.x[i], alone.x[0])
    assert float(together.x[4].abs().max()) == 0
    assert not bool(together.converged[5])
    assert float(together.x[5].abs().max()) == 0  # it never moved, however long the others took


def test_a_start_that_is_the_solution_costs_nothing(system: tuple[torch.Tensor, torch.Tensor]) -> None:
    matrices, rhs = system
    start = torch.linalg.solve(matrices, rhs)
    kept = start.clone()
    result = conjugate_gradient(apply(matrices), rhs, x0=start, tol=1e-8)
    assert result.iterations == 0
    assert torch.equal(start, kept)
    few = conjugate_gradient(apply(matrices), rhs, tol=1e-12, max_iter=3)
    assert few.iterations == 3
    assert not bool(few.converged[2])


def test_a_singular_system_gives_the_smallest_solution() -> None:
    matrix = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    result = conjugate_gradient(lambda x: x @ matrix, torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(result.x, torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))


def test_gradients_flow_through_the_solution(system: tuple[torch.Tensor, torch.Tensor]) -> None:
    matrices, rhs = system
    rhs.requires_grad_()
    result = conjugate_gradient(apply(matrices), rhs, tol=1e-13)
    (gradient,) = torch.autograd.grad(result.x.sum(), rhs)
    expected = torch.linalg.solve(matrices, torch.ones_like(rhs))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_bad_settings_are_refused() -> None:
    rhs = random(2, 3)
    for options, sentence in [
        ({"tol": -1.0}, "tol=-1.0"),
        ({"tol": float("nan")}, "tol=nan"),
        ({"max_iter": -1}, "max_iter=-1"),
        ({"x0": random(1, 3)}, r"start of shape \(1, 3\)"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            conjugate_gradient(lambda x: x, rhs, **options)  # type: ignore[arg-type]


def test_inner_products_are_real_and_per_member() -> None:
    a, b = random(2, 3, 4), random(2, 3, 4, seed=1)
    torch.testing.assert_close(inner(a, b), (a * b).sum((1, 2)))
    z = torch.complex(a, b)
    torch.testing.assert_close(inner(z, z), norm(z) ** 2)
    torch.testing.assert_close(inner(z, a.to(z.dtype)), (a * a).sum((1, 2)))


class Wrong(Blur(torch.ones(3, 3), (1, 8, 8)).__class__):  # type: ignore[misc]
    """A circular blur with one defect, chosen by name."""

    def __init__(self, defect: str) -> None:
        super().__init__(random(3, 3) + torch.eye(3), (1, 8, 8))
        self.defect = defect

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + 1e-4 if self.defect == "forward" else y

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return super().forward(y) if self.defect == "adjoint" else super().adjoint(y)

    def vt(self, x: torch.Tensor) -> torch.Tensor:
        return super().vt(x) * (1.001 if self.defect == "vt" else 1.0)

    def v(self, z: torch.Tensor) -> torch.Tensor:
        return super().v(z) * (1.001 if self.defect == "v" else 1.0)

    def ut(self, y: torch.Tensor) -> torch.Tensor:
        return super().ut(y).conj() if self.defect == "ut" else super().ut(y)

    def u(self, w: torch.Tensor) -> torch.Tensor:
        return -super().u(w) if self.defect == "u" else super().u(w)

    def pinv(self, y: torch.Tensor, rcond: float | None = None) -> torch.Tensor:
        return {"adjoint as pinv": super().adjoint(y), "scaled pinv": 1.01 * super().pinv(y)}.get(
            self.defect, super().pinv(y)
        )


def test_a_right_operator_passes_every_check() -> None:
    operator = Wrong("none")
    assert checks.dot_test(operator, tol=1e-12) < 1e-14
    assert checks.svd_test(operator, tol=1e-10) < 1e-13
    assert checks.pinv_test(operator, tol=1e-9) >= 0
    assert checks.vjp_test(operator, tol=1e-9) >= 0


@pytest.mark.parametrize("defect", ["forward", "adjoint", "vt", "v", "ut", "u"])
def test_a_defect_of_the_svd_is_found(defect: str) -> None:
    assert checks.svd_test(Wrong(defect)) > 1e-5
    with pytest.raises(AssertionError, match=r"The SVD of Wrong.* does not hold: the error is .*, expected at most"):
        checks.svd_test(Wrong(defect), tol=1e-6)


@pytest.mark.parametrize("defect", ["adjoint as pinv", "scaled pinv"])
def test_a_wrong_pseudo_inverse_is_found(defect: str) -> None:
    with pytest.raises(AssertionError, match="is not Moore-Penrose's"):
        checks.pinv_test(Wrong(defect), tol=1e-3)


def test_a_wrong_adjoint_or_vjp_is_found() -> None:
    with pytest.raises(AssertionError, match="is not its adjoint"):
        checks.dot_test(Wrong("adjoint"), tol=1e-3)
    with pytest.raises(AssertionError, match="is not that of its forward map"):
        checks.vjp_test(Wrong("adjoint"), tol=1e-3)


def test_a_result_that_is_not_a_number_fails() -> None:
    class Broken(LinearOperator):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float("nan")

        adjoint = forward

    with pytest.raises(AssertionError, match="the error is nan"):
        checks.dot_test(Broken((3,), (3,)), tol=1.0)


def test_operators_that_differ_per_member_are_checked_with_their_members() -> None:
    operator = Mask(random(3, 1, 4, 4), (1, 4, 4))
    assert checks.dot_test(operator, tol=1e-12) >= 0
    assert checks.spectral_norm(operator) == pytest.approx(float(operator.singular.max()), rel=1e-4)


def test_the_spectral_norm_is_the_largest_singular_value() -> None:
    matrix = random(7, 5) - 0.5
    expected = float(torch.linalg.matrix_norm(matrix, 2))
    assert checks.spectral_norm(Matrix(matrix)) == pytest.approx(expected, rel=1e-4)
    blur = Blur(random(3, 4), (2, 9, 8))
    assert checks.spectral_norm(blur) == pytest.approx(float(blur.singular.max()), rel=1e-4)
    assert checks.spectral_norm(2 * Blur(random(3, 4), (2, 9, 8), "reflect")) > 0
    assert checks.spectral_norm(Mask(torch.zeros(4), (4,))) == 0


def test_checks_follow_their_seed_and_leave_the_global_stream() -> None:
    operator = Matrix(random(4, 4))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    assert checks.pinv_test(operator, seed=3) == checks.pinv_test(operator, seed=3)
    assert torch.equal(torch.rand(2), expected)
    assert isinstance(Identity((2,)), Spectral)
