"""The report as a file: complete, closed, true to the draws, and a sentence for everything that cannot be shown."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

import invdiff.html.report
from invdiff import Posterior, sample, statistics
from invdiff.cli import main
from invdiff.html import write_report
from invdiff.html.pictures import _place
from invdiff.images import write_image
from invdiff.operators import Blur, Identity, gaussian_psf
from invdiff.priors import GaussianPrior
from invdiff.provenance import read
from invdiff.record import describe
from invdiff.solvers import DDRM
from tests.report_page import SHAPE, data_of, known, page, pixels, run


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A page with everything on it, its draws, and what was known."""
    posterior, contents = run()
    return page(tmp_path_factory.mktemp("page"), posterior, **known(contents)), posterior, contents


def test_nothing_is_asked_of_a_network_and_only_its_own_style_and_script_run(complete):
    text, _, _ = complete
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    addresses = set(re.findall(r"https?://[^\s\"'<>\\]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for kind in ("style", "script"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    # What a policy of hashes would block.
    assert not re.search(r"<[^>]*\s(?:style|on\w+)=", text.partition("<body>")[2].partition("<script")[0])


def test_the_draws_on_the_page_are_the_draws(complete):
    text, posterior, _ = complete
    data = data_of(text)
    assert data["numbers"] == list(range(24))
    for uri, draw in zip(data["draws"], posterior.draws, strict=True):
        expected = (draw.clamp(0, 1) * 255).round().movedim(0, -1).numpy()
        np.testing.assert_array_equal(pixels(uri), expected)


def test_what_is_known_is_shown_with_alternative_texts(complete):
    text, _, contents = complete
    data = data_of(text)
    assert [layer["key"] for layer in data["layers"]] == ["mean", "std", "measurement", "truth", "error"]
    assert [tint["key"] for tint in data["tints"]] == ["variance", "detail"]
    for name in ("measurement", "mean", "std", "truth"):
        assert re.search(rf'<img id="sheet-{name}" src="data:image/png[^>]* alt="[^"]{{5,}}"', text)
    for words in ("Residual chi²", "PSNR of the mean", "Spread / error", "CRPS", "Coverage", "Monte Carlo error"):
        assert words in text
    (uri,) = re.findall(r'id="sheet-truth" src="([^"]*)"', text)
    expected = (contents.truth * 255).round().movedim(0, -1).numpy()
    np.testing.assert_array_equal(pixels(uri), expected)


def test_pictures_carry_what_made_them(complete, tmp_path):
    text, _, _ = complete
    sheet = dict(re.findall(r'id="sheet-(\w+)" src="data:image/png;base64,([^"]*)"', text))
    uris = {"mean": sheet["mean"], "std": sheet["std"], "draw": data_of(text)["draws"][7].partition(",")[2]}
    found = {}
    for name, uri in uris.items():
        (tmp_path / f"{name}.png").write_bytes(base64.b64decode(uri))
        found[name] = read(tmp_path / f"{name}.png")
    assert found["draw"].content == "draw 7 of seed 0"
    assert found["mean"].content == "mean of 24 draws"
    assert found["mean"].source == found["draw"].source == "compositeWithTrainedAlgorithmicMedia"
    assert found["std"].calibration == "uncalibrated spread"


def test_the_spread_that_nobody_checked_says_so_wherever_it_is_shown(complete):
    text, _, _ = complete
    assert text.count("uncalibrated spread") >= 3
    assert re.search(r'alt="Map of the standard deviation of the draws[^"]*: uncalibrated spread', text)


def test_the_overlay_shows_what_the_mask_hid(complete):
    text, _, contents = complete
    variance = pixels(data_of(text)["tints"][0]["uri"])
    hidden = (contents.operator.singular[0] == 0).numpy()
    assert variance[hidden].mean() > 250
    assert variance[~hidden].mean() < 220


def test_a_run_in_a_folder_is_enough(tmp_path):
    _, contents = run()
    prior = GaussianPrior.power_law(SHAPE)
    likelihood_of = invdiff.Likelihood(contents.measurement, contents.operator, contents.noise)
    sample(DDRM(steps=3), likelihood_of, prior, draws=20, store=tmp_path / "mask.zarr", truth=contents.truth)
    assert main(["report", str(tmp_path / "mask.zarr"), "--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "<h1>mask</h1>" in text
    data = data_of(text)
    assert len(data["draws"]) == 20
    assert [layer["key"] for layer in data["layers"]] == ["mean", "std", "measurement", "truth", "error"]
    assert len(data["tints"]) == 2
    assert str(tmp_path) not in text
    assert 'class="notes"' not in text


def test_of_a_file_it_says_what_is_missing_and_how_to_give_it(tmp_path, capsys):
    posterior, contents = run()
    posterior.save(tmp_path / "posterior.safetensors")
    write_image(tmp_path / "truth.png", contents.truth)
    np.save(tmp_path / "mask.npy", contents.operator.singular[0].numpy())
    arguments = ["report", str(tmp_path / "posterior.safetensors"), "--out", str(tmp_path / "a.html")]
    assert main(arguments) == 0
    text = (tmp_path / "a.html").read_text()
    assert "The run keeps no measurement: give it with --measurement FILE." in text
    assert "give it with --operator and its options" in text
    assert [layer["key"] for layer in data_of(text)["layers"]] == ["mean", "std"]
    np.save(tmp_path / "y.npy", contents.measurement.movedim(0, -1).numpy())
    more = ["--measurement", str(tmp_path / "y.npy"), "--truth", str(tmp_path / "truth.png"), "--title", "Seen"]
    more += ["--operator", "mask", "--mask", str(tmp_path / "mask.npy"), "--overwrite"]
    assert main([*arguments, *more]) == 0
    text = (tmp_path / "a.html").read_text()
    assert "<h1>Seen</h1>" in text
    assert "Residual chi²" in text
    assert len(data_of(text)["tints"]) == 2
    # Of a folder of results the measurement's picture is taken.
    write_image(tmp_path / "measurement.png", contents.measurement)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "b.html")]) == 0
    assert 'id="sheet-measurement"' in (tmp_path / "b.html").read_text()
    assert main(arguments) == 2
    assert "a.html is there already: choose another name, or give overwrite" in capsys.readouterr().err


def test_all_texts_are_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    posterior, contents = run(solver={"name": evil, "steps": evil}, seed=evil)
    posterior.label = f"uncalibrated spread {evil}"
    text = page(tmp_path, posterior, title=evil, **known(contents))
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == 2
    assert "&lt;script&gt;alert(1)" in text
    assert json.loads(json.dumps(data_of(text)))["channels"] == 3


def test_folders_of_this_machine_stay_at_home(tmp_path):
    places = ("dncnn:/home/me/a.pth", "/home/me/b.npy", "C:\\home\\me\\c.npy", "~/home/d.pt", "../home/e.pt")
    posterior, _ = run(
        prior={"name": "DnCNN", "prior": places[0]}, store="/home/me/run.zarr", files=[*places[1:], "3 / 4"]
    )
    text = page(tmp_path, posterior)
    assert "home" not in text.partition("<script")[0]
    for name in ("the prior dncnn:a.pth", "b.npy", "c.npy", "d.pt", "e.pt", "3 / 4"):
        assert name in text


def test_draws_that_failed_are_left_out(tmp_path):
    failed = [{"draw": k, "measurement": 0, "step": 3} for k in (0, 5)]
    posterior, _ = run(failed=failed)
    posterior.draws[[0, 5]] = torch.nan
    text = page(tmp_path, posterior)
    assert data_of(text)["numbers"] == [1, 2, 3, 4, *range(6, 24)]
    assert "2 of 24 draws are not finite; they are left out everywhere." in text


def test_a_point_estimate_has_no_draws_and_no_spread(tmp_path):
    posterior, contents = run(draws=1)
    text = page(tmp_path, Posterior(posterior.draws, posterior.record, "point estimate"), **known(contents))
    assert "This is a point estimate: there are no draws to play, and no spread" in text
    assert '<div class="transport" hidden>' in text
    assert 'id="sheet-std"' not in text
    assert "PSNR of the point estimate" in text
    assert data_of(text)["draws"] == []


def test_gray_images_and_those_that_leave_0_to_1(tmp_path):
    posterior, contents = run(shape=(1, 16, 20))
    assert data_of(page(tmp_path, posterior, **known(contents)))["channels"] == 1
    text = page(tmp_path, Posterior(100 * posterior.draws, posterior.record))
    assert re.search(r"Black is \S+ and white \S+, as the values leave \[0, 1\]", text)
    data = data_of(text)
    found = data["low"] + (data["high"] - data["low"]) * pixels(data["draws"][0]) / 255.0
    inside = (100 * posterior.draws[0, 0]).clamp(data["low"], data["high"]).numpy()
    np.testing.assert_allclose(found, inside, atol=(data["high"] - data["low"]) / 500)


def test_several_measurements_are_shown_one_at_a_time(tmp_path):
    posterior, contents = run(draws=6)
    both = torch.stack([posterior.draws, 1 - posterior.draws], 1)
    record = posterior.record | {"batched": True, "measurements": 2}
    given = {name: torch.stack([value, 1 - value]) for name, value in known(contents).items() if name != "operator"}
    text = page(tmp_path, Posterior(both, record), number=1, operator=contents.operator, **given)
    expected = ((1 - posterior.draws[2]).clamp(0, 1) * 255).round().movedim(0, -1).numpy()
    np.testing.assert_array_equal(pixels(data_of(text)["draws"][2]), expected)
    assert len(data_of(text)["layers"]) == 5
    with pytest.raises(ValueError, match="number is 2: the draws are of 2 measurements, from 0"):
        page(tmp_path, Posterior(both, record), number=2)


def test_large_images_are_reduced_and_their_draws_shown_in_a_window(tmp_path, monkeypatch):
    monkeypatch.setattr(invdiff.html.report, "LIMIT", 300_000)
    posterior, contents = run(draws=40, shape=(3, 96, 128))
    posterior.draws[:, :, 60:80, 90:110] += 0.5 * torch.randn(40, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    text = page(tmp_path, posterior, measurement=contents.measurement, truth=contents.truth)
    data = data_of(text)
    assert len(text.encode()) < 300_000
    assert len(data["draws"]) == 32
    assert data["width"] * data["height"] < 96 * 128 / 4
    assert data["top"] < 75 < data["top"] + data["height"]
    assert data["left"] < 100 < data["left"] + data["width"]
    assert f"a window of {data['width']} × {data['height']} pixels" in text
    assert "The page holds the first 32 draws; mean, std and figures are of all 40." in text
    assert '<rect x="' in text.partition('id="sheet-mean"')[2][:500_000]
    draw = posterior.draws[0, :, data["top"] :, data["left"] :][:, : data["height"], : data["width"]]
    expected = (draw.clamp(0, 1) * 255).round().movedim(0, -1).numpy()
    np.testing.assert_array_equal(pixels(data["draws"][0]), expected)


def test_a_folder_in_its_place_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "pages").mkdir()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"pages is a folder: .* such as .*pages.report\.html"):
            write_report(tmp_path / "pages", None, overwrite=overwrite)
    assert list((tmp_path / "pages").iterdir()) == []


