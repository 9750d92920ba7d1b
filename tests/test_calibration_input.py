"""What `calibration.check` takes, refuses and keeps: names, several measurements, failures, files, merging."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Iterator

import pytest
import torch

from invdiff import Likelihood, Posterior, calibration, sample
from invdiff.calibration import ANOTHER_DRAW, PIXELS, Check
from invdiff.metrics import chi2
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM

SHAPE = (1, 8, 8)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def posteriors(count: int = 4, k: int = 20) -> list[Posterior]:
    return [Posterior(draws(k, *SHAPE, seed=seed), {}) for seed in range(count)]


def truths(count: int = 4) -> torch.Tensor:
    return draws(count, *SHAPE, seed=100)


def same(first: Check, second: Check) -> None:
    assert json.dumps(first.record()) == json.dumps(second.record())


def test_an_image_depends_on_no_other_and_parts_make_the_whole(tmp_path) -> None:
    names = list("abcd")
    whole = calibration.check(posteriors(), truths(), names=names)
    parts = []
    for i in (2, 0):
        some = slice(i, i + 2)
        calibration.check(posteriors()[some], truths()[some], names=names[some]).save(tmp_path / f"{i}.json")
        parts.insert(0, Check.load(tmp_path / f"{i}.json"))
    same(parts[0].merged(parts[1]), whole)
    assert parts[0].names == ("a", "b")
    backwards = calibration.check(posteriors()[::-1], truths().flip(0), names=names[::-1])
    assert backwards.images == whole.images[::-1]
    fewer = calibration.check(posteriors(), truths(), names=names, functionals={})
    assert fewer.scores(PIXELS) == whole.scores(PIXELS)


def test_merging_refuses_what_does_not_belong_together() -> None:
    first = calibration.check(posteriors()[:2], truths()[:2])
    with pytest.raises(ValueError, match="The image '0' is in two of the checks: every image counts once"):
        first.merged(calibration.check(posteriors()[:1], truths()[:1]))
    for settings in ({"levels": (0.6,)}, {"bins": 7}, {"seed": 1}):
        other = calibration.check(posteriors()[2:], truths()[2:], names="cd", **settings)
        with pytest.raises(ValueError, match=f"{next(iter(settings))} of one check is .* merge checks made alike"):
            first.merged(other)


def test_saved_checks_are_whole_and_others_refused(tmp_path) -> None:
    found = calibration.check(posteriors(k=20), truths(), levels=(0.9, 0.95))
    found.save(tmp_path / "check.json")
    again = Check.load(tmp_path / "check.json")
    same(again, found)
    assert str(again) == str(found)
    assert math.isnan(again.scores()[0].coverage[1])
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]
    (tmp_path / "other.json").write_text('{"format": 9}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("text")
    for name in ("other", "list", "text"):
        with pytest.raises(ValueError, match=r"is no saved check .* expected a file that Check.save wrote"):
            Check.load(tmp_path / f"{name}.json")
    with pytest.raises(FileNotFoundError, match=r"none.json is not there: expected a file that Check.save wrote"):
        Check.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        found.save(tmp_path / "none" / "check.json")


def test_posteriors_are_held_one_at_a_time() -> None:
    alive: list[weakref.ref] = []

    def lazily() -> Iterator[Posterior]:
        for i in range(5):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            made = posteriors(i + 1)[i]
            alive.append(weakref.ref(made))
            yield made
            del made

    assert len(calibration.check(lazily(), iter(truths(5))).images) == 5


def test_one_posterior_of_several_measurements_is_as_many_images() -> None:
    prior = GaussianPrior.power_law(SHAPE)
    true = prior.sample(3, seed=1).float()
    likelihood = Likelihood(true + 0.1 * draws(3, *SHAPE), Identity(SHAPE), GaussianNoise(0.1))
    posterior = sample(DDRM(steps=3), likelihood, prior, draws=20)
    found = calibration.check(posterior, true, likelihoods=likelihood)
    assert found.names == ("0[0]", "0[1]", "0[2]")
    for j in range(3):
        alone = Posterior(posterior.draws[:, j], {})
        one = calibration.check([alone], [true[j]], names=[f"0[{j}]"], likelihoods=[likelihood.take(torch.tensor([j]))])
        assert one.images[0] == found.images[j]
        expected = chi2(posterior.draws[:, j], likelihood.y[j], likelihood.operator, 0.1).value
        assert found.images[j].chi2 == pytest.approx(expected)
    # Without a record the shape tells.
    assert len(calibration.check(Posterior(posterior.draws, {}), true).images) == 3


def test_posteriors_of_one_image_count_as_one() -> None:
    # Four measurements of each of three images: by the truth, by labels, and as one posterior of four measurements.
    true = truths(3).repeat_interleave(4, 0)
    by_truth = calibration.check(posteriors(12), true)
    labels = [f"photograph {i // 4}" for i in range(12)]
    by_label = calibration.check(posteriors(12), truths(12), groups=labels)
    for found in (by_truth, by_label):
        assert (found.units, len(found.images)) == (3, 12)
        for pooled in found.pooled.values():
            assert pooled.images == pooled.coverage[0.5].images == pooled.crps.images == 3
    assert [image.unit for image in by_label.images] == labels
    apart = calibration.check(posteriors(12), true, groups=range(12))
    assert apart.units == 12
    for level in (0.5, 0.8):
        shares = [pooled.coverage[level] for pooled in (by_truth.pooled[PIXELS], apart.pooled[PIXELS])]
        assert shares[0].value == pytest.approx(shares[1].value)
    means = torch.tensor([image.quantities[PIXELS].crps for image in by_truth.images]).reshape(3, 4).mean(1)
    assert (
        means.min() - 1e-6
        <= by_truth.pooled[PIXELS].crps.low
        <= by_truth.pooled[PIXELS].crps.high
        <= means.max() + 1e-6
    )
    of_four = Posterior(torch.stack([p.draws for p in posteriors(4)], 1), {"batched": True})
    for settings in ({}, {"groups": "one"}, {"groups": list("aaaa")}):
        four = calibration.check(of_four, truths(1)[0], **settings)
        assert (four.units, len(four.images)) == (1, 4)
    assert calibration.check(of_four, truths(4), groups=list("abba"), names="four").units == 2
    with pytest.raises(ValueError, match="groups has 3 labels for posterior '0': it has 4 measurements"):
        calibration.check(of_four, truths(4), groups=list("abb"))


def test_draws_that_failed_are_left_out(tmp_path) -> None:
    whole = posteriors(2)
    marked = torch.cat([whole[0].draws, torch.full((2, *SHAPE), torch.nan)])
    record = {"failed": [{"draw": k, "measurement": 0, "step": 3} for k in (20, 21)], "measurements": 1}
    unmarked = torch.cat([whole[1].draws, torch.full((1, *SHAPE), torch.inf)])
    gone = torch.full((5, *SHAPE), torch.nan)
    gone[0] = 0.5
    found = calibration.check([Posterior(marked, record), Posterior(unmarked, {}), Posterior(gone, {})], truths(3))
    expected = calibration.check(whole, truths(2), bins=found.bins)
    assert found.images == expected.images
    assert found.left_out == ("2",)
    assert found.names == ("0", "1", "2")
    assert found.lines()[-1] == "left out, as fewer than 2 of their draws did not fail: 2"
    found.save(tmp_path / "check.json")
    assert Check.load(tmp_path / "check.json").left_out == ("2",)
    for measurement in (0, 1):
        both = torch.stack([whole[0].draws, whole[1].draws], 1)
        both[3, measurement] = torch.nan
        record = {"failed": [{"draw": 3, "measurement": measurement, "step": 1}], "measurements": 2, "batched": True}
        pair = calibration.check(Posterior(both, record), truths(2))
        assert [image.quantities[PIXELS].draws for image in pair.images] == [19 + measurement, 20 - measurement]


def test_draws_in_a_folder_are_read(tmp_path) -> None:
    prior, true = GaussianPrior.power_law(SHAPE), truths(1)[0]
    likelihood = Likelihood(true, Identity(SHAPE), GaussianNoise(0.1))
    kept = sample(DDRM(steps=3), likelihood, prior, draws=20, store=tmp_path / "run")
    held = sample(DDRM(steps=3), likelihood, prior, draws=20)
    same(calibration.check(Posterior.load(tmp_path / "run"), true), calibration.check(held, true[None]))
    assert kept.label == calibration.check(kept, true).images[0].label


def test_levels_out_of_reach_are_said() -> None:
    found = calibration.check(posteriors(k=20), truths())
    assert found.pooled[PIXELS].coverage[0.9].images == 4
    assert found.pooled[PIXELS].coverage[0.95].images == 0
    assert "95 % intervals need 39 draws, and there are 20" in found.lines()
    assert math.isnan(found.table()[0]["coverage95"])
    assert found.record()["table"][0]["coverage95"] is None
    assert "| – |" in found.markdown()
    mixed = calibration.check([*posteriors(3), Posterior(draws(39, *SHAPE), {})], truths())
    assert mixed.pooled[PIXELS].coverage[0.95].images == 1
    assert not [line for line in mixed.lines() if "intervals need" in line]
    assert "| 20 to 39 |" in mixed.markdown()


def test_two_draws_have_no_other_to_compare_with() -> None:
    found = calibration.check([*posteriors(3), Posterior(draws(2, *SHAPE), {})], truths(), levels=(0.3,))
    assert found.pooled[ANOTHER_DRAW].images == 3
    assert found.pooled[PIXELS].images == 4


def test_the_table_names_every_figure() -> None:
    rows = calibration.check(posteriors(), truths(), levels=(0.5, 0.125)).table()
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    for name in ("coverage50", "coverage12.5", "crps", "spread_skill", "bias", "dispersion", "chi2"):
        assert {name, f"{name}_low", f"{name}_high"} <= set(rows[0])
    assert rows[0]["quantity"] == PIXELS


REFUSED = {
    "levels": ({"levels": (90,)}, "levels holds 90.0: expected probabilities between 0 and 1"),
    "bins": ({"bins": 1}, "bins is 1: expected a whole number from 2 on"),
    "seed": ({"seed": -1}, "seed is -1: expected an integer from 0 on"),
    "reserved": ({"functionals": {"pixels": torch.exp}}, "A functional is called 'pixels', which is looked at anyway"),
    "infinite": ({"functionals": {"log": lambda x: (x * 0).log()}}, "'log' gives values that are not finite"),
    "mixing": (
        {"functionals": {"sum": lambda x: x.sum()}},
        r"'sum' makes shape \(\) of images of shape \(16, 1, 8, 8\)",
    ),
    "no tensor": ({"functionals": {"list": lambda x: x.tolist()}}, "'list' makes list of images"),
    "names": ({"names": ["a"]}, "There are 4 posteriors and 1 names: expected one for each"),
    "twice": ({"names": list("abca")}, "The name 'a' stands twice"),
    "likelihoods": ({"likelihoods": []}, "There are 4 posteriors and 0 likelihoods"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_cannot_be_used_are_refused(what: str) -> None:
    settings, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        calibration.check(posteriors(), truths(), **settings)


def test_posteriors_without_a_spread_are_refused() -> None:
    point = Posterior(draws(1, *SHAPE), {}, "point estimate")
    with pytest.raises(ValueError, match="Posterior 'b' is a point estimate, which has no spread to check"):
        calibration.check([posteriors()[0], point], truths(2), names=["a", "b"])
    with pytest.raises(ValueError, match="Posterior '0' has 1 draw: a spread needs at least 2"):
        calibration.check(Posterior(draws(1, *SHAPE), {}), truths()[0])
    cloud = Posterior(draws(8, *SHAPE), {}, "uncalibrated spread of dependent draws")
    with pytest.raises(ValueError, match=r"depend on each other.* take one draw of each cloud"):
        calibration.check(cloud, truths()[0])


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no posterior to check"):
        calibration.check([], [])
    with pytest.raises(ValueError, match="There are 4 posteriors and 3 truths"):
        calibration.check(posteriors(), truths(3))
    with pytest.raises(ValueError, match="There are more posteriors than the 3 truths"):
        calibration.check(iter(posteriors()), truths(3))
    with pytest.raises(ValueError, match="There are more truths than the 3 posteriors"):
        calibration.check(iter(posteriors(3)), truths(4))
    with pytest.raises(ValueError, match=r"truth of image '0' has shape \(1, 4, 4\): expected \(1, 8, 8\)"):
        calibration.check(posteriors(1), [draws(1, 4, 4)])
    with pytest.raises(ValueError, match="truth of image '0' holds values that are not finite"):
        calibration.check(posteriors(1), truths(1) * torch.nan)
    with pytest.raises(TypeError, match="truths holds ndarray: expected tensors"):
        calibration.check(posteriors(1), [truths(1)[0].numpy()])
    with pytest.raises(TypeError, match="posteriors holds Tensor: expected what sample returns"):
        calibration.check(draws(1, 5, *SHAPE), truths(1))
    with pytest.raises(TypeError, match="likelihoods holds str: expected Likelihood"):
        calibration.check(posteriors(1), truths(1), likelihoods=["y"])
    likelihood = Likelihood(truths(1)[0], Identity(SHAPE), PoissonNoise(0.1))
    with pytest.raises(TypeError, match="likelihoods is one Likelihood: expected one for each posterior, in a list"):
        calibration.check(posteriors(1), truths(1), likelihoods=likelihood)
    with pytest.raises(ValueError, match="noise of image '0' has not one Gaussian level"):
        calibration.check(posteriors(1), truths(1), likelihoods=[likelihood])
    with pytest.raises(KeyError, match="quantity is 'texture': expected one of 'pixels'"):
        calibration.check(posteriors(), truths()).scores("texture")


def test_intervals_that_miss_are_not_called_faultless_where_the_test_finds_nothing() -> None:
    # Draws that do not vary, about truths on both sides of them: ranks are uneven in each image, and even on the whole.
    still = [Posterior(torch.full((19, *SHAPE), 0.5), {}) for _ in range(8)]
    either = [torch.full(SHAPE, 0.3 if i % 2 else 0.7) for i in range(8)]
    line = calibration.check(still, either, functionals={}, groups=list(range(8))).lines()[0]
    assert line.startswith("pixels: nothing certain found against it (p 0.")
    assert "nominal 90 % intervals hold the truth 0.0 % of the time (0.0 to 0.0)" in line
