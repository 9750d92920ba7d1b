"""Products, sums, multiples, transposes and stacks; what an operator refuses to be applied to."""

from __future__ import annotations

import copy
import pickle
import runpy
from pathlib import Path

import pytest
import torch

import invdiff.operators as package
from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    Matrix,
    Operator,
    Spectral,
    checks,
    from_function,
    stack,
)

SHAPE = (3, 8, 8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def square(shape: tuple[int, ...] = SHAPE) -> Operator:
    return from_function(lambda x: x**2, shape, linear=False)


@pytest.fixture
def image() -> torch.Tensor:
    return random(2, *SHAPE, seed=7)


def test_the_algebra_means_what_it_says(image: torch.Tensor) -> None:
    a, b = Blur(random(3, 3), SHAPE, "reflect"), Mask(random(*SHAPE, seed=1), SHAPE)
    for got, expected in [
        (a @ image, a(image)),
        ((a @ b)(image), a(b(image))),
        ((2 * a)(image), 2 * a(image)),
        ((a * 2)(image), 2 * a(image)),
        ((a / 4)(image), a(image) / 4),
        ((-a)(image), -a(image)),
        ((a + b)(image), a(image) + b(image)),
        ((a - b)(image), a(image) - b(image)),
        ((torch.tensor(0.5) * a)(image), 0.5 * a(image)),
        (a.T @ image, a.adjoint(image)),
        (a.T(image), a.adjoint(image)),
        ((a @ b).T(image), b.adjoint(a.adjoint(image))),
        ((a @ b @ b)(image), a(b(b(image)))),
    ]:
        torch.testing.assert_close(got, expected)
    assert a.T.T is a
    assert (3 * (2 * a)).factor == 6  # type: ignore[attr-defined]
    assert 1 * a is a


def test_linearity_and_the_svd_survive_where_they_can() -> None:
    blur, padded, gray = Blur(random(3, 3), SHAPE), Blur(random(3, 3), SHAPE, "zero"), Grayscale(SHAPE)
    for spectral in (2 * blur, -gray, blur.T, (2 * blur).T, blur @ blur, Downsample(2, SHAPE, random(2, 2)) @ blur):
        assert isinstance(spectral, Spectral)
    for linear in (2 * padded, padded.T, padded @ blur, blur + blur, stack(blur, gray)):
        assert isinstance(linear, LinearOperator)
        assert not isinstance(linear, Spectral)
    for nonlinear in (square() @ blur, blur @ square(), 2 * square(), square() + blur, stack(blur, square())):
        assert not isinstance(nonlinear, LinearOperator)
    assert Identity(SHAPE) @ blur is blur
    assert padded @ Identity(SHAPE) is padded


def test_a_zero_multiple_has_an_svd(image: torch.Tensor) -> None:
    nothing = 0 * Blur(random(3, 3), SHAPE)
    checks.svd_test(nothing, tol=1e-12)  # type: ignore[arg-type]
    assert float(nothing.pinv(image).abs().max()) == 0


@pytest.mark.parametrize(
    "operator",
    [
        square(),
        square() @ Blur(random(3, 3), SHAPE, "reflect"),
        Downsample(2, SHAPE) @ square(),
        square() @ square(),
        -3 * square(),
        square() + Blur(random(3, 3), SHAPE),
        stack(square(), Blur(random(3, 3), SHAPE)),
        stack(square(), Downsample(2, SHAPE)),
    ],
    ids=repr,
)
def test_operators_that_are_not_linear_keep_their_vjp(operator: Operator, image: torch.Tensor) -> None:
    assert checks.vjp_test(operator, tol=1e-8) >= 0
    leaf = image.clone().requires_grad_()
    v = random(2, *operator.out_shape, seed=3)
    (expected,) = torch.autograd.grad(operator(leaf), leaf, v)
    torch.testing.assert_close(operator.vjp(image, v), expected)


def test_a_vjp_is_differentiable_and_works_without_gradients(image: torch.Tensor) -> None:
    operator, v = square(), random(2, *SHAPE, seed=3)
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(operator.vjp(x, v).sum(), x)
    torch.testing.assert_close(gradient, 2 * v)
    with torch.no_grad():
        torch.testing.assert_close(operator.vjp(image, v), 2 * image * v)
    with torch.inference_mode():
        torch.testing.assert_close(operator.vjp(image * 1, v * 1), 2 * image * v)
    assert not operator.vjp(image, v).requires_grad


def test_constants_made_in_inference_mode_serve_gradients_later(image: torch.Tensor) -> None:
    operator = Blur(random(3, 3), SHAPE)
    with torch.inference_mode():
        operator.pinv(operator(image.float()))
        operator.u(operator.vt(image.float()))
    x = image.float().requires_grad_()
    operator.pinv(operator(x)).sum().backward()
    assert x.grad is not None


def test_stacks_join_and_split(image: torch.Tensor) -> None:
    blur, gray, small = Blur(random(3, 3), SHAPE), Grayscale(SHAPE), Downsample(2, SHAPE)
    images = stack(blur, gray)
    assert images.out_shape == (4, 8, 8)
    y = images(image)
    for part, operator in zip(images.split(y), images.operators, strict=True):
        torch.testing.assert_close(part, operator(image))
    torch.testing.assert_close(images.join(images.split(y)), y)
    vectors = stack(blur, small)
    assert vectors.out_shape == (3 * 64 + 3 * 16,)
    torch.testing.assert_close(vectors.split(vectors(image))[1], small(image))
    with pytest.raises(ValueError, match="got 1 measurements, expected 2"):
        images.join([y])


def test_members_go_through_every_combination(image: torch.Tensor) -> None:
    masks, psfs = random(2, *SHAPE), random(2, 3, 3)
    mask, blur = Mask(masks, SHAPE), Blur(psfs, SHAPE, "zero")
    for operator in (blur @ mask, blur + mask, 2 * (blur @ mask), stack(blur, mask), (blur @ mask).T, square() @ mask):
        assert operator.batch == 2
        swapped = operator.take([1, 0, 1])
        assert swapped.batch == 3
        torch.testing.assert_close(swapped(image[[1, 0, 1]]), operator(image)[[1, 0, 1]])
        assert operator.take([0]).batch is None
    with pytest.raises(ValueError, match="Operators for 2 and 3 members cannot be combined"):
        mask @ Mask(random(3, *SHAPE), SHAPE)
    for index, sentence in [
        ([2], "members 0 to 1"),
        ([-1], "members 0 to 1"),
        ([], "expected member numbers from 0 to 1"),
        ([[0]], "expected member numbers"),
        ([0.5], "expected member numbers"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            mask.take(index)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused_by_a_sentence() -> None:
    blur, small = Blur(random(3, 3), SHAPE), Downsample(2, SHAPE)
    for call, sentence in [
        (lambda: blur @ small, r"the right operator gives \(3, 4, 4\), the left one takes \(3, 8, 8\)"),
        (lambda: blur + small, "their shapes differ"),
        (lambda: stack(blur, Identity((1, 8, 8))), "expected one shape"),
        (lambda: stack(), "got no operator"),
        (lambda: float("nan") * blur, "multiplied by nan"),
        (lambda: blur(random(*SHAPE)), r"expected \(batch, 3, 8, 8\): add the batch axis with x\[None\]"),
        (lambda: blur(random(2, 1, 8, 8)), r"got a tensor of shape \(2, 1, 8, 8\), expected \(batch, 3, 8, 8\)"),
        (lambda: Identity((0, 3)), "expected a tuple of positive integers"),
        (lambda: Identity(5), "expected a tuple of positive integers"),  # type: ignore[arg-type]
        (lambda: blur.damped_pinv(random(1, *SHAPE), -1.0), "damping -1.0, expected a finite number >= 0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            call()
    for call, sentence in [
        (lambda: blur(random(1, *SHAPE).half()), "expected float32 or float64"),
        (lambda: blur(torch.ones(1, *SHAPE, dtype=torch.int64)), "convert it with x.float()"),
        (lambda: blur(random(1, *SHAPE) * 1j), "complex128"),
        (lambda: blur([1.0]), "got a list, expected a torch tensor"),
        (lambda: blur.to(dtype=torch.int32), "expected torch.float32 or torch.float64"),
        (lambda: blur * "a", "unsupported operand|can't multiply"),
        (lambda: blur + 1, "unsupported operand"),
    ]:
        with pytest.raises(TypeError, match=sentence):
            call()  # type: ignore[operator]


def test_copies_moves_and_pickles_are_the_same_operator(image: torch.Tensor) -> None:
    operator = Grayscale(SHAPE) @ Blur(random(3, 3), SHAPE)
    before = operator(image.float())
    for other in (copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        torch.testing.assert_close(other(image.float()), before)
    assert operator.to("cpu") is operator
    moved = operator.to("meta")
    assert moved is not operator
    assert moved(torch.empty(2, *SHAPE, device="meta")).shape == (2, 1, 8, 8)
    torch.testing.assert_close(operator(image.float()), before)


def test_pinv_warns_when_it_does_not_converge() -> None:
    badly = Matrix(torch.diag(torch.logspace(0, -9, 200, dtype=torch.float64))) + Matrix(torch.zeros(200, 200))
    with pytest.warns(UserWarning, match=r"stopped after 1000 iterations at a relative residual of .* the operator is"):
        badly.pinv(torch.ones(1, 200, dtype=torch.float64))


def test_least_squares_reports_the_residual_of_each_member(image: torch.Tensor) -> None:
    blur = Blur(random(3, 3) + 0.1, SHAPE, "valid")
    y = blur(image)
    y[0] = 0.0
    result = blur.least_squares(y, tol=1e-8)
    assert result.residual.shape == (2,)
    assert float(result.residual[0]) == 0
    assert float(result.residual[1]) <= 2e-8
    short = blur.least_squares(y, tol=1e-12, max_iter=2)
    assert not bool(short.converged[1])
    assert float(short.residual[1]) > 1e-6


def test_the_package_refuses_another_name() -> None:
    with pytest.raises(ImportError, match=r"import them as invdiff\.operators"):
        runpy.run_path(str(Path(package.__file__)), run_name="operators")


def test_everything_public_exists_and_explains_itself() -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert {"Spectral", "LinearOperator", "Operator", "checks"} <= set(package.__all__)
