"""The peers in the benchmarks: as many evaluations as asked for, at the cost that is counted."""

from __future__ import annotations

import csv
import math
import types

import pytest
import torch

from benchmarks import peers, posterior_peers, quality, quality_methods, quality_tables, tuning
from benchmarks import rows as files
from invdiff import Likelihood, Posterior, compare, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Mask, random_mask
from invdiff.priors.base import as_prior

SHAPE, SIGMA_Y, STEPS = (3, 12, 12), 0.05, 6
PEERS = [method for method in quality_methods.METHODS if not method.startswith("invdiff")]


def task():
    operator = Mask(random_mask(SHAPE, 0.3, seed=0), SHAPE)
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Likelihood(operator(x)[0], operator, GaussianNoise(SIGMA_Y))


def half(x, sigma):
    return 0.5 * x + 0.25


shrunk = as_prior(half)


@pytest.mark.parametrize("method", PEERS)
def test_a_peer_takes_the_evaluations_that_it_is_given(method):
    library, name = method.split()
    pytest.importorskip(library, reason=f"the optional package {library} is not installed")
    made = quality_methods.peer(library, name, task(), shrunk, 2, STEPS)
    assert made is not None
    assert made[1]["nfe"] == str(STEPS)
    assert torch.isfinite(made[0].draws).all()
    # Five iterations of deepinv's MMPS, of which this prior needs three.
    share = 7 if method == "deepinv mmps" else quality_methods.DRAWN.get(method, quality_methods.DRAWN.get(name, 1))
    assert share * STEPS == STEPS + 2 * int(made[1]["nfe_backward"])


@pytest.mark.parametrize(("name", "nfe"), [("dpir", 8), ("dpir_tuned", peers.TUNED["iterations"])])
def test_deepinvs_dpir_has_its_own_steps(name, nfe):
    pytest.importorskip("deepinv", reason="the optional package deepinv is not installed")
    made = quality_methods.run(f"deepinv {name}", task(), shrunk, 2, 100)
    assert made is not None
    assert made[0].point
    assert (made[1]["nfe"], made[0].shape) == (str(nfe), (1, *SHAPE))


def test_what_is_filled_in_is_a_mean_of_what_is_seen():
    pytest.importorskip("deepinv", reason="the optional package deepinv is not installed")
    likelihood = task()
    physics = peers.same(likelihood.operator, "dpir_tuned", SIGMA_Y)
    found = peers.filled_in(physics, likelihood.y[None])
    seen = likelihood.operator.singular.bool().expand(SHAPE)
    assert torch.equal(found[0][seen], likelihood.y[seen])
    for channel, known in zip(found[0], seen, strict=True):
        assert channel[~known].min() >= channel[known].min()
        assert channel[~known].max() <= channel[known].max()
    # Next to a pixel that alone is seen, and of which all others are copies.
    lone = torch.zeros(6, 6)
    lone[2, 3] = 1
    physics = peers.same(Mask(lone, (1, 6, 6)), "dpir_tuned", SIGMA_Y)
    torch.testing.assert_close(peers.filled_in(physics, 0.7 * lone[None, None]), torch.full((1, 1, 6, 6), 0.7))


def test_tuned_settings_are_those_that_the_tuning_found_best():
    found = quality.read(tuning.RESULTS)
    assert [row["settings"] for row in found] == [str(chosen) for chosen in tuning.grid()]
    assert tuning.best(found) == str(peers.TUNED)


def test_our_methods_cost_what_is_counted():
    for name in quality_methods.OURS:
        share = quality_methods.DRAWN.get(name)
        if share:
            cost = share * STEPS
            made, row = quality_methods.own(name, task(), shrunk, 4, cost)
            assert len(made) == 4
            taken = int(row["nfe"]) + 2 * int(row["nfe_backward"])
            # Of two particles each takes half of the steps.
            assert (name, taken) == (name, cost)


