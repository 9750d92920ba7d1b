"""Pictures say what they are: the right term for each prior, read back from every file, and no pixel changed."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from invdiff import Posterior, priors, provenance
from invdiff.images import read_array, write_image
from invdiff.provenance import EDITED, GENERATED, Provenance, describe, embed, is_generative, read, write_sidecar
from invdiff.record import describe as describe_object

DRAW = Provenance(
    content="draw 7 of seed 3",
    source=EDITED,
    prior='a "prior" <of> & mine',
    weights="ab" * 32,
    operator="Blur(in_shape=[3, 8, 9])",
    noise="GaussianNoise(sigma=0.05)",
    sigma=0.05,
    solver="KPS(steps=5)",
    seed=3,
    draw=7,
    calibration="uncalibrated spread",
    software="invdiff 0.1.0",
)
NATURAL = {"name": "DiffusionPrior", "prior": "natural", "sha256": "cd" * 32}


def _posterior(prior: dict[str, Any], point: bool = False, **more: Any) -> Posterior:
    record = {
        "prior": prior,
        "operator": {"name": "Blur", "in_shape": [1, 4, 4], "constants": {"kernel": {"sha256": "0"}}},
        "noise": {"name": "GaussianNoise", "sigma": 0.02},
        "solver": {"name": "KPS", "steps": 5},
        "seed": 3,
        "environment": {"invdiff": "9.9"},
    }
    label = "point estimate" if point else "uncalibrated spread"
    return Posterior(torch.zeros(1 if point else 4, 1, 4, 4), record | more, label)


def _network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return CONV(x)


CONV = nn.Conv2d(3, 3, 1)
PRIORS = {
    "tv": (lambda: priors.load("tv"), False, False),
    "nlm": (lambda: priors.load("nlm"), False, False),
    "wavelet": (lambda: priors.load("wavelet"), False, False),
    "bilateral": (lambda: priors.load("bilateral"), False, False),
    "median": (lambda: priors.load("median"), False, False),
    "gaussian": (lambda: priors.load("gaussian"), False, False),
    "exact": (lambda: priors.GaussianPrior(torch.zeros(1, 2, 2), torch.eye(4)), False, False),
    "natural": (lambda: priors.load("natural"), True, True),
    "natural on gray": (lambda: priors.match_channels(priors.load("natural"), 1), True, True),
    "natural in tiles": (lambda: priors.Tiled(priors.load("natural"), 512), True, True),
    "a denoiser": (lambda: priors.DnCNN(nn.Conv2d(3, 3, 1), channels=3, sigma_range=(0.0, 0.2)), False, True),
    "a function": (lambda: priors.FunctionPrior(lambda x, s: 0.5 * x, sigma_range=(0, 1)), False, False),
    "a function with a network": (lambda: priors.FunctionPrior(_network, sigma_range=(0, 1)), True, True),
    "any diffusion network": (
        lambda: priors.from_network(
            _network, predicts="x0", sigmas=torch.linspace(0.01, 2, 50), channels=3, self_test=False
        ),
        True,
        True,
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_which_priors_are_generative(name):
    make, point, drawn = PRIORS[name]
    described = json.loads(json.dumps(describe_object(make())))
    assert is_generative(described, drawn=False) == point
    assert is_generative(described, drawn=True) == drawn


def test_the_user_has_the_last_word():
    for stated in (True, False):
        prior = priors.FunctionPrior(_network, sigma_range=(0, 1))
        prior.generative = stated  # type: ignore[attr-defined]
        assert is_generative(describe_object(prior), drawn=True) == stated


def test_what_we_cannot_see_into_counts_as_generative():
    assert is_generative({"name": "FunctionPrior", "function": {"opaque": "somebody.Thing"}}, drawn=True)
    assert not is_generative(None, drawn=True)


@pytest.mark.parametrize(
    ("prior", "point", "what", "more", "source", "content"),
    [
        (NATURAL, False, 2, {}, EDITED, "draw 2 of seed 3"),
        (NATURAL, False, "restored", {}, EDITED, "mean of 4 draws"),
        (NATURAL, True, "restored", {}, EDITED, "point estimate"),
        (NATURAL, False, "std", {}, "dataDrivenMedia", "standard deviation of 4 draws"),
        (NATURAL, False, "figure", {}, "compositeSynthetic", "figure of a restoration"),
        (NATURAL, False, "draws", {}, EDITED, "4 draws"),
        (NATURAL, False, 0, {"operator": None}, GENERATED, "draw 0 of seed 3"),
        (NATURAL, False, 0, {"operator": None, "start": {"sha256": "0"}}, EDITED, "draw 0 of seed 3"),
        ({"name": "TV"}, False, 1, {}, "algorithmicallyEnhanced", "draw 1 of seed 3"),
        ({"name": "TV"}, True, "restored", {}, "algorithmicallyEnhanced", "point estimate"),
        ({"name": "TV"}, True, "figure", {}, "composite", "figure of a restoration"),
        ({"name": "GaussianPrior"}, False, 0, {"operator": None}, "algorithmicMedia", "draw 0 of seed 3"),
    ],
)
def test_what_each_picture_is(prior, point, what, more, source, content):
    found = describe(_posterior(prior, point, **more), what)
    assert (found.source, found.content) == (source, content)
    assert found.uri == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


def test_what_else_a_picture_says():
    found = describe(_posterior(NATURAL), 2)
    assert found == Provenance(
        content="draw 2 of seed 3",
        source=EDITED,
        prior="natural",
        weights="cd" * 32,
        operator="Blur(in_shape=[1, 4, 4])",
        noise="GaussianNoise(sigma=0.02)",
        sigma=0.02,
        solver="KPS(steps=5)",
        seed=3,
        draw=2,
        calibration="uncalibrated spread",
        software="invdiff 9.9",
    )
    assert found.sentence() == (
        "Draw 2 of seed 3 by invdiff 9.9 with the prior natural. Detail that the measurement does not fix is invented "
        "by a generative model. Uncalibrated spread."
    )
    alone = describe(_posterior(NATURAL, operator=None), 2)
    assert "Made by a generative model alone, nothing of it was measured." in alone.sentence()
    assert "generative" not in describe(_posterior({"name": "TV"}), 2).sentence()


def test_the_failed_draws_do_not_count_and_a_point_has_no_calibration():
    failed = _posterior(NATURAL, failed=[{"draw": 0, "measurement": 0, "step": 1}], measurements=1)
    assert describe(failed, "restored").draws == 3
    assert describe(_posterior(NATURAL, point=True), "restored").calibration is None


def test_draws_that_were_moved_say_so():
    moved = _posterior(NATURAL, calibration={"scale": 1.25})
    for what in (2, "draws"):
        assert describe(moved, what).content.endswith(", its distance from the mean scaled by 1.25")
    assert "scaled" not in describe(moved, "restored").content, "the mean is where it was"


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"what is 'x': expected the number of a draw, 'restored', 'std', 'draws'"):
        describe(_posterior(NATURAL), "x")


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("natural", "natural"),
        ("dncnn:/home/me/a b.pth", "dncnn:a b.pth"),
        ("C:\\Users\\me\\w.pth", "w.pth"),
        ("natural:C:\\Users\\me\\w.pth", "natural:w.pth"),
        ("../../secret/", ""),
    ],
)
def test_names_without_the_folders_before_them(text, bare):
    assert describe(_posterior({"name": "X", "prior": text}), 0).prior == bare


def test_paths_stay_at_home():
    record = {
        "solver": {"name": "mine.S", "file": "/home/me/a.npy"},
        "operator": {"name": "A", "b": "/home/me/psf.npy"},
    }
    packet = describe(_posterior({"name": "X", "prior": "/home/me/w.pth"}, **record), 0).packet()
    assert b"a.npy" in packet
    assert b"psf.npy" in packet
    assert b"home" not in packet


@pytest.mark.parametrize(("suffix", "bits"), [(".png", 8), (".png", 16), (".tiff", 8), (".tiff", 16), (".tiff", 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_written_pictures_carry_it_and_keep_their_pixels(tmp_path, suffix, bits, channels):
    image = torch.rand(channels, 21, 34, generator=torch.Generator().manual_seed(0))
    with_it, without = tmp_path / f"with{suffix}", tmp_path / f"without{suffix}"
    write_image(with_it, image, bits=bits, provenance=DRAW)
    write_image(without, image, bits=bits)
    assert read(with_it) == DRAW
    assert read(without) is None
    np.testing.assert_array_equal(read_array(with_it), read_array(without))
    if suffix == ".png":
        with Image.open(with_it) as picture, Image.open(without) as plain:
            assert picture.info["xmp"] == DRAW.packet()
            assert picture.tobytes() == plain.tobytes()
    else:
        with tifffile.TiffFile(with_it) as file:
            assert file.pages[0].tags[700].value == DRAW.packet()
            np.testing.assert_array_equal(file.asarray(), tifffile.imread(without))
    assert not list(tmp_path.glob(".*"))


def test_npy_has_no_place_for_it(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npy cannot hold provenance: use \.png or \.tiff, or leave it out"):
        write_image(tmp_path / "a.npy", torch.zeros(1, 4, 4), bits=32, provenance=DRAW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_pictures_of_others_take_it(tmp_path, kind):
    path = tmp_path / f"photo.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    path.chmod(0o600)
    before = np.asarray(Image.open(path))
    for content in ("draw 1 of seed 0", "draw 2 of seed 0"):
        embed(path, Provenance(content=content, source=EDITED, software="invdiff 0.1.0"))
    assert read(path) == Provenance(content="draw 2 of seed 0", source=EDITED, software="invdiff 0.1.0")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_others_wrote_is_not_lost(tmp_path):
    path = tmp_path / "photo.jpeg"
    theirs = b'<x xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description/></x>'
    Image.new("RGB", (9, 9)).save(path, xmp=theirs)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"photo\.jpeg cannot hold provenance: its XMP is of other software and would"):
        embed(path, DRAW)
    assert path.read_bytes() == before
    assert read(path) is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpeg"]


def test_the_term_of_other_software_is_read(tmp_path):
    path = tmp_path / "photo.png"
    uri = "https://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    packet = provenance.xmp.packet({"Iptc4xmpExt:DigitalSourceType": uri, "xmp:CreatorTool": "a camera"})
    Image.new("L", (5, 5)).save(path)
    path.write_bytes(provenance.xmp.insert(path.read_bytes(), packet))
    assert read(path) == Provenance(source="digitalCapture", software="a camera")


def test_unreadable_files_are_refused_by_name(tmp_path):
    path = tmp_path / "a.gif"
    Image.new("L", (5, 5)).save(path)
    for call in (lambda: read(path), lambda: embed(path, DRAW)):
        with pytest.raises(ValueError, match=r"^a\.gif cannot hold provenance: it is neither PNG, JPEG nor TIFF\.$"):
            call()
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ValueError, match=r"^empty\.png cannot hold provenance: "):
        read(empty)
    bad = tmp_path / "bad.png"
    Image.new("L", (5, 5)).save(bad)
    bad.write_bytes(provenance.xmp.insert(bad.read_bytes(), provenance.xmp.packet({"invdiff:seed": "many"})))
    with pytest.raises(ValueError, match=r"^bad\.png has the seed 'many' in its XMP: expected a number\.$"):
        read(bad)


def test_half_a_file_never_remains(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, torch.zeros(1, 8, 8))
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (self.touch(), _full_disk())[0])
    with pytest.raises(OSError, match="No space left") as caught:
        write_image(path, torch.ones(1, 8, 8), provenance=DRAW)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def _full_disk() -> None:
    raise OSError(28, "No space left on device")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.png").symlink_to(tmp_path / "real" / "b.png")
    write_image(tmp_path / "a.png", torch.zeros(1, 8, 8), provenance=DRAW)
    assert (tmp_path / "a.png").is_symlink()
    assert read(tmp_path / "real" / "b.png") == DRAW


def test_the_sidecar_says_the_same_with_the_hash_of_each_file(tmp_path):
    (tmp_path / "draws").mkdir()
    write_image(tmp_path / "draws" / "7.png", torch.zeros(1, 8, 8), provenance=DRAW)
    write_sidecar(tmp_path / "provenance.json", {"draws/7.png": DRAW})
    found = json.loads((tmp_path / "provenance.json").read_text())
    entry = found["pictures"]["draws/7.png"]
    assert entry.pop("sha256") == hashlib.sha256((tmp_path / "draws" / "7.png").read_bytes()).hexdigest()
    assert entry == DRAW.as_dict()
    assert entry["source"] == DRAW.uri
    assert found["format"] == 1


def test_a_stack_of_draws_carries_it(tmp_path):
    posterior = _posterior(NATURAL)
    posterior.export(tmp_path / "draws.tiff")
    assert read(tmp_path / "draws.tiff") == describe(posterior, "draws")
    with tifffile.TiffFile(tmp_path / "draws.tiff") as file:
        assert len(file.pages) == 4
        assert (file.asarray() == np.asarray(posterior)[:, 0]).all()


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".tiff"])
def test_exiftool_reads_the_same(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, suffix[1:])
    path.write_bytes(file.getvalue())
    embed(path, DRAW)
    run = subprocess.run(["exiftool", "-j", "-G1", "-n", "-XMP:all", path], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)[0]
    assert found["XMP-iptcExt:DigitalSourceType"] == DRAW.uri
    assert found["XMP-dc:Description"] == DRAW.sentence()
    assert found["XMP-xmp:CreatorTool"] == "invdiff 0.1.0"
    assert found["XMP-invdiff:Prior"] == DRAW.prior
    assert found["XMP-invdiff:Draw"] == 7
    checked = subprocess.run(
        ["exiftool", "-validate", "-warning", "-a", path], capture_output=True, text=True, check=True
    )
    warnings = [line for line in checked.stdout.splitlines() if line.startswith("Warning")]
    assert not [line for line in warnings if not re.search("Missing required TIFF", line)]  # Pillow's own
