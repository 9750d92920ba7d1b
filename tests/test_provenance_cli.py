"""From the command line: every picture of a folder carries its provenance, marked and signed where asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from invdiff.cli import main
from invdiff.images import read_array
from invdiff.provenance import EDITED, read

NATURAL = ["--prior", "natural", "--set", "solver.steps=2", "--draws", "2"]
TASK = ["--operator", "mask", "--keep", "0.5", "--sigma", "0.05", "--simulate"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a secret place") / "photo.png"
    Image.fromarray(pictures.astronaut()[60:188:2, 180:308:2]).save(path)
    return path


def _run(*words: object) -> int:
    return main([str(word) for word in words])


def _pictures(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.[pt]*") if path.suffix != ".json"}


@pytest.fixture(scope="module")
def restored(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    assert _run("restore", photo, *TASK, *NATURAL, "--out", out) == 0
    return out


def test_every_picture_and_the_sidecar_say_the_same(restored):
    found = _pictures(restored)
    sidecar = json.loads((restored / "provenance.json").read_text())["pictures"]
    expected = {"restored.png", "draws/000.png", "draws/001.png", "std.png", "panel.png", "measurement.png"}
    assert set(found) == set(sidecar) == expected
    for name, path in found.items():
        said = read(path)
        assert said is not None
        entry = sidecar[name]
        assert entry.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
        assert said.as_dict() == entry
    terms = {name: read(path).source for name, path in found.items()}  # type: ignore[union-attr]
    assert terms == {
        "restored.png": EDITED,
        "draws/000.png": EDITED,
        "draws/001.png": EDITED,
        "std.png": "dataDrivenMedia",
        "panel.png": "compositeSynthetic",
        "measurement.png": None,
    }


def test_what_a_draw_says(restored):
    said = read(restored / "draws" / "001.png")
    record = json.loads((restored / "record.json").read_text())
    assert said is not None
    assert (said.content, said.draw, said.seed, said.sigma) == ("draw 1 of seed 0", 1, 0, 0.05)
    assert said.weights == record["weights_sha256"]
    assert said.prior == "natural"
    assert said.solver is not None
    assert said.solver.startswith("KPS(steps=2")
    assert said.operator is not None
    assert said.operator.startswith("Mask(in_shape=[3, 64, 64]")
    assert said.calibration == "uncalibrated spread"
    assert said.software == f"invdiff {record['environment']['invdiff']}"


def test_no_folder_of_the_user_is_in_them(restored, photo):
    for path in [*_pictures(restored).values(), restored / "provenance.json"]:
        assert b"secret" not in path.read_bytes()
        assert str(restored).encode() not in path.read_bytes()


def test_marks_are_drawn_where_they_are_asked_for(restored, photo, tmp_path):
    out = tmp_path / "out"
    assert _run("restore", photo, *TASK, *NATURAL, "--mark", "--keep-posterior", "--out", out) == 0
    for name in ("restored.png", "draws/000.png", "draws/001.png"):
        marked, plain = read_array(out / name), read_array(restored / name)
        changed = (marked != plain).any(2)
        assert 0 < changed.mean() < 0.03
        assert not changed[:32].any()
        assert read(out / name) == read(restored / name)
    np.testing.assert_array_equal(read_array(out / "measurement.png"), read_array(restored / "measurement.png"))


def test_pictures_too_small_for_a_mark_are_written_without_one_and_it_is_said(tmp_path, capsys):
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(tmp_path / "a.png")
    task = ["--operator", "denoise", "--sigma", "0.05", "--prior", "tv", "--solver", "pnp_admm", "--mark"]
    assert _run("restore", tmp_path / "a.png", *task, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "invdiff: warning: The picture has 16 x 16 pixels: too small for a mark that can be read" in said
    assert "It is written without one." in said
    assert read(tmp_path / "out" / "restored.png").source == "algorithmicallyEnhanced"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["tiff", "npy", "png"])
def test_a_measurement_that_was_made_says_so(photo, tmp_path, kind):
    out = tmp_path / "out"
    words = ["--operator", "downsample", "--sigma", "0.03", "--seed", "4", "--format", kind, "--out", out]
    assert _run("degrade", photo, *words) == 0
    for name in {"tiff": ("measurement.tiff", "preview.png"), "npy": ("preview.png",), "png": ("measurement.png",)}[
        kind
    ]:
        said = read(out / name)
        assert said is not None
        assert said.source == "algorithmicallyEnhanced"
        assert (said.sigma, said.seed) == (0.03, 4)
        assert said.operator is not None
        assert "factor=4" in said.operator
        assert b"secret" not in (out / name).read_bytes()
    assert read(out / "truth.png") is None


def test_signed_pictures_and_what_the_command_says_of_them(photo, tmp_path, capsys):
    for package in ("c2pa", "cryptography"):
        pytest.importorskip(package, reason=f"signatures and certificates need the package {package}")
    from tests.certificates import make_identity

    chain, key, root = make_identity(tmp_path)
    task = ["--operator", "denoise", "--sigma", "0.05", "--prior", "tv", "--solver", "pnp_admm"]
    assert _run("restore", photo, *task, "--sign-cert", chain, "--sign-key", key, "--out", tmp_path / "out") == 0
    capsys.readouterr()
    found = _pictures(tmp_path / "out")
    assert set(found) == {"restored.png", "panel.png", "measurement.png"}
    sidecar = json.loads((tmp_path / "out" / "provenance.json").read_text())["pictures"]
    for name, path in found.items():
        assert sidecar[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert _run("provenance", path, "--trust", root) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == ("signature    none" if name == "measurement.png" else "signature    trusted, by Jo's <lab>")
    path = found["restored.png"]
    assert _run("provenance", path) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "content      point estimate"
    assert said[1] == "source       http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
    assert said[-1] == "signature    valid, by Jo's <lab> (signingCredential.untrusted)"
    data = path.read_bytes()
    place = data.index(b"IDAT") + 99
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert _run("provenance", path, "--trust", root) == 0
    assert "invalid, by Jo's <lab> (assertion.dataHash.mismatch)" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "missing"), [("--sign-cert", "--sign-key"), ("--sign-key", "--sign-cert")])
def test_half_of_an_identity_is_refused(photo, tmp_path, capsys, given, missing):
    assert _run("restore", photo, *TASK, *NATURAL, given, photo, "--out", tmp_path / "out") == 2
    sentence = f"{given} is given without {missing}: a signature needs the certificate and its key."
    assert capsys.readouterr().err == f"invdiff: {sentence}\n"
    assert not (tmp_path / "out").exists()


def test_pictures_without_provenance_are_named(photo, capsys):
    assert _run("provenance", photo) == 2
    assert capsys.readouterr().err == "invdiff: photo.png says nothing of how it was made.\n"