def test_every_draw_of_a_cloud_method_has_a_cloud_of_its_own_at_equal_cost():
    for name in quality_methods.CLOUDS:
        made, row = quality_methods.own(name, task(), shrunk, 2, 6)
        assert int(row["particles"]) >= 2
        assert made.record["dependent"] is False
        assert "dependent" not in made.label
    # 100 steps each: MCGDiff's particles cost 100 evaluations, TDS's 300, of which not even 2 are to be had.
    assert quality_methods.cloud("mcgdiff", 450) == {"particles": 4, "steps": 113}
    assert quality_methods.cloud("tds", 210) == {"particles": 2, "steps": 35}


def test_every_solver_for_a_likelihood_is_compared_or_named_as_left_out():
    named = {name for name in solvers.names() if not isinstance(solvers.load(name), solvers.PriorSampler)}
    assert named - set(quality_methods.OURS) == {"kps_cloud", "pnpdm"}
    assert "KPSCloud" in quality.__doc__
    assert "PnPDM" in quality.__doc__


def test_intervals_of_the_table_are_those_of_compare():
    head = {"sigma_y": "0.05", "task": "blur", "nfe": "5", "nfe_backward": "2"}
    rows = [
        head | {"method": method, "image": str(place), "psnr_mean": str(value)}
        for method, values in (("invdiff kps", (20, 25, 30)), ("deepinv ddrm", (19, 23, 27)))
        for place, value in enumerate(values)
    ]
    low, high = compare.interval([-1, -2, -3])
    assert quality_tables.table(rows)[-1].split(" | ")[2:4] == ["5 + 2", f"23.00 [{low:+.2f}, {high:+.2f}]"]


def test_the_table_names_the_particles_of_a_cloud_and_leaves_out_what_cannot_be_compared():
    head = {"sigma_y": "0.05", "task": "blur", "nfe": "5", "nfe_backward": "0", "psnr_mean": "20"}
    rows = [head | {"method": "invdiff kps", "image": "a"}, head | {"method": "azula dps", "image": "b"}]
    rows.append(head | {"method": "invdiff tds", "image": "a", "particles": "2"})
    found = quality_tables.table(rows)
    assert found[0] == "## blur, sigma 0.05"
    assert len(found) == 6
    assert found[-1].startswith("| invdiff tds, clouds of 2 | 1 | 5 |")


def case(method, psnr, crps, coverage):
    head = {"sigma_y": "0.05", "task": "blur", "draws": "19", "method": method}
    figures = zip(psnr, crps, coverage, strict=True)
    return [
        head | {"image": str(place), "psnr_mean": str(a), "crps": str(b), "coverage": str(c)}
        for place, (a, b, c) in enumerate(figures)
    ]


def test_where_we_are_not_first_it_says_so():
    rows = case("invdiff kps", (20, 22), (0.02, 0.03), (0.95, 0.87))
    rows += case("azula mmps", (19, 21), (0.03, 0.04), (0.8, 0.8)) + case(
        "deepinv dpir", (21, 23), (0.05, 0.06), ("", "")
    )
    task, sigma, crops, psnr, crps, coverage = quality_tables.ranks(rows)[-1].strip("| ").split(" | ")
    assert (task, sigma, crops) == ("blur", "0.05", "2")
    assert psnr == "**not first: 2 of 3**, 1.00 [1.00, 1.00] behind deepinv dpir"
    assert crps == "1 of 3, 0.0100 [0.0100, 0.0100] ahead of azula mmps"
    # 0.91 against 0.80.
    assert coverage.startswith("1 of 2, 0.090 [")


