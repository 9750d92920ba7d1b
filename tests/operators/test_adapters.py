"""Operators from functions and from SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from invdiff.operators import LinearOperator, checks, from_function, from_scipy


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_function_gets_its_adjoint_by_differentiation() -> None:
    operator = from_function(lambda x: x.sum(1)[:, ::2] * 3, (3, 5))
    assert isinstance(operator, LinearOperator)
    assert operator.out_shape == (3,)
    checks.dot_test(operator, tol=1e-12)
    y = random(2, 3)
    expected = torch.zeros(2, 3, 5, dtype=torch.float64)
    expected[:, :, ::2] = 3 * y[:, None]
    torch.testing.assert_close(operator.adjoint(y), expected)
    assert not operator.adjoint(y).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(operator.adjoint(y * 1), expected)


def test_an_adjoint_that_is_given_is_used() -> None:
    operator = from_function(lambda x: 2 * x, (4,), adjoint=lambda y: 2 * y)
    assert isinstance(operator, LinearOperator)
    checks.dot_test(operator, tol=1e-12)
    wrong = from_function(lambda x: 2 * x, (4,), adjoint=lambda y: y)
    assert isinstance(wrong, LinearOperator)
    with pytest.raises(AssertionError, match="is not its adjoint"):
        checks.dot_test(wrong, tol=1e-6)


def test_a_function_of_one_precision_serves_both() -> None:
    weight = random(4, 4).float()
    operator = from_function(lambda x: x @ weight, (4,), dtype=torch.float32)
    assert isinstance(operator, LinearOperator)
    x = random(2, 4)
    assert operator(x).dtype == operator.adjoint(x).dtype == torch.float64
    torch.testing.assert_close(operator(x), x @ weight.double(), rtol=1e-6, atol=1e-6)
    checks.dot_test(operator, tol=1e-5)
    with pytest.raises(ValueError, match="dtype= or device= where the function takes only one"):
        from_function(lambda x: x @ weight.double(), (4,))


def test_a_function_that_is_not_linear() -> None:
    operator = from_function(torch.sin, (4,), linear=False)
    assert not isinstance(operator, LinearOperator)
    checks.vjp_test(operator, tol=1e-9)
    x, v = random(2, 4), random(2, 4, seed=1)
    torch.testing.assert_close(operator.vjp(x, v), x.cos() * v)
    constant = from_function(lambda x: torch.ones(len(x), 2).to(x), (4,), linear=False)
    torch.testing.assert_close(constant.vjp(x, random(2, 2)), torch.zeros_like(x))


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (torch.sin, "is not linear"),
        (lambda x: x + 1, "is not linear"),
        (lambda x: x * float("nan"), "is not linear"),
        (lambda x: x.sum(), "expected a real tensor \\(4, \\*out_shape\\)"),
        (lambda x: x[:2], "gave shape \\(2, 3\\)"),
        (lambda x: torch.fft.fft(x), "pass complex values as two real channels"),
        (lambda x: x.numpy(), "gave ndarray"),
        (lambda x: x.reshape(4, 5), "failed on a batch of shape \\(4, 3\\)"),
    ],
)
def test_functions_that_cannot_be_operators_are_refused(function: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_function(function, (3,))  # type: ignore[arg-type]


def test_an_adjoint_of_a_map_that_is_not_linear_is_refused() -> None:
    with pytest.raises(ValueError, match="leave out one of the two"):
        from_function(torch.sin, (3,), adjoint=torch.cos, linear=False)


def matrix() -> np.ndarray:
    return random(5, 12).numpy() * (random(5, 12, seed=1).numpy() > 0.5)


SCIPY = {
    "csr": lambda: scipy.sparse.csr_matrix(matrix()),
    "coo array": lambda: scipy.sparse.coo_array(matrix()),
    "float32 csc": lambda: scipy.sparse.csc_matrix(matrix().astype(np.float32)),
    "LinearOperator": lambda: scipy.sparse.linalg.aslinearoperator(matrix()),
    "functions": lambda: scipy.sparse.linalg.LinearOperator(
        (5, 12), matvec=lambda v: matrix() @ v, rmatvec=lambda v: matrix().T @ v
    ),
}


@pytest.mark.parametrize("name", SCIPY)
def test_scipy_objects_are_operators_on_images(name: str) -> None:
    operator = from_scipy(SCIPY[name](), in_shape=(3, 2, 2), out_shape=(5, 1))
    x = random(2, 3, 2, 2)
    expected = x.flatten(1).numpy() @ matrix().T
    np.testing.assert_allclose(operator(x).flatten(1).numpy(), expected, atol=1e-6)
    checks.dot_test(operator, tol=1e-12)
    checks.dot_test(operator, tol=1e-5, dtype=torch.float32)
    checks.pinv_test(operator, tol=1e-6)
    assert operator(x.float()).dtype == torch.float32


def test_gradients_of_any_order_flow_through_scipy() -> None:
    operator = from_scipy(SCIPY["csr"]())
    x = random(2, 12).requires_grad_()
    assert torch.autograd.gradcheck(operator.forward, (x,))
    assert torch.autograd.gradgradcheck(lambda t: operator(t) ** 2, (x,))


def test_the_object_is_copied_where_it_is_sparse() -> None:
    sparse = SCIPY["csr"]()
    operator, x = from_scipy(sparse), random(1, 12)
    before = operator(x)
    sparse.data[:] = 0.0
    torch.testing.assert_close(operator(x), before)


def test_scipy_objects_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got a ndarray, .* use invdiff\.operators\.Matrix"):
        from_scipy(matrix())
    with pytest.raises(ValueError, match="for images of 11 and measurements of 5"):
        from_scipy(SCIPY["csr"](), in_shape=(11,))
    with pytest.raises(ValueError, match="complex operator"):
        from_scipy(scipy.sparse.csr_matrix(matrix() * 1j))
    with pytest.raises(ValueError, match="without a transpose, expected one with rmatvec"):
        from_scipy(scipy.sparse.linalg.LinearOperator((5, 12), matvec=lambda v: matrix() @ v))
