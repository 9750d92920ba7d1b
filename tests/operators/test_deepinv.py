"""deepinv's physics as our operators, ours as deepinv's, and the values of both against each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    LinearOperator,
    Mask,
    Operator,
    Spectral,
    checks,
    from_deepinv,
    from_function,
    to_deepinv,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepinv
    from deepinv import physics as theirs

# deepinv warns about its own defaults.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Physics = theirs.Physics
SHAPE = (3, 8, 9)
EVEN = (3, 8, 8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def psf(height: int, width: int) -> torch.Tensor:
    values = random(height, width, seed=4)
    return (values / values.sum()).float()


def blur(padding: str, height: int = 3, width: int = 4) -> Physics:
    return theirs.Blur(filter=psf(height, width)[None, None], padding=padding)


# name: (physics, in_shape, has an SVD that holds)
PHYSICS: dict[str, tuple[Callable[[], Physics], tuple[int, ...], bool]] = {
    "denoising": (theirs.Denoising, SHAPE, True),
    "inpainting": (lambda: theirs.Inpainting(SHAPE, mask=0.5, rng=torch.Generator().manual_seed(0)), SHAPE, True),
    "demosaicing": (lambda: theirs.Demosaicing(EVEN), EVEN, True),
    "decolorize": (theirs.Decolorize, SHAPE, True),
    "blur fft": (lambda: theirs.BlurFFT(SHAPE, filter=psf(3, 4)[None, None]), SHAPE, True),
    "single pixel": (lambda: theirs.SinglePixelCamera(m=20, img_size=(1, 8, 8)), (1, 8, 8), True),
    "mri": (lambda: theirs.MRI(mask=random(1, 2, 8, 8).round().float(), img_size=(2, 8, 8)), (2, 8, 8), True),
    "compressed sensing": (lambda: theirs.CompressedSensing(m=20, img_size=(1, 8, 8)), (1, 8, 8), False),
    "tomography": (lambda: theirs.Tomography(angles=7, img_width=16), (1, 16, 16), False),
    "downsampling": (lambda: theirs.Downsampling(EVEN, filter=psf(3, 3)[None, None], factor=2), EVEN, False),
    "bicubic": (lambda: theirs.Downsampling((3, 32, 32), filter="bicubic", factor=2), (3, 32, 32), False),
    "pansharpening": (lambda: theirs.Pansharpen((3, 16, 16), factor=2), (3, 16, 16), False),
    **{
        f"{padding} blur": (lambda padding=padding: blur(padding), (2, 8, 9), False)
        for padding in ("circular", "reflect", "replicate", "constant", "valid")
    },
}


@pytest.fixture(params=PHYSICS)
def adapted(request: pytest.FixtureRequest) -> tuple[Physics, Operator, bool]:
    make, shape, spectral = PHYSICS[request.param]
    physics = make()
    return physics, from_deepinv(physics, shape, check=True), spectral


def joined(measurement: Any) -> torch.Tensor:
    """A stacked measurement of deepinv as one vector per member."""
    if isinstance(measurement, torch.Tensor):
        return measurement.flatten(1)
    return torch.cat([part.flatten(1) for part in measurement], 1)


def test_the_contract_holds_for_deepinvs_operators(adapted: tuple[Physics, Operator, bool]) -> None:
    physics, operator, spectral = adapted
    assert isinstance(operator, LinearOperator)
    # 1e-12 where deepinv computes in double; some of its constants and two of its physics are float32 throughout.
    checks.dot_test(operator, tol=1e-6)
    checks.dot_test(operator, tol=1e-5, dtype=torch.float32)
    assert isinstance(operator, Spectral) == spectral
    if isinstance(operator, Spectral):
        checks.svd_test(operator, tol=1e-6)
        checks.svd_test(operator, tol=1e-5, dtype=torch.float32)
        checks.pinv_test(operator, tol=1e-3)
    image = random(2, *operator.in_shape).float()
    torch.testing.assert_close(operator(image).flatten(1), joined(physics.A(image)), rtol=1e-5, atol=1e-6)
    for dtype in (torch.float32, torch.float64):
        x = image.to(dtype).requires_grad_()
        v = random(2, *operator.out_shape, seed=2).to(dtype)
        (gradient,) = torch.autograd.grad(operator(x), x, v)
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, operator.adjoint(v), rtol=1e-4, atol=1e-5)
        before = x.detach().clone()
        torch.testing.assert_close(operator(x.detach())[:1], operator(x.detach()[:1]), rtol=1e-5, atol=1e-6)
        assert torch.equal(before, x.detach())


def test_the_users_physics_is_not_converted(adapted: tuple[Physics, Operator, bool]) -> None:
    physics, operator, _ = adapted
    before = {name: tensor.dtype for name, tensor in physics.state_dict().items()}
    operator(random(1, *operator.in_shape))
    assert {name: tensor.dtype for name, tensor in physics.state_dict().items()} == before


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 1), (1, 4)])
def test_the_check_finds_deepinvs_wrong_replicate_blur(height: int, width: int) -> None:
    physics = blur("replicate", height, width)
    from_deepinv(physics, (2, 8, 9))
    with pytest.raises(ValueError, match=r"deepinv's Blur .*adjoint.* use an operator of invdiff\.operators"):
        from_deepinv(physics, (2, 8, 9), check=True)
    ours = Blur(psf(height, width), (2, 8, 9), boundary="replicate")
    image = random(2, 2, 8, 9)
    torch.testing.assert_close(ours(image).float(), physics.A(image.float()), rtol=1e-5, atol=1e-6)
    checks.dot_test(ours, tol=1e-12)


def test_the_advice_of_the_check_works() -> None:
    physics = blur("replicate", 1, 1)
    operator = from_function(physics.A, (2, 8, 9), dtype=torch.float32)
    assert isinstance(operator, LinearOperator)
    checks.dot_test(operator, tol=1e-5)


def test_an_adjoint_that_cannot_run_is_found_too() -> None:
    with pytest.raises(ValueError, match="deepinv's Blur cannot apply its A_adjoint"):
        from_deepinv(blur("circular", 2, 2), (2, 8, 9), check=True)


@pytest.mark.parametrize(
    ("padding", "boundary"), [("circular", "circular"), ("reflect", "reflect"), ("valid", "valid")]
)
@pytest.mark.parametrize("size", [(3, 3), (5, 3), (3, 4)])
def test_blurs_agree(padding: str, boundary: str, size: tuple[int, int]) -> None:
    physics, ours = blur(padding, *size), Blur(psf(*size), SHAPE, boundary=boundary)
    image = random(2, *SHAPE).float()
    torch.testing.assert_close(ours(image), physics.A(image), rtol=1e-5, atol=1e-6)
    y = random(2, *ours.out_shape, seed=1).float()
    torch.testing.assert_close(ours.adjoint(y), physics.A_adjoint(y), rtol=1e-5, atol=1e-6)


def test_downsampling_masks_and_gray_images_agree() -> None:
    image = random(2, *EVEN).float()
    down = theirs.Downsampling(EVEN, filter=psf(3, 3)[None, None], factor=2, padding="circular")
    torch.testing.assert_close(Downsample(2, EVEN, psf(3, 3))(image), down.A(image), rtol=1e-5, atol=1e-6)
    inpainting = theirs.Inpainting(EVEN, mask=random(*EVEN).round().float())
    torch.testing.assert_close(Mask(inpainting.mask[0], EVEN)(image), inpainting.A(image))
    gray = theirs.Decolorize()
    torch.testing.assert_close(Grayscale(EVEN, gray.srf.flatten())(image), gray.A(image))
    # deepinv rounds BT.601's weights, so that the default differs in the third digit.
    torch.testing.assert_close(Grayscale(EVEN)(image), gray.A(image), atol=1e-3, rtol=0)


def test_a_stacked_physics_becomes_a_stack() -> None:
    physics = theirs.stack(theirs.Denoising(), theirs.Inpainting(SHAPE, mask=torch.ones(SHAPE) * 0.5))
    operator = from_deepinv(physics, SHAPE, check=True)
    image = random(2, *SHAPE).float()
    torch.testing.assert_close(operator(image), torch.cat([image, image * 0.5], 1))


def test_a_physics_that_is_not_linear_keeps_its_vjp() -> None:
    physics = theirs.Haze()
    operator = from_deepinv(Square(), SHAPE)
    assert not isinstance(operator, LinearOperator)
    checks.vjp_test(operator, tol=1e-9)
    with pytest.raises(ValueError, match="deepinv's Haze failed on a batch of two images"):
        from_deepinv(physics, SHAPE)


class Square(Physics):  # type: ignore[misc]
    """x -> x^2."""

    def A(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return x**2


def test_what_is_no_usable_physics_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got a function, expected a deepinv\.physics\.Physics"):
        from_deepinv(random, SHAPE)
    with pytest.raises(ValueError, match="deepinv's Inpainting failed on a batch of two images of shape"):
        from_deepinv(theirs.Inpainting(SHAPE, mask=0.5), (3, 5, 5))
    complex_ = theirs.LinearPhysics(A=lambda x, **_: x * 1j)
    with pytest.raises(ValueError, match="expected a real tensor"):
        from_deepinv(complex_, SHAPE)
    with pytest.raises(TypeError, match="got a function, expected an operator"):
        to_deepinv(random)  # type: ignore[arg-type]


OURS: dict[str, Callable[[], LinearOperator]] = {
    "circular blur": lambda: Blur(psf(3, 4), SHAPE),
    "reflect blur": lambda: Blur(psf(3, 4), SHAPE, boundary="reflect"),
    "bicubic": lambda: Downsample(2, EVEN, "bicubic"),
    "gray of small": lambda: Grayscale((3, 4, 4)) @ Downsample(2, EVEN),
}


@pytest.mark.parametrize("name", OURS)
def test_our_operators_run_inside_deepinv(name: str) -> None:
    operator = OURS[name]()
    physics = to_deepinv(operator, noise_model=theirs.GaussianNoise(0.0))
    assert isinstance(physics, theirs.LinearPhysics)
    image = random(2, *operator.in_shape).float()
    torch.testing.assert_close(physics(image), operator(image))
    torch.testing.assert_close(physics.A_adjoint(operator(image)), operator.adjoint(operator(image)))
    assert abs(float(physics.adjointness_test(image))) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(physics.A_dagger(operator(image)), operator.pinv(operator(image)))
    back = from_deepinv(physics, operator.in_shape, check=True)
    torch.testing.assert_close(back(image), operator(image))


@pytest.mark.parametrize("name", OURS)
def test_the_proximal_step_inside_deepinv_is_the_minimiser(name: str) -> None:
    operator = OURS[name]()
    physics = to_deepinv(operator, tol=1e-12, max_iter=300)
    y, z = random(2, *operator.out_shape), random(2, *operator.in_shape, seed=1)
    x = physics.prox_l2(z, y, gamma=2.5)
    gradient = 2.5 * operator.adjoint(operator(x) - y) + (x - z)
    # deepinv's own conjugate gradients stop at 1e-5 or so, the closed form at rounding.
    assert float(gradient.norm()) < (1e-12 if isinstance(operator, Spectral) else 1e-4)


def test_a_deepinv_solver_runs_on_our_operator() -> None:
    operator = Blur(psf(3, 3), SHAPE)
    image = random(1, *SHAPE).float()
    physics = to_deepinv(operator)
    data_fidelity = deepinv.optim.L2()
    step = data_fidelity.grad(image, operator(image) + 0.1, physics)
    torch.testing.assert_close(step, -operator.adjoint(torch.full_like(image, 0.1)), rtol=1e-4, atol=1e-5)


def test_an_operator_that_is_not_linear_runs_inside_deepinv() -> None:
    operator = from_function(lambda x: x**2, SHAPE, linear=False)
    physics = to_deepinv(operator)
    assert not isinstance(physics, theirs.LinearPhysics)
    x, v = random(2, *SHAPE), random(2, *SHAPE, seed=1)
    torch.testing.assert_close(physics.A_vjp(x, v), 2 * x * v)