def test_what_cannot_be_split_is_said(tmp_path):
    posterior, contents = run(operator=None, noise=None)
    assert "These are draws of the prior alone: nothing was measured." in page(tmp_path, posterior)
    posterior, contents = run(interrupted=True, noise={"name": "GaussianNoise", "sigma": 0.0})
    text = page(tmp_path, posterior, **known(contents))
    assert "The run is not finished: these are the 24 draws that are there so far." in text
    posterior, contents = run(noise={"name": "mine.Noise"})
    text = page(tmp_path, posterior, **known(contents))
    assert "The noise level is not a number that the run keeps: give it with --sigma." in text
    assert "Residual chi²" not in text
    given = {name: value[None] if isinstance(value, torch.Tensor) else value for name, value in known(contents).items()}
    text = page(tmp_path, posterior, sigma=0.1, **given)
    assert "Residual chi²" in text
    assert 'class="notes"' not in text


def test_without_an_svd_the_split_takes_one_tau_and_says_so(tmp_path, monkeypatch):
    operator = Blur(gaussian_psf(0.8), SHAPE, boundary="zero")
    noise = {"name": "GaussianNoise", "sigma": 0.1}
    posterior, contents = run(operator=describe(operator), noise=noise)
    given = {"measurement": operator(contents.truth[None])[0], "operator": operator}
    monkeypatch.setattr("invdiff.measured_part.square_root", None)  # what takes minutes
    text = page(tmp_path, posterior, **given)
    assert "as if images varied by 0.25 in every direction, as there is no SVD of operator and noise" in text
    assert [tint["key"] for tint in data_of(text)["tints"]] == ["variance", "detail"]
    # Noise that varies by pixel has no SVD with a blur, but one with a mask.
    posterior, contents = run(noise={"name": "PoissonNoise", "gain": 0.01})
    assert "in every direction" not in page(tmp_path, posterior, **known(contents))
    operator = Blur(gaussian_psf(0.8), SHAPE)
    posterior, _ = run(operator=describe(operator), noise={"name": "PoissonNoise", "gain": 0.01})
    assert "in every direction" in page(tmp_path, posterior, **given | {"operator": operator})