def test_the_last_row_is_of_all_tasks():
    def of(task, rows):
        return [row | {"task": task} for row in rows]

    rows = of("blur", case("invdiff kps", (20, 22), (0.02, 0.03), (0.95, 0.85)))
    rows += of("box", case("invdiff kps", (10, 14), (0.04, 0.05), (0.85, 0.95)))
    rows += of("blur", case("azula mmps", (25, 25), (0.01, 0.02), (0.8, 0.8)))
    rows += of("box", case("azula mmps", (1, 1), (0.07, 0.08), (0.6, 0.6)))
    # Takes one of the tasks, and so stands in its row alone.
    rows += of("blur", case("deepinv ddrm", (90, 90), (0, 0), (0.9, 0.9)))
    assert quality_tables.ranks(rows)[2].endswith("deepinv ddrm |")
    for row in rows:
        row |= {"nfe": "5", "nfe_backward": "0"}
    means = [line.split(" | ")[:4] for line in quality_tables.overall(rows)[2:]]
    assert [(name, crops, psnr.split()[0]) for name, crops, _, psnr in means] == [
        ("| invdiff kps", "2", "16.50"),
        ("| azula mmps", "2", "13.00"),
    ]
    *_, box, whole = quality_tables.ranks(rows)
    assert box.startswith("| box | 0.05 | 2 | 1 of 2, ")
    task, sigma, crops, psnr, crps, coverage = whole.strip("| ").split(" | ")
    assert (task, sigma, crops) == ("all", "all", "2")
    # 15 and 18 against 13 and 13.
    assert psnr == "1 of 2, 3.50 [2.00, 5.00] ahead of azula mmps"
    assert crps.startswith("1 of 2, 0.0100 [")
    # Each task is as far from nominal as the others are, though means of both would be right for KPS alone.
    assert coverage == "1 of 2, 0.200 [0.200, 0.200] ahead of azula mmps"


def test_no_rows_make_no_table_and_two_kinds_of_rows_none_either():
    assert len(quality_tables.ranks([])) == 2
    assert quality_tables.overall([]) == quality_tables.table([]) == []
    rows = case("invdiff kps", (20, 22), (0.02, 0.03), (0.95, 0.87))
    rows[1]["draws"] = "8"
    for made in (quality_tables.ranks, quality_tables.overall, quality_tables.table):
        with pytest.raises(ValueError, match="The rows are of 19 draws of x and 8 draws of x: expected one kind"):
            made(rows)


def test_gray_counts_not_for_the_mean_of_endless_draws():
    rows = case("invdiff kps", (20, 22), (0.02, 0.03), (0.95, 0.87))
    rows = [row | {"nfe": "5", "nfe_backward": "0", "psnr_limit": "30"} for row in rows]
    rows += [row | {"task": "gray", "psnr_limit": "nan"} for row in rows]
    assert quality_tables.overall(rows)[2].split(" | ")[3:5] == ["21.00", "30.00"]
    assert quality_tables.table(rows)[-1].split(" | ")[4] == "-"


def test_what_was_measured_cost_as_much_as_kps_and_less_than_a_step_more():
    key = ("image", "task", "sigma_y", "method")
    found = {tuple(row[name] for name in key): row for row in files.read(quality.RESULTS)}
    for (*case, method), row in found.items():
        share = quality_methods.DRAWN.get(method, quality_methods.DRAWN.get(method.split()[1]))
        if not share:
            continue
        cost, reference = (
            int(other["nfe"]) + 2 * int(other["nfe_backward"])
            for other in (row, found[*case, quality_methods.REFERENCE])
        )
        assert reference <= cost < reference + share * int(row["particles"] or 1), (*case, method, cost, reference)


def test_a_method_that_diverged_is_behind_everybody_and_places_are_of_shared_crops():
    nan = ("nan", "nan")
    rows = case("azula pigdm", nan, nan, nan) + case("azula mmps", (19, 21), (0.03, 0.04), (0.8, 0.8))
    rows += case("invdiff kps", (20, 22, 0), (0.02, 0.03, 9), (0.95, 0.87, 0))
    *_, crops, psnr, crps, _ = quality_tables.ranks(rows)[-1].strip("| ").split(" | ")
    # The third crop, which KPS alone has so far, counts nowhere.
    assert (crops, psnr) == ("2", "1 of 3, 1.00 [1.00, 1.00] ahead of azula mmps")
    assert crps.startswith("1 of 3, 0.0100 ")
    rows = case("invdiff kps", nan, nan, nan) + case("azula mmps", (19, 21), (0.03, 0.04), (0.8, 0.8))
    assert quality_tables.ranks(rows)[-1].endswith("| **failed** | **failed** | **failed** |")


