"""Signatures with self-made certificates: made, checked, and broken by any change of the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from invdiff import provenance, signing
from invdiff.provenance import EDITED, Provenance
from invdiff.signing import Verdict, load_signer, sign, verify

pytest.importorskip("c2pa", reason="signatures need the package c2pa-python")
pytest.importorskip("cryptography", reason="the tests' certificates need the package cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.certificates import KEYS, PEM, PKCS8, make_identity

SAID = Provenance(content="draw 1 of seed 0", source=EDITED, prior="natural", software="invdiff 0.1.0")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_identity(tmp_path_factory.mktemp("identity"))


def _picture(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    provenance.embed(path, SAID)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_a_signed_picture_is_valid_and_any_change_of_it_is_seen(tmp_path, identity, suffix):
    chain, key, root = identity
    path = _picture(tmp_path / f"a.{suffix}")
    before = np.asarray(Image.open(path))
    assert verify(path) is None
    sign(path, certificate=chain, key=key)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), before)
    assert provenance.read(path) == SAID
    assert verify(path) == Verdict("valid", "Jo's <lab>", SAID.uri, ("signingCredential.untrusted",))
    assert verify(path, trust=root) == Verdict("trusted", "Jo's <lab>", SAID.uri, ())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    whole = path.read_bytes()
    pixels = {"png": whole.find(b"IDAT") + 99, "jpg": len(whole) - 99, "tiff": 99}[suffix]
    for place in (pixels, whole.index(b"draw 1")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = verify(path, trust=root)
        assert found is not None
        assert (found.state, found.problems) == ("invalid", ("assertion.dataHash.mismatch",))


def test_pixels_painted_over_are_seen_though_the_manifest_is_kept(tmp_path, identity):
    path = _picture(tmp_path / "a.tiff")
    sign(path, certificate=identity[0], key=identity[1])
    data, row = path.read_bytes(), np.asarray(Image.open(path))[0].tobytes()
    assert data.count(row) == 1
    path.write_bytes(data.replace(row, bytes(len(row))))
    assert (np.asarray(Image.open(path))[0] == 0).all()
    found = verify(path, trust=identity[2])
    assert found is not None
    assert found.state == "invalid"


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_that_c2pa_knows(tmp_path, kind):
    chain, key, root = make_identity(tmp_path, kind)
    signer = load_signer(chain, key)
    assert signer.algorithm == kind
    assert "PRIVATE" not in repr(signer)
    path = _picture(tmp_path / "a.png")
    signer.sign(path)
    found = verify(path, trust=root)
    assert found is not None
    assert found.state == "trusted"


def test_a_file_without_a_certificate_to_trust_is_named(tmp_path):
    path = _picture(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=r"picture\.png holds no certificate to trust: expected PEM"):
        verify(path, trust=path)


def test_somebody_else_is_not_trusted(tmp_path, identity):
    path = _picture(tmp_path / "a.png")
    sign(path, certificate=identity[0], key=identity[1])
    other = make_identity(tmp_path)[2]
    found = verify(path, trust=other)
    assert found is not None
    assert (found.state, found.problems) == ("valid", ("signingCredential.untrusted",))


def test_nothing_goes_over_the_network(tmp_path, identity, monkeypatch):
    asked: list[Any] = []
    import c2pa

    info = c2pa.C2paSignerInfo
    monkeypatch.setattr(c2pa, "C2paSignerInfo", lambda *words: (asked.append(words[3]), info(*words))[1])
    path = _picture(tmp_path / "a.png")
    sign(path, certificate=identity[0], key=identity[1])
    assert asked
    assert set(asked) == {None}  # no address of a time stamp
    assert signing._OFFLINE["verify"] == {"remote_manifest_fetch": False, "ocsp_fetch": False}


def test_files_that_cannot_sign_are_refused_before_anything_runs(tmp_path, identity):
    chain, key, root = identity
    other = tmp_path / "other"
    other.mkdir()
    wrong = make_identity(other)[1]
    locked, odd, broken = tmp_path / "locked.pem", tmp_path / "odd.pem", tmp_path / "broken.pem"
    password = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(KEYS["es256"]().private_bytes(PEM, PKCS8, password))
    curve = ec.generate_private_key(ec.SECP256K1())
    odd.write_bytes(curve.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    broken.write_text("-----BEGIN PRIVATE KEY-----\nA\n-----END PRIVATE KEY-----\n")
    cases = [
        (chain, wrong, r"chain\.pem and key\.pem cannot sign \(.+\)\.$"),
        (root, key, r"root\.pem and key\.pem cannot sign \(the certificate was self-signed\)\.$"),
        (key, key, r"^key\.pem holds no certificate: expected PEM, BEGIN CERTIFICATE\.$"),
        (chain, chain, r"^chain\.pem holds no key that can be used: expected PEM, BEGIN PRIVATE KEY, without a pass"),
        (chain, locked, r"^locked\.pem holds no key that can be used: .*openssl pkcs8 -topk8 -nocrypt"),
        (chain, odd, r"^odd\.pem has a key of a kind that C2PA does not use: expected EC, Ed25519 or RSA\.$"),
        (chain, broken, r"^broken\.pem is damaged: its key is not base64\.$"),
    ]
    for certificate, secret, message in cases:
        with pytest.raises(ValueError, match=message):
            load_signer(certificate, secret)
    with pytest.raises(FileNotFoundError):
        load_signer(tmp_path / "none.pem", key)


def test_a_certificate_that_has_expired_is_refused(tmp_path):
    chain, key, _ = make_identity(tmp_path, days=(-9, -1))
    with pytest.raises(ValueError, match=r"cannot sign \(the certificate was not valid at time of signing\)"):
        load_signer(chain, key)


def test_pictures_that_cannot_be_signed_are_refused_and_stay(tmp_path, identity):
    signer = load_signer(*identity[:2])
    plain, said, odd = tmp_path / "plain.png", tmp_path / "said.png", tmp_path / "a.gif"
    for path in (plain, said, odd):
        Image.new("L", (5, 5)).save(path)
    provenance.embed(said, Provenance(content="measurement", software="invdiff 0.1.0"))
    before = said.read_bytes()
    for path in (plain, said):
        with pytest.raises(ValueError, match=rf"^{path.name} says nothing of its source: write it with provenance"):
            signer.sign(path)
    with pytest.raises(ValueError, match=r"^a\.gif cannot be signed: expected \.png, \.jpg or \.tiff\.$"):
        signer.sign(odd)
    assert said.read_bytes() == before
    damaged = _picture(tmp_path / "damaged.png")
    sign(damaged, certificate=identity[0], key=identity[1])
    data = damaged.read_bytes()
    damaged.write_bytes(data.replace(b"jumb", b"jumx"))
    with pytest.raises(ValueError, match=r"^The signature of damaged\.png cannot be read \(.+\)\.$"):
        verify(damaged)


def test_without_the_package_the_sentence_says_what_to_install(tmp_path, identity, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    path = _picture(tmp_path / "a.png")
    for call in (lambda: load_signer(*identity[:2]), lambda: verify(path), lambda: signing.lines(path, trust=path)):
        with pytest.raises(
            ImportError, match=r"Signatures need the package c2pa-python: run `pip install 'invdiff\[c2"
        ):
            call()
    assert signing.lines(path)[-1] == "signature    not looked for, which needs the package c2pa-python"