def test_dependent_draws_are_not_ranked(tmp_path):
    posterior, contents = run(cloud=4)
    dependent = Posterior(posterior.draws, posterior.record, f"{posterior.label} of dependent draws")
    text = page(tmp_path, dependent, **known(contents))
    assert "Coverage and rank of the truth are not shown: the draws depend on each other" in text
    assert "Against the truth" not in text
    assert '<th scope="row">Coverage' not in text
    assert "Against the truth" in page(tmp_path, posterior, **known(contents))


@pytest.mark.parametrize("align", [1, 4])
def test_the_window_lies_where_the_mean_spread_is_largest(align):
    std = torch.rand(1, 24, 32, generator=torch.Generator().manual_seed(0))
    window = _place(std, 24, 32, 0.3, align)
    assert window.top % align == window.left % align == window.height % align == window.width % align == 0
    means = avg_pool2d(std[None], (window.height, window.width), stride=align)
    assert float(window.of(std).mean()) == pytest.approx(float(means.max()))


def test_mean_and_std_are_computed_once(tmp_path, monkeypatch):
    posterior, contents = run()
    asked = []
    monkeypatch.setattr(statistics, "moments", lambda *a, moments=statistics.moments: asked.append(1) or moments(*a))
    page(tmp_path, posterior, measurement=contents.measurement, truth=contents.truth, sigma=0.1)
    assert len(asked) == 1
    assert posterior._kept_moments is None, "draws in memory may change"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"truth": torch.zeros(3, 4, 4)}, r"The truth has shape \(3, 4, 4\): expected \(3, 16, 20\), that of a draw"),
        ({"measurement": torch.zeros(3, 4, 4)}, r"The measurement has shape \(3, 4, 4\): the operator of the draws me"),
        (
            {"operator": Identity(SHAPE)},
            "The operator given is not the one that the draws are of: its name is Identity",
        ),
        ({"operator": Blur(gaussian_psf(1.0), SHAPE)}, "The operator given is not the one that the draws are of"),
        ({"number": 1}, "number is 1: the draws are of 1 measurement, from 0"),
    ],
)
def test_what_does_not_belong_to_the_draws_is_refused(tmp_path, change, sentence):
    posterior, contents = run(draws=4)
    with pytest.raises(ValueError, match=sentence):
        page(tmp_path, posterior, **known(contents) | change)
    assert not list(tmp_path.iterdir())