def test_a_method_fails_where_one_draw_does():
    truth = torch.full((3, 12, 12), 0.5)
    draws = truth + 0.1 + 0.1 * torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = quality.figures(Posterior(draws, {}), truth)
    assert set(found) == set(quality.FIGURES) - {"seconds"}
    assert found["psnr_mean"] < found["psnr_limit"] - 0.5
    broken = draws.clone()
    broken[2, 0, 0, 0] = math.nan
    made = quality.figures(Posterior(broken, {"failed": [{"draw": 2, "measurement": 0}]}), truth)
    assert all(map(math.isnan, made.values()))
    head = {"sigma_y": "0.05", "task": "blur", "nfe": "5", "nfe_backward": "0", "image": "a"}
    rows = [head | {"method": "invdiff kps"} | found, head | {"method": "invdiff tmpd"} | made]
    assert quality_tables.table(rows)[-1].count("failed") == 6
    rows[1] = head | {"method": "invdiff tmpd"} | found | {"psnr_limit": "nan"}
    assert quality_tables.table(rows)[-1].split(" | ")[4] == "-"


@pytest.mark.parametrize(("draws", "level"), [(8, 7 / 9), (16, 15 / 17), (19, 0.9), (32, 0.9)])
def test_the_level_that_so_many_draws_give(draws, level):
    assert quality_tables.nominal(draws) == pytest.approx(level)
    low, high = Posterior(torch.arange(float(draws))[:, None], {}).interval(quality_tables.nominal(draws))
    assert 0 <= float(low) < float(high) <= draws - 1


def test_two_parts_put_together_are_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("INVDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(quality, "priors", types.SimpleNamespace(load=lambda name: shrunk))
    monkeypatch.setattr(quality, "operators", lambda size, data: {"inpaint70": task().operator})
    monkeypatch.setattr(quality, "crops", lambda *_: [(f"S/{k}", torch.full(SHAPE, k / 4)) for k in range(3)])
    common = ["--tasks", "inpaint70", "--methods", "invdiff pnp_hqs", "--draws", "2", "--size", "12"]
    for part in (["--part", "1/2"], ["--part", "0/2"], ["--merge"]):
        quality.main([*common, *part, "--out", str(tmp_path / "quality.csv")])
    found = quality.read(tmp_path / "quality.csv")
    assert len(quality.read(tmp_path / "quality_part1of2.csv")) == 4
    assert {(row["image"], row["sigma_y"], row["method"]) for row in found} == {
        (f"S/{k}", sigma, f"invdiff {name}")
        for k in range(3)
        for sigma in ("0.01", "0.05")
        for name in ("kps", "pnp_hqs")
    }
    # Nothing is computed twice, not by a part of what stands either.
    monkeypatch.setattr(quality, "run", None)
    quality.main([*common, "--out", str(tmp_path / "quality.csv")])
    (tmp_path / "quality_part0of2.csv").unlink()
    quality.main([*common, "--part", "0/2", "--out", str(tmp_path / "quality.csv")])
    with pytest.raises(SystemExit, match=r"quality\.csv holds 2 draws of 12x12: give --out another file"):
        quality.main([*common, "--draws", "4", "--out", str(tmp_path / "quality.csv")])


@pytest.mark.parametrize("word", ["2/2", "1", "a/2", "1/0"])
def test_what_is_no_part_is_refused(word, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--part", word])
    assert "is no part: expected 0/2 or 1/2, say." in capsys.readouterr().err


def test_a_case_alone_keeps_the_rows_of_the_others(tmp_path, monkeypatch):
    rows = [{"operator": "blur", "solver": "deepinv ddrm", "coverage": 0.5}]
    monkeypatch.setattr(posterior_peers, "run", lambda *_: iter(rows))
    posterior_peers.main(["--out", str(tmp_path / "a.csv")])
    rows[:] = [{"operator": "blur", "solver": "azula dps", "coverage": 0.25}, {**rows[0], "coverage": 0.75}]
    posterior_peers.main(["--out", str(tmp_path / "a.csv")])
    with (tmp_path / "a.csv").open(newline="") as handle:
        assert [(row["solver"], row["coverage"]) for row in csv.DictReader(handle)] == [
            ("deepinv ddrm", "0.7500"),
            ("azula dps", "0.2500"),
        ]
