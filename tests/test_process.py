"""Forward processes: every clock maps to noise levels and alpha_bar and back, and to the published discrete ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invdiff.priors.parametrization import KINDS, scalings, to_x0
from invdiff.schedule import EDM, VE, Discrete, Flow, Process, VPCosine, VPLinear, karras

DDPM = Discrete.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
NCSN = Discrete.from_sigmas(torch.logspace(1, -2, 10, dtype=torch.float64))
PROCESSES = {
    "vp": VPLinear(),
    "vp of constant beta": VPLinear(5.0, 5.0),
    "vp from rest": VPLinear(0.0, 20.0),
    "cosine": VPCosine(),
    "cosine without offset": VPCosine(0.0),
    "ve": VE(0.01, 50.0),
    "edm": EDM(),
    "flow": Flow(),
    "ddpm": DDPM,
    "ncsn": NCSN,
}
names = pytest.mark.parametrize("name", PROCESSES)


def inside(process: Process, share: float) -> float:
    """A noise level of the process, between its ends as far as they are within 1e-3 and 1e3."""
    low, high = max(process.sigma_min, 1e-3), min(process.sigma_max, 1e3)
    return low * (high / low) ** share


@names
@settings(deadline=None)
@given(share=st.floats(0, 1))
def test_sigma_to_time_and_back(name, share):
    process = PROCESSES[name]
    sigma = inside(process, share)
    assert float(process.sigma(process.time(sigma))) == pytest.approx(sigma, rel=1e-7)


@names
@settings(deadline=None)
@given(share=st.floats(0.001, 1))
def test_time_to_alpha_bar_and_back(name, share):
    process = PROCESSES[name]
    t = process.time(inside(process, share))
    torch.testing.assert_close(process.from_alpha_bar(process.alpha_bar(t)), t, rtol=1e-6, atol=1e-9)


@names
@settings(deadline=None)
@given(share=st.floats(0, 0.99))
def test_noise_rises_with_the_clock_of_the_process(name, share):
    process = PROCESSES[name]
    times = process.time(torch.tensor([inside(process, share), inside(process, share + 0.01)]))
    assert float(times[0]) < float(times[1]) or (name == "ncsn" and float(times[0]) > float(times[1]))


@names
@settings(deadline=None)
@given(share=st.floats(0, 1))
def test_the_scale_is_that_of_the_family(name, share):
    process = PROCESSES[name]
    sigma = inside(process, share)
    t = process.time(sigma)
    expected = {"flow": 1 / (1 + sigma), "ve": 1.0, "edm": 1.0, "ncsn": 1.0}.get(name, (1 + sigma**2) ** -0.5)
    assert float(process.scale(t)) == pytest.approx(expected, rel=1e-7)
    assert float(process.alpha_bar(t)) == pytest.approx(1 / (1 + sigma**2), rel=1e-7)


@names
def test_answers_are_float64_of_the_shape_asked_for(name):
    process = PROCESSES[name]
    for sigma in (0.5, torch.tensor([0.5, 1.0]), torch.tensor([[0.5], [1.0]]), torch.tensor(1)):
        for answer in (process.time(sigma), process.sigma(process.time(sigma)), process.scale(process.time(sigma))):
            assert answer.dtype == torch.float64
            assert answer.shape == torch.as_tensor(sigma).shape


@names
def test_levels_fall_evenly_in_the_clock(name):
    process = PROCESSES[name]
    low, high = inside(process, 0.1), inside(process, 0.9)
    levels = process.levels(7, low, high)
    torch.testing.assert_close(levels[[0, -1]], torch.tensor([high, low], dtype=torch.float64))
    if name == "edm":
        torch.testing.assert_close(levels, karras(7, low, high))
    else:
        steps = process.time(levels).diff()
        torch.testing.assert_close(steps, steps[:1].expand(6))


def test_ddpm_has_the_noise_levels_of_its_thousand_steps():
    """alpha_bar of Ho et al. 2020: the product of 1 - beta, times being indices and between them in log sigma."""
    product = 1.0
    for t, beta in enumerate(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()):
        product *= 1 - beta
        if t % 111 == 0:
            assert float(DDPM.alpha_bar(t)) == pytest.approx(product, rel=1e-10)
            assert float(DDPM.scale(t)) == pytest.approx(product**0.5, rel=1e-10)
    between = float(DDPM.sigma(400)) ** 0.25 * float(DDPM.sigma(401)) ** 0.75
    assert float(DDPM.sigma(400.75)) == pytest.approx(between, rel=1e-12)


def test_the_continuous_linear_betas_are_the_limit_of_the_thousand():
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    torch.testing.assert_close(VPLinear().sigma(t), DDPM.sigma(1000 * t - 1), rtol=0.04, atol=0)


def test_the_cosine_is_the_published_alpha_bar():
    for t in (0.0, 0.1, 0.5, 0.9, 0.999):
        first, now = (math.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2 for at in (0.0, t))
        assert float(VPCosine().alpha_bar(t)) == pytest.approx(now / first, rel=1e-9)


def test_beyond_its_ends_a_discrete_process_gives_the_nearest():
    assert float(DDPM.time(1e-5)) == 0
    assert float(DDPM.time(1e5)) == 999
    assert float(NCSN.time(1e5)) == 0
    assert float(NCSN.sigma(3)) == pytest.approx(1.0)


def test_the_betas_given_are_not_written_and_not_shared():
    given = torch.linspace(0.9, 0.1, 5)
    process = Discrete(given)
    given.fill_(0.5)
    assert float(process.alpha_bar(0)) == pytest.approx(0.9)


class WithoutDouble(torch.Tensor):
    """A tensor of a device that has no float64, as Apple's: it refuses it until it is brought to the CPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("mps")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if any(item is torch.float64 for item in (*args, *(kwargs or {}).values())):
            raise TypeError("no float64 here")
        return super().__torch_function__(function, types, args, kwargs)


