"""log_prob, grad and prox against their definitions."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Likelihood
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Downsample, Grayscale, Identity, Mask, Matrix, Operator, from_function, stack
from invdiff.random import MemberRandom

SHAPE = (2, 6, 4)


def operators() -> dict[str, Operator]:
    generator = torch.Generator().manual_seed(3)
    mask = (torch.rand(SHAPE, generator=generator) < 0.5).double()
    kernel = torch.rand(3, 3, generator=generator).double()
    kernel = kernel / kernel.sum()
    return {
        "identity": Identity(SHAPE),
        "mask": Mask(mask, SHAPE),
        "soft mask": Mask(torch.rand(SHAPE, generator=generator).double(), SHAPE),
        "circular blur": Blur(kernel, SHAPE),
        "reflect blur": Blur(kernel, SHAPE, boundary="reflect"),
        "valid blur": Blur(kernel, SHAPE, boundary="valid"),
        "box": Downsample(2, SHAPE),
        "bicubic": Downsample(2, SHAPE, kind="bicubic"),
        "gray": Grayscale(SHAPE, weights=(0.3, 0.7)),
        "matrix": Matrix(torch.randn(5, 8, generator=generator).double()),
        "stack": stack(Identity(SHAPE), Blur(kernel, SHAPE, boundary="zero")),
    }


def dense(operator: Operator, member: int = 0) -> Tensor:
    n = math.prod(operator.in_shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *operator.in_shape)
    chosen = operator.take(torch.full((n,), member))
    return chosen(basis).reshape(n, -1).T


def problem(operator: Operator, members: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(members, *operator.in_shape, generator=generator, dtype=torch.float64)
    z = torch.rand(members, *operator.in_shape, generator=generator, dtype=torch.float64)
    y = operator(x) + 0.1 * torch.randn(members, *operator.out_shape, generator=generator, dtype=torch.float64)
    return y, z


def exact_prox(matrix: Tensor, y: Tensor, z: Tensor, weight: Tensor, rho: float) -> Tensor:
    """The normal equations, solved densely."""
    hessian = matrix.T @ (weight[:, None] * matrix) + rho * torch.eye(len(z), dtype=torch.float64)
    return torch.linalg.solve(hessian, matrix.T @ (weight * y) + rho * z)


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("kind", ["one", "per member", "per pixel"])
@pytest.mark.parametrize("rho", [0.3, 40.0])
def test_gaussian_prox_is_the_minimiser(name, kind, rho):
    operator = operators()[name]
    y, z = problem(operator)
    generator = torch.Generator().manual_seed(1)
    spread = torch.rand(3, *operator.out_shape, generator=generator, dtype=torch.float64) * 0.2 + 0.05
    ones = (1,) * len(operator.out_shape)
    sigma = {"one": 0.07, "per member": spread.flatten(1)[:, 0].reshape(3, *ones), "per pixel": spread}[kind]
    found = Likelihood(y, operator, GaussianNoise(sigma)).prox(z, rho)
    full = torch.as_tensor(sigma, dtype=torch.float64).expand_as(y)
    for j in range(3):
        weight = full[j].flatten() ** -2
        expected = exact_prox(dense(operator), y[j].flatten(), z[j].flatten(), weight, rho)
        torch.testing.assert_close(found[j].flatten(), expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", operators())
def test_without_noise_the_prox_projects(name):
    operator = operators()[name]
    x = problem(operator)[1]
    y = operator(x)
    z = problem(operator, seed=5)[1]
    found = Likelihood(y, operator, GaussianNoise(0.0)).prox(z, 1.0)
    torch.testing.assert_close(operator(found), y, atol=1e-6, rtol=0)
    matrix = dense(operator)
    for j in range(3):
        nearest = z[j].flatten() + torch.linalg.pinv(matrix) @ (y[j].flatten() - matrix @ z[j].flatten())
        torch.testing.assert_close(found[j].flatten(), nearest, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["identity", "circular blur", "reflect blur", "box", "gray"])
def test_poisson_prox_is_the_minimiser(name):
    operator, gain, rho = operators()[name], 0.05, 30.0
    _, z = problem(operator)
    clean = operator(z).clamp_min(0)
    y = PoissonNoise(gain).sample(clean, MemberRandom(0, [(0, 0), (1, 0), (2, 0)]))
    assert bool((y == 0).any() or y.min() > 0)
    likelihood = Likelihood(y, operator, PoissonNoise(gain))
    found = likelihood.prox(z, rho)

    def objective(x: Tensor) -> Tensor:
        ax = operator(x)
        count = y / gain
        return (ax / gain - torch.special.xlogy(count, ax)).flatten(1).sum(1) + rho / 2 * (x - z).square().flatten(
            1
        ).sum(1)

    best = objective(found)
    generator = torch.Generator().manual_seed(2)
    ax = operator(found)
    # At the border of no light the objective may rise inwards: the barrier's 1e-6 photons hold against it.
    none = torch.where(ax < 1e-5, 1e-6 / ax.clamp_min(1e-12), 0.0) if name != "identity" else 0.0
    slope = operator.adjoint(1 / gain - torch.where(y > 0, y / ax / gain, none)) + rho * (found - z)
    border = (found == 0) & (name == "identity")
    assert float(slope[~border].abs().max()) < 1e-5 * rho
    assert bool((slope[border] >= 0).all())
    for size in (1e-1, 1e-2, 1e-3):
        other = found + size * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        other = other.clamp_min(0) if name == "identity" else other
        unlit = (operator(other) < 0).flatten(1).any(1)
        assert bool((objective(other) > best).logical_or(unlit).all())


def test_poisson_prox_with_no_photons_at_all():
    operator = Identity((1, 3, 3))
    z = torch.full((1, 1, 3, 3), 0.01, dtype=torch.float64)
    found = Likelihood(torch.zeros(1, 3, 3, dtype=torch.float64), operator, PoissonNoise(0.1)).prox(z, 100.0)
    # Less light than none there is not: the free minimum 0.01 - 0.1 is behind the border.
    torch.testing.assert_close(found, torch.zeros_like(z))


def test_the_poisson_prox_of_a_mask_is_the_minimiser_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).repeat(4, 4)[:, :9].reshape(1, 4, 9)
    operator, gain, rho = Mask(mask, (1, 4, 9)), 0.05, torch.tensor([0.5, 40.0], dtype=torch.float64)
    z = torch.randn(2, 1, 4, 9, generator=generator, dtype=torch.float64)
    y = gain * torch.randint(0, 3, (2, 1, 4, 9), generator=generator).double() * (mask > 0)
    found = Likelihood(y, operator, PoissonNoise(gain)).prox(z, rho)
    assert torch.equal(found[..., mask[0] == 0], z[..., mask[0] == 0])
    assert bool((found[..., mask[0] > 0] >= 0).all())
    # Against all values on a fine grid, pixel by pixel.
    grid = torch.linspace(0, 6, 60001, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)
    rate = mask * grid / gain
    value = rate - torch.special.xlogy(y / gain, rate) + rho.reshape(2, 1, 1, 1) / 2 * (grid - z).square()
    best = grid.flatten()[value.argmin(0)]
    torch.testing.assert_close(torch.where(mask > 0, found, best), best, atol=1.1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.float32, 5e-3)])
def test_the_poisson_prox_of_a_blur_keeps_to_light_that_is_not_negative(dtype, error):
    optimize = pytest.importorskip("scipy.optimize", reason="the optional package scipy is not installed")
    operator, gain, rho = Blur(torch.tensor([[0.2, 0.5, 0.3]]), (1, 1, 8), boundary="circular"), 0.1, 20.0
    generator = torch.Generator().manual_seed(0)
    z = 0.4 * torch.randn(3, 1, 1, 8, generator=generator, dtype=torch.float64)
    z[2] = 0.5
    y = gain * torch.tensor([0, 0, 3, 0, 0, 1, 0, 0], dtype=torch.float64).expand(3, 1, 1, 8)
    found = Likelihood(y.to(dtype), operator, PoissonNoise(gain)).prox(z.to(dtype), rho)
    matrix = dense(operator).numpy()
    for j in range(3):
        count, start = (y[j] / gain).flatten().numpy(), z[j].flatten().numpy()

        def objective(x, count=count, start=start):
            light = matrix @ x
            logs = np.log(np.maximum(light, 1e-9))
            return light.sum() / gain - (count * logs).sum() + rho / 2 * ((x - start) ** 2).sum()

        bounds = optimize.LinearConstraint(matrix, 1e-9, np.inf)
        best = optimize.minimize(
            objective, np.full(8, 0.5), method="SLSQP", constraints=bounds, options={"ftol": 1e-14, "maxiter": 500}
        )
        assert objective(found[j].flatten().double().numpy()) < best.fun + 8e-3
        np.testing.assert_allclose(found[j].flatten(), best.x, atol=max(error, 1e-4))
    assert bool((operator(found) >= 0).all())
    # The barrier matters: without light's border the minimum lies beyond it.
    assert float(operator(found)[:2].min()) < 1e-2 * gain


def test_light_that_nobody_counted_is_held_where_the_operator_sees_at_all():
    # The second row sees nothing, and nothing is asked of it.
    operator = Matrix(torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64))
    z = torch.tensor([[-1.0, -3.0]], dtype=torch.float64)
    found = Likelihood(torch.zeros(2, dtype=torch.float64), operator, PoissonNoise(0.1)).prox(z, 5.0)
    # The nearest point of x1 + x2 = 0.
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0]], dtype=torch.float64), atol=1e-5, rtol=0)


def test_exact_and_noisy_measurements_of_one_operator():
    operator = operators()["reflect blur"]
    y, z = problem(operator)
    sigma = torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    joint = Likelihood(y, operator, GaussianNoise(sigma)).prox(z, 5.0)
    for j, level in enumerate((0.0, 0.1, 0.0)):
        alone = Likelihood(y[j], operator, GaussianNoise(level)).prox(z[j : j + 1], 5.0)
        torch.testing.assert_close(joint[j], alone[0], atol=1e-9, rtol=0)
    mixed = torch.full(operator.out_shape, 0.1)
    mixed[0, 0, 0] = 0
    with pytest.raises(ValueError, match="sigma is 0 for some pixels of a measurement"):
        Likelihood(y, operator, GaussianNoise(mixed)).prox(z, 5.0)


def test_poisson_photons_where_nothing_is_seen_are_refused():
    operator = Mask(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
    likelihood = Likelihood(torch.tensor([[[0.1, 0.1]]]), operator, PoissonNoise(0.1))
    with pytest.raises(ValueError, match="y counts photons where the mask sees nothing"):
        likelihood.prox(torch.ones(1, 1, 1, 2), 5.0)


def test_poisson_members_do_not_see_each_other():
    operator = operators()["reflect blur"]
    _, z = problem(operator)
    z[1] = -1.0
    y = torch.full((3, *operator.out_shape), 0.4, dtype=torch.float64)
    likelihood = Likelihood(y, operator, PoissonNoise(0.05))
    together = likelihood.prox(z, 20.0)
    for j in range(3):
        alone = likelihood.take(torch.tensor([j])).prox(z[j : j + 1], 20.0)
        torch.testing.assert_close(alone[0], together[j], atol=1e-12, rtol=0)


def test_poisson_refuses_negative_counts_and_rows_that_cancel():
    y = torch.full((1, 3, 3), -0.5)
    with pytest.raises(ValueError, match=r"y holds -0\.5: expected Poisson counts"):
        Likelihood(y, Identity((1, 3, 3)), PoissonNoise(0.1))
    with pytest.raises(ValueError, match="y holds no measurement"):
        Likelihood(torch.zeros(0, 1, 3, 3), Identity((1, 3, 3)), GaussianNoise(0.1))
    differences = Matrix(torch.tensor([[1.0, -1.0]]))
    with pytest.raises(ValueError, match="rows that sum to a positive number"):
        Likelihood(torch.ones(1), differences, PoissonNoise(0.1)).prox(torch.ones(1, 2), 1.0)


@pytest.mark.parametrize("noise", [GaussianNoise(0.1), PoissonNoise(0.02)])
@pytest.mark.parametrize("name", operators())
def test_grad_is_the_derivative_of_log_prob(name, noise):
    operator = operators()[name]
    if isinstance(noise, PoissonNoise) and name in ("matrix", "bicubic"):
        operator = Matrix(torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).double())
    _, x = problem(operator)
    x = x + 0.2
    z = operator(x)
    y = noise.sample(z, MemberRandom(1, [(k, 0) for k in range(3)]))
    likelihood = Likelihood(y, operator, noise)
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(likelihood.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(likelihood.grad(x), expected, rtol=1e-9, atol=1e-9)


def test_log_prob_equals_torch_distributions():
    y, z = torch.rand(4, 1, 3, 3), torch.rand(4, 1, 3, 3)
    gauss = torch.distributions.Normal(z, 0.2).log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close(Likelihood(y, Identity((1, 3, 3)), GaussianNoise(0.2)).log_prob(z), gauss)
    counts = torch.tensor([0.0, 1.0, 5.0, 9.0]).reshape(4, 1, 1, 1).expand_as(z)
    poisson = torch.distributions.Poisson(z / 0.1).log_prob(counts).flatten(1).sum(1)
    found = Likelihood(counts * 0.1, Identity((1, 3, 3)), PoissonNoise(0.1)).log_prob(z)
    torch.testing.assert_close(found, poisson, rtol=1e-4, atol=1e-4)


def test_members_with_their_own_mask_and_psf():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(3, *SHAPE, generator=generator) < 0.5).double()
    kernels = torch.rand(3, 3, 3, generator=generator).double()
    for operator in (Mask(masks, SHAPE), Blur(kernels, SHAPE), Blur(kernels, SHAPE, boundary="reflect")):
        assert operator.batch == 3
        y, z = problem(operator)
        found = Likelihood(y, operator, GaussianNoise(0.1)).prox(z, 20.0)
        for j in range(3):
            weight = torch.full((y[j].numel(),), 100.0, dtype=torch.float64)
            expected = exact_prox(dense(operator, j), y[j].flatten(), z[j].flatten(), weight, 20.0)
            torch.testing.assert_close(found[j].flatten(), expected, atol=1e-7, rtol=1e-7)


def test_members_do_not_see_each_other():
    operator = operators()["reflect blur"]
    y, z = problem(operator)
    likelihood = Likelihood(y, operator, GaussianNoise(0.02))
    together = likelihood.prox(z, 5.0)
    for j in range(3):
        alone = likelihood.take(torch.tensor([j])).prox(z[j : j + 1], 5.0)
        torch.testing.assert_close(alone[0], together[j], atol=1e-12, rtol=0)


def test_take_repeats_measurements_with_their_noise():
    y = torch.rand(2, 1, 3, 3)
    sigma = torch.tensor([0.1, 0.5]).reshape(2, 1, 1, 1)
    taken = Likelihood(y, Identity((1, 3, 3)), GaussianNoise(sigma)).take(torch.tensor([1, 1, 0]))
    assert torch.equal(taken.y, y[[1, 1, 0]])
    assert taken.noise.sigma.flatten().tolist() == pytest.approx([0.5, 0.5, 0.1])


def test_what_prox_keeps_of_y_is_that_of_y_as_it_is_now():
    operator = Blur(torch.ones(3, 3) / 9, (1, 6, 6))
    y, z = torch.rand(1, 6, 6), torch.rand(1, 1, 6, 6)
    likelihood = Likelihood(y, operator, GaussianNoise(0.1))
    first = likelihood.prox(z, 30.0)
    y.mul_(0.5)
    second = likelihood.prox(z, 30.0)
    torch.testing.assert_close(second, Likelihood(y.clone(), operator, GaussianNoise(0.1)).prox(z, 30.0))
    assert float((first - second).abs().max()) > 0.01
    assert pickle.loads(pickle.dumps(likelihood))._kept == {}


def test_prox_inside_inference_mode_and_a_gradient_after_it():
    operator = Blur(torch.ones(3, 3) / 9, (1, 6, 6))
    y, z = torch.rand(1, 6, 6), torch.rand(1, 1, 6, 6)
    likelihood = Likelihood(y, operator, GaussianNoise(0.1))
    with torch.inference_mode():
        inside = likelihood.prox(z, 30.0)
        made_inside = Likelihood(y.clone(), operator, GaussianNoise(0.1)).prox(z, 30.0)
    torch.testing.assert_close(made_inside, inside)
    leaf = z.clone().requires_grad_(True)
    after = likelihood.prox(leaf, 30.0)
    torch.testing.assert_close(after.detach(), inside)
    assert float(torch.autograd.grad(after.sum(), leaf)[0].abs().sum()) > 0


def test_nothing_is_written_into_the_input():
    for name, operator in operators().items():
        y, z = problem(operator)
        y_before, z_before = y.clone(), z.clone()
        likelihood = Likelihood(y, operator, GaussianNoise(0.1))
        likelihood.prox(z, 1.0), likelihood.grad(z), likelihood.log_prob(z)
        assert torch.equal(y, y_before), name
        assert torch.equal(z, z_before), name


def test_float32_prox_stays_close_to_float64():
    for operator in operators().values():
        y, z = problem(operator)
        wide = Likelihood(y, operator, GaussianNoise(0.05)).prox(z, 10.0)
        narrow = Likelihood(y.float(), operator, GaussianNoise(0.05)).prox(z.float(), 10.0)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GaussianNoise(-0.1), r"sigma is -0\.1: expected a standard deviation"),
        (lambda: GaussianNoise(float("nan")), "sigma is nan: expected"),
        (lambda: GaussianNoise(torch.tensor([0.1, -1.0])), r"sigma holds -1\.0: expected"),
        (lambda: PoissonNoise(0.0), r"gain is 0\.0: expected"),
        (
            lambda: Likelihood(torch.zeros(3, 3), Identity((1, 3, 3)), GaussianNoise(1)),
            r"y has shape \(3, 3\): expected",
        ),
        (
            lambda: Likelihood(torch.full((1, 3, 3), torch.nan), Identity((1, 3, 3)), GaussianNoise(1)),
            "y holds 9 values that are not finite",
        ),
        (
            lambda: Likelihood(torch.zeros(1, 3, 3), Identity((1, 3, 3)), GaussianNoise(torch.ones(5))),
            r"sigma has shape \(5,\): expected one number",
        ),
    ],
)
def test_wrong_use_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_wrong_calls_are_refused_in_a_sentence():
    likelihood = Likelihood(torch.zeros(1, 3, 3), Identity((1, 3, 3)), GaussianNoise(0.0))
    x = torch.zeros(2, 1, 3, 3)
    with pytest.raises(ValueError, match="sigma is 0, where log_prob does not exist"):
        likelihood.log_prob(x)
    with pytest.raises(ValueError, match=r"rho is 0\.0: expected a penalty"):
        likelihood.prox(x, 0.0)
    with pytest.raises(TypeError, match=r"noise is float: expected a noise model, such as GaussianNoise"):
        Likelihood(torch.zeros(1, 3, 3), Identity((1, 3, 3)), 0.05)
    with pytest.raises(TypeError, match=r"operator is function: expected an Operator; wrap a function with"):
        Likelihood(torch.zeros(1, 3, 3), lambda v: v, GaussianNoise(1))
    with pytest.raises(TypeError, match="expected a float tensor"):
        Likelihood(torch.zeros(1, 3, 3, dtype=torch.uint8), Identity((1, 3, 3)), GaussianNoise(1))
    square = from_function(lambda v: v**2, (1, 3, 3), linear=False)
    with pytest.raises(ValueError, match="prox needs a linear operator"):
        Likelihood(torch.zeros(1, 3, 3), square, GaussianNoise(1)).prox(x, 1.0)
    many = Likelihood(torch.zeros(3, 1, 3, 3), Identity((1, 3, 3)), GaussianNoise(1))
    with pytest.raises(ValueError, match="x has 2 members and y 3 measurements"):
        many.prox(x, 1.0)
