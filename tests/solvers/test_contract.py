"""What every solver owes to `sample`: a new one is picked up by its name and needs no test of its own here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from invdiff import Likelihood, sample, solvers
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Grayscale, Identity, Mask, from_function, gaussian_psf
from invdiff.priors import FunctionPrior, GaussianPrior

SHAPE = (1, 8, 8)
NAMES = sorted(solvers.names())
SAMPLERS = [name for name in NAMES if solvers.load(name).stochastic]
ALONE = [name for name in NAMES if isinstance(solvers.load(name), solvers.PriorSampler)]
RESTORERS = sorted({*NAMES} - {*ALONE})


# Settings that make a default cheap where the number of its steps is not all: name of the solver -> settings.
CHEAP: dict[str, dict[str, int]] = {name: {"particles": 4} for name in ("tds", "fps_smc", "mcgdiff")}
CHEAP |= {"daps": {"ode_steps": 1, "langevin_steps": 5}, "pnpdm": {"prior_steps": 2}, "kps_cloud": {"particles": 4}}


def quick(name: str):
    """The solver with 12 steps: `steps` of those that draw, `iterations` of those that descend."""
    solver = solvers.load(name)
    known = [field.name for field in dataclasses.fields(solver)]
    count = "steps" if "steps" in known and solver.stochastic else "iterations"
    return dataclasses.replace(solver, **{count: 12} | CHEAP.get(name, {}))


def calls(name: str) -> int:
    """What a draw of the quick solver costs: a call of the prior a step, unless said otherwise here, per particle."""
    return {"heun": 23, "pf_ode": 45, "pnpdm": 24}.get(name, 12) * getattr(quick(name), "particles", 1)


def prior() -> GaussianPrior:
    return GaussianPrior.power_law(SHAPE)


def likelihood(measurements: int | None = None) -> Likelihood:
    mask = (torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    operator = Mask(mask, SHAPE)
    y = operator(prior().sample(measurements or 1, seed=1).float())
    return Likelihood(y if measurements else y[0], operator, GaussianNoise(0.05))


def problem(name: str, measurements: int | None = None) -> Likelihood | None:
    """What the solver takes: None if it draws from the prior alone."""
    return None if name in ALONE else likelihood(measurements)


def test_one_method_one_file():
    folder = Path(solvers.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "cloud", "guided", "prior_sampler"}
    assert files == set(NAMES)
    assert {type(solvers.load(name)).__name__ for name in NAMES} <= set(solvers.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_dataclass_with_no_required_setting_and_a_paper(name):
    solver = solvers.load(name)
    assert isinstance(solver, solvers.Solver)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(solver, dataclasses.fields(solver)[0].name, 1)
    assert re.search(r"[A-Z][a-z]+ (et al\. )?20[0-2]\d.*?(eqs?\.|algorithm|section)", type(solver).__doc__, re.DOTALL)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_has_the_same_bits_for_any_number_of_draws(name):
    few = sample(quick(name), problem(name), prior(), draws=3, micro_batch=2).draws
    many = sample(quick(name), problem(name), prior(), draws=5, micro_batch=2).draws
    assert torch.equal(few, many[:3])
    assert not torch.allclose(many[0], many[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_does_not_depend_on_the_micro_batch(name):
    one = sample(quick(name), problem(name, 2), prior(), draws=3, micro_batch=1).draws
    other = sample(quick(name), problem(name, 2), prior(), draws=3, micro_batch=4).draws
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seeds(name):
    first, again, other = (sample(quick(name), problem(name), prior(), draws=2, seed=s).draws for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("name", RESTORERS)
def test_several_measurements_equal_one_at_a_time(name):
    joint = likelihood(3)
    together = sample(quick(name), joint, prior()).draws
    assert together.shape == (1, 3, *SHAPE)
    alone = sample(quick(name), joint.take(torch.tensor([0])), prior()).draws
    torch.testing.assert_close(together[:, :1], alone, atol=1e-5, rtol=0)
    if not solvers.load(name).stochastic:
        last = sample(quick(name), Likelihood(joint.y[2], joint.operator, joint.noise), prior()).draws
        torch.testing.assert_close(together[:, 2], last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RESTORERS)
def test_members_with_their_own_operator_and_sigma(name):
    generator = torch.Generator().manual_seed(0)
    operator = Mask((torch.rand(2, *SHAPE, generator=generator) < 0.6).float(), SHAPE)
    sigma = torch.tensor([0.02, 0.2]).reshape(2, 1, 1, 1)
    y = operator(prior().sample(2, seed=1).float())
    joint = sample(quick(name), Likelihood(y, operator, GaussianNoise(sigma)), prior()).draws[0, 0]
    single = Likelihood(y[0], operator.take(torch.tensor([0])), GaussianNoise(0.02))
    alone = sample(quick(name), single, prior()).draws[0]
    torch.testing.assert_close(joint, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RESTORERS)
@pytest.mark.parametrize("boundary", ["circular", "reflect"])
def test_a_member_does_not_feel_its_neighbours_operator(name, boundary):
    """PSFs of sum 1 and 3, and of very different sharpness: no norm, cut or step may be taken over both."""
    kernels = torch.stack([gaussian_psf(0.7, 3), 3e3 * gaussian_psf(1.0, 3)])
    operator = Blur(kernels, SHAPE, boundary=boundary)
    if name in ("ddrm", "ddnm", "fps_smc", "mcgdiff") and boundary == "reflect":
        pytest.skip("it needs an SVD")
    y = operator(prior().sample(2, seed=1)) + 0.01
    joint = Likelihood(y, operator, GaussianNoise(0.05))
    together = sample(quick(name), joint, prior(), micro_batch=2).draws[0]
    alone = sample(quick(name), joint.take(torch.tensor([0])), prior(), micro_batch=1).draws[0]
    torch.testing.assert_close(together[:1], alone, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_callers_is_touched(name, global_random_state_is_untouched):
    given = problem(name)
    y = likelihood().y
    plain = sample(quick(name), given, prior())
    steps = []

    def spoil(step, x):
        steps.append(step)
        x.zero_()

    watched = sample(quick(name), given, prior(), on_step=spoil)
    assert given is None or torch.equal(given.y, y)
    assert torch.equal(plain.draws, watched.draws)
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("name", RESTORERS)
@pytest.mark.parametrize("sigma", [0.05, 0.0])
def test_sigma_zero_is_legal_or_refused_in_a_sentence(name, sigma):
    given = Likelihood(likelihood().y, likelihood().operator, GaussianNoise(sigma))
    try:
        result = sample(quick(name), given, prior())
    except solvers.CapabilityError as error:
        assert sigma == 0
        assert "sigma_y is 0" in str(error)
        assert "use PnPADMM" in str(error) or "use KPS" in str(error)
    else:
        assert torch.isfinite(result.draws).all()


@pytest.mark.parametrize("name", RESTORERS)
def test_every_kind_of_problem_runs_or_is_refused_in_a_sentence(name):
    problems = {
        "no svd": Likelihood(
            torch.rand(SHAPE), Blur(gaussian_psf(1.0, 3), SHAPE, boundary="reflect"), GaussianNoise(0.1)
        ),
        "poisson": Likelihood(torch.full(SHAPE, 0.5), Identity(SHAPE), PoissonNoise(0.1)),
        "nonlinear": Likelihood(
            torch.rand(SHAPE), from_function(lambda x: x**2, SHAPE, linear=False), GaussianNoise(0.1)
        ),
        "per pixel": Likelihood(torch.rand(SHAPE), Identity(SHAPE), GaussianNoise(torch.full(SHAPE, 0.1))),
    }
    outcomes = {}
    for kind, given in problems.items():
        try:
            outcomes[kind] = bool(torch.isfinite(sample(quick(name), given, prior()).draws).all())
        except solvers.CapabilityError as error:
            advised = [other for other in RESTORERS if type(quick(other)).__name__ in str(error).split("se ", 1)[1]]
            assert advised, error
            for other in advised:
                assert torch.isfinite(sample(quick(other), given, prior()).draws).all(), (str(error), other)
            outcomes[kind] = True
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_function_serves_as_prior(name):
    shrink = lambda x, sigma: (x + 0.5 * sigma**2) / (1 + sigma**2)  # noqa: E731
    result = sample(quick(name), problem(name), shrink, in_shape=SHAPE)
    assert torch.isfinite(result.draws).all()
    assert result.record["prior"]


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_of_limited_range_is_never_called_outside_it(name):
    asked = []

    def watch(x, sigma):
        asked.append(float(sigma))
        return prior()(x, sigma)

    highest = 15.0 if name in ALONE else 55 / 255
    limited = FunctionPrior(watch, name="watched", sigma_range=(0.01, highest))
    solver = dataclasses.replace(quick(name), s_churn=10.0) if name == "heun" else quick(name)
    result = sample(solver, problem(name), limited, in_shape=SHAPE)
    assert min(asked) >= 0.01 - 1e-9
    assert max(asked) == pytest.approx(highest)
    if name in ALONE:
        assert result.label == "uncalibrated spread"
    else:
        assert result.label == ("heuristic spread" if name in SAMPLERS else "point estimate")


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_of_one_level(name):
    fixed = FunctionPrior(lambda x, sigma: prior()(x, sigma), name="fixed", sigma_range=(25 / 255, 25 / 255))
    if name in SAMPLERS:
        with pytest.raises(solvers.CapabilityError, match=r"fixed,? (which )?serves"):
            sample(quick(name), problem(name), fixed, in_shape=SHAPE)
    else:
        assert torch.isfinite(sample(quick(name), problem(name), fixed).draws).all()


@pytest.mark.parametrize("name", NAMES)
def test_point_estimates_have_no_spread_and_samplers_have(name):
    result = sample(quick(name), problem(name), prior(), draws=2 if name in SAMPLERS else 1)
    if name in SAMPLERS:
        assert result.std().shape == SHAPE
        assert result.label == "uncalibrated spread"
    else:
        with pytest.raises(ValueError, match="one point estimate, which has no spread"):
            result.std()
        with pytest.raises(ValueError, match="ask for draws=1, not 2"):
            sample(quick(name), problem(name), prior(), draws=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_what_ran(name):
    record = sample(quick(name), problem(name), prior(), seed=3).record
    assert record["solver"]["name"] == type(solvers.load(name)).__name__
    assert record["seed"] == 3
    assert record["nfe"] == calls(name)
    assert record["environment"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", ALONE)
def test_a_likelihood_is_refused_by_what_draws_from_the_prior_alone(name):
    called = FunctionPrior(lambda x, sigma: pytest.fail("called"), name="called")
    with pytest.raises(solvers.CapabilityError, match="takes no likelihood: use DDRM or DPS to restore a measurement"):
        sample(quick(name), likelihood(), called)


@pytest.mark.parametrize("name", RESTORERS)
def test_without_a_likelihood_a_restorer_draws_or_names_what_does(name):
    try:
        assert torch.isfinite(sample(quick(name), None, prior()).draws).all()
    except solvers.CapabilityError as error:
        assert "to draw from the prior alone use DDPM or Heun" in str(error)


@pytest.mark.parametrize("name", [*ALONE, "dps"])
@pytest.mark.parametrize("sigma_range", [(0.0, 0.3), (0.1, 40.0)])
def test_the_prior_alone_needs_every_noise_level(name, sigma_range):
    limited = FunctionPrior(lambda x, sigma: x, name="limited", sigma_range=sigma_range)
    sentence = (
        r"cannot draw from the prior alone with limited, which serves noise levels from .* only\. Use a diffusion"
    )
    with pytest.raises(solvers.CapabilityError, match=sentence):
        sample(quick(name), None, limited, in_shape=SHAPE)


def test_a_wrong_channel_count_is_refused():
    gray = FunctionPrior(lambda x, sigma: x, name="gray only", channels=1)
    problem = Likelihood(torch.zeros(1, 8, 8), Grayscale((3, 8, 8)), GaussianNoise(0.1))
    with pytest.raises(
        solvers.CapabilityError, match=r"gray only serves images of 1 channels.*match_channels\(prior, 3\)"
    ):
        sample(solvers.PnPHQS(), problem, gray)


def test_dps_refuses_what_cannot_be_differentiated():
    stiff = FunctionPrior(lambda x, sigma: x, name="stiff", differentiable=False)
    with pytest.raises(solvers.CapabilityError, match="DPS differentiates its prior, and stiff cannot be"):
        sample(solvers.DPS(), likelihood(), stiff)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: solvers.load("ddmr"), r"no solver 'ddmr': did you mean 'ddrm'\?"),
        (lambda: solvers.load("ddrm", etta=1), r"DDRM has no setting 'etta': did you mean 'eta'\?"),
        (lambda: solvers.DDRM(eta=1.5), r"eta of DDRM is 1\.5: expected a number from 0 to 1"),
        (lambda: solvers.DDRM(steps=1), "steps of DDRM is 1: expected a whole number from 2 on"),
        (lambda: solvers.DDRM(schedule="cosin"), "schedule is 'cosin': expected one of karras, vp"),
        (lambda: solvers.DPS(zeta=-1.0), r"zeta of DPS is -1\.0: expected a finite number above 0"),
        (lambda: solvers.PnPHQS(iterations=0), "iterations of PnPHQS is 0: expected a whole number from 1 on"),
        (lambda: solvers.PnPHQS(iterations=2.5), r"iterations of PnPHQS is 2\.5: expected a whole number"),
        (lambda: solvers.REDFP(lam="abc"), "lam of REDFP is 'abc': expected a number"),
        (lambda: solvers.PnPPGD(accelerate="maybe"), "accelerate of PnPPGD is 'maybe': expected true or false"),
        (lambda: solvers.REDGD(lam=float("nan")), "lam of REDGD is nan: expected a finite number above 0"),
        (lambda: solvers.DDRM(sigma_min=1.0, sigma_max=0.5), "expected 0 < sigma_min < sigma_max"),
        (lambda: solvers.DDPM(variance="learned"), "variance of DDPM is 'learned': expected small or large"),
        (lambda: solvers.DDIM(eta=-0.1), r"eta of DDIM is -0\.1: expected a number from 0 to 1"),
        (lambda: solvers.Heun(s_churn=-1.0), r"s_churn of Heun is -1\.0: expected a number from 0 on"),
        (lambda: solvers.Heun(s_noise=0.0), r"s_noise of Heun is 0\.0: expected a finite number above 0"),
        (
            lambda: solvers.DPMpp2M(sigmas=(1.0, 2.0)),
            r"sigmas of DPMpp2M are \(1\.0, 2\.0\): expected falling noise lev",
        ),
        (lambda: solvers.PFODE(sigmas=(1.0, 0.0)), "sigmas of PFODE are .* expected falling noise levels above 0"),
        (lambda: solvers.DDIM(sigmas=()), r"sigmas of DDIM are \(\): expected falling"),
        (lambda: solvers.PiGDM(image_std=None), r"^image_std of PiGDM is None: expected a number\.$"),
        (lambda: solvers.DiffPIR(lam=None), r"^lam of DiffPIR is None: expected a number\.$"),
        (lambda: solvers.KPS(tolerance=None), r"^tolerance of KPS is None: expected a number\.$"),
        (lambda: solvers.REDDiff(lr=None), r"^lr of REDDiff is None: expected a number\.$"),
        (lambda: solvers.DDRM(sigma_min=None), r"^sigma_min of DDRM is None: expected a number\.$"),
        (lambda: solvers.PnPHQS(sigma_start=None), r"^sigma_start of PnPHQS is None: expected a number\.$"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_that_may_be_left_out_take_none():
    assert solvers.DDRM(sigma_max=None).sigma_max is None
    assert solvers.PnPHQS(sigma_end=None).sigma_end is None
    assert solvers.TDS(tau=None).tau is None