def test_a_device_without_float64_is_computed_for_on_the_cpu():
    plain = torch.tensor([0.01, 0.5, 3.0])
    given = plain.as_subclass(WithoutDouble)
    with pytest.raises(TypeError, match="no float64"):
        given.to(torch.float64)
    for process in PROCESSES.values():
        torch.testing.assert_close(process.time(given), process.time(plain), rtol=0, atol=0)
    for kind in KINDS:
        for found, expected in zip(scalings(kind, given), scalings(kind, plain), strict=True):
            assert type(found) is torch.Tensor
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        x, output = torch.ones(3, 2), torch.full((3, 2), 0.25)
        assert torch.equal(to_x0(kind, output, x, given), to_x0(kind, output, x, plain))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VPLinear(2.0, 1.0), r"beta_min is 2\.0 and beta_max 1\.0: expected 0 <= beta_min <= beta_max"),
        (lambda: VPCosine(-1.0), r"s is -1\.0: expected at least 0 and below 1"),
        (lambda: VE(1.0, 1.0), r"sigma_min is 1\.0 and sigma_max 1\.0: expected 0 < sigma_min < sigma_max"),
        (lambda: EDM(rho=0.0), r"rho is 0\.0: expected a finite number above 0"),
        (lambda: EDM(sigma_min=-1.0), r"sigma_min is -1\.0"),
        (lambda: Discrete(torch.tensor([0.5])), r"alphas_bar has shape \(1,\): expected \(T,\)"),
        (lambda: Discrete(torch.tensor([0.5, 0.0])), "alphas_bar runs from 0 to 0.5: expected numbers above 0 and"),
        (lambda: Discrete(torch.tensor([1.0, 0.5])), r"begins with 1, the image .* give from_network time=lambda t: t"),
        (lambda: Discrete(torch.tensor([0.5, 0.1, 0.2])), "alphas_bar is not strictly rising or falling"),
        (lambda: Discrete.from_betas(torch.tensor([0.5, 1.0])), r"betas has shape \(2,\) and values from 0\.5 to 1"),
        (lambda: Discrete.from_sigmas(torch.tensor([0.5, 0.0])), r"sigmas has shape \(2,\): expected \(T,\) with fin"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