def test_draws_of_others_take_an_operator(tmp_path):
    posterior, contents = run()
    text = page(tmp_path, Posterior(posterior.draws, {}), sigma=0.1, **known(contents))
    assert "Residual chi²" in text
    assert "Invented share" in text


@pytest.mark.parametrize("name", ["truth", "measurement"])
def test_what_is_not_finite_is_refused(tmp_path, name):
    posterior, contents = run()
    given = known(contents)
    given[name] = given[name].clone()
    given[name][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"The {name} holds values that are not finite: put numbers in their place"):
        write_report(tmp_path / "none.html", posterior, **given)
    assert not (tmp_path / "none.html").exists()


def test_what_is_no_image_is_refused(tmp_path):
    for draws, sentence in (
        (torch.zeros(4, 7), r"The draws have shape \(7,\): a report shows images of 1 or 3 channels, \(C, H, W\)"),
        (torch.zeros(4, 2, 8, 8), r"The draws have shape \(2, 8, 8\): a report shows images of 1 or 3 channels"),
    ):
        with pytest.raises(ValueError, match=sentence):
            page(tmp_path, Posterior(draws, {}))
    with pytest.raises(TypeError, match="posterior is Tensor: expected a Posterior; load it with"):
        page(tmp_path, torch.zeros(4, 1, 8, 8))
    failed = [{"draw": k, "measurement": 0, "step": 1} for k in range(4)]
    record = {"failed": failed, "measurements": 1}
    with pytest.raises(ValueError, match="Every draw failed, so that there is nothing to show"):
        page(tmp_path, Posterior(torch.full((4, 1, 8, 8), torch.nan), record))


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    posterior, _ = run(draws=3)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*missing to write r\.html in: make it first"):
        write_report(tmp_path / "missing" / "r.html", posterior)
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"r\.html is there already: choose another name, or give overwrite"):
        write_report(tmp_path / "r.html", posterior)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path / "r.html", posterior, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text() == "mine"


def test_the_command_refuses_what_it_cannot_use(tmp_path, capsys):
    for arguments, sentence in (
        (["nothing.zarr"], "nothing.zarr is not there: expected the folder of --store, the results of restore"),
        ([str(tmp_path)], "holds no draws as floats: give the folder of --store, or run restore with --keep-posterior"),
        (["run.zarr", "--psf-kind", "gaussian:1"], "--psf-kind is given without --operator: say which operator it is"),
    ):
        assert main(["report", *arguments, "--out", str(tmp_path / "r.html")]) == 2
        assert sentence in capsys.readouterr().err
