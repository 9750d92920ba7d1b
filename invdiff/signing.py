"""Signatures of pictures with the user's own key (C2PA content credentials), through the optional package c2pa-python.

The signature covers every byte of the file, pixels and XMP alike, and nothing goes over the network: there is no time
stamp, so that a signature counts while its certificate does, and no look-up whether the certificate was revoked.
"""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .provenance import Provenance, read, write_whole

__all__ = ["Signer", "Verdict", "lines", "load_signer", "sign", "signer_of", "verify"]

_FORMATS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
# How C2PA calls the signature of a key, by the identifier (DER) that a PKCS 8 file has near its beginning.
_ALGORITHMS = {
    "06082a8648ce3d030107": "es256",
    "06052b81040022": "es384",
    "06052b81040023": "es512",
    "06092a864886f70d010101": "ps256",
    "06032b6570": "ed25519",
}
# The smallest PNG, one black pixel, which a certificate and its key are tried on.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
_OFFLINE = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


@dataclass(frozen=True)
class Signer:
    """A certificate and its key, tried out; `load_signer` makes it.

    Args:
        certificate: the chain as PEM, the signer's own first.
        key: PKCS 8 as PEM, without a password.
        algorithm: C2PA's name of it, such as "es256".
    """

    certificate: bytes
    key: bytes = field(repr=False)
    algorithm: str

    def sign(self, path: str | os.PathLike[str]) -> None:
        """Sign a picture that carries provenance with a source; the file is replaced whole or not at all.

        Raises:
            ValueError: it carries none, or is no PNG, JPEG or TIFF.
            OSError: it cannot be read or written.
        """
        path = Path(path)
        if path.suffix.lower() not in _FORMATS:
            raise ValueError(f"{path.name} cannot be signed: expected .png, .jpg or .tiff.")
        found = read(path)
        if found is None or found.uri is None:
            raise ValueError(f"{path.name} says nothing of its source: write it with provenance.embed, then sign it.")
        signed = self._signed(path.read_bytes(), _FORMATS[path.suffix.lower()], found, path.name)
        write_whole(path, signed)

    def _signed(self, data: bytes, kind: str, provenance: Provenance, title: str) -> bytes:
        c2pa = _package()
        name, _, version = provenance.software.partition(" ")
        agent = {"name": name or "unknown"} | ({"version": version} if version else {})
        # The first action of a manifest without ingredients must be "created", of what was restored too.
        action = {
            "action": "c2pa.created",
            "digitalSourceType": provenance.uri,
            "softwareAgent": agent,
            "description": provenance.sentence(),
        }
        manifest = {
            "claim_generator_info": [agent],
            "title": title,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        info = c2pa.C2paSignerInfo(self.algorithm, self.certificate, self.key, None)
        out = io.BytesIO()
        try:
            with (
                c2pa.Context.from_dict(_OFFLINE) as context,
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(manifest, context) as builder,
            ):
                builder.sign(signer, kind, io.BytesIO(data), out)
        except c2pa.C2paError as error:
            raise ValueError(f"{title} cannot be signed ({_reason(error)}).") from error
        return out.getvalue()


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Args:
        state: "trusted" (intact, and its certificate leads to one that you trust), "valid" (intact), or "invalid".
        signer: the name in the certificate.
        source: the digital source type that was signed, IPTC's full address.
        problems: C2PA's codes of what is wrong, such as "assertion.dataHash.mismatch" after a change of pixels.
    """

    state: str
    signer: str | None
    source: str | None
    problems: tuple[str, ...]


def load_signer(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> Signer:
    """Read a certificate and its key, and try them out on one pixel, so that nothing fails after hours.

    Args:
        certificate: PEM file with the chain, the signer's own certificate first.
        key: PEM file, PKCS 8 without a password: ECDSA (P-256, P-384, P-521), Ed25519 or RSA.

    Raises:
        ImportError: c2pa-python is not installed.
        ValueError: the two do not fit, have another form, or C2PA does not accept them, as when it has expired.
        OSError: a file cannot be read.
    """
    _package()
    chain, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise ValueError(f"{Path(certificate).name} holds no certificate: expected PEM, BEGIN CERTIFICATE.")
    match = re.search(rb"-----BEGIN PRIVATE KEY-----(.*?)-----END PRIVATE KEY-----", secret, re.DOTALL)
    if match is None:
        raise ValueError(
            f"{Path(key).name} holds no key that can be used: expected PEM, BEGIN PRIVATE KEY, without a password; "
            "`openssl pkcs8 -topk8 -nocrypt` makes it of others."
        )
    try:
        head = base64.b64decode(match[1])[:48].hex()
    except ValueError as error:
        raise ValueError(f"{Path(key).name} is damaged: its key is not base64.") from error
    algorithm = next((name for mark, name in _ALGORITHMS.items() if mark in head), None)
    if algorithm is None:
        raise ValueError(f"{Path(key).name} has a key of a kind that C2PA does not use: expected EC, Ed25519 or RSA.")
    signer = Signer(chain, secret, algorithm)
    try:
        signer._signed(_PIXEL, "image/png", Provenance(source="algorithmicMedia"), "a picture")
    except ValueError as error:
        reason = _reason(error.__cause__ or error)
        raise ValueError(f"{Path(certificate).name} and {Path(key).name} cannot sign ({reason}).") from error
    return signer


def sign(path: str | os.PathLike[str], *, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Sign a picture with your own key: `load_signer(certificate, key).sign(path)`, and what both raise."""
    load_signer(certificate, key).sign(path)


def signer_of(certificate: Path | None, key: Path | None) -> Signer | None:
    """The signer of two optional files; None where neither is given, and what `load_signer` raises.

    Raises:
        ValueError: only one of them is given.
    """
    if certificate is not None and key is not None:
        return load_signer(certificate, key)
    if certificate is not None or key is not None:
        given, missing = ("--sign-key", "--sign-cert") if certificate is None else ("--sign-cert", "--sign-key")
        raise ValueError(f"{given} is given without {missing}: a signature needs the certificate and its key.")
    return None


def lines(path: Path, *, trust: Path | None = None) -> list[str]:
    """What a picture says of itself, a line each, and what its signature is worth.

    Raises:
        ValueError: the file is of another kind, damaged, or says nothing; what `verify` raises.
    """
    found = read(path)
    try:
        verdict = verify(path, trust=trust)
        signature = "none"
        if verdict is not None:
            signature = f"{verdict.state}, by {verdict.signer}"
            signature += f" ({', '.join(verdict.problems)})" if verdict.problems else ""
    except ImportError:
        if trust is not None:
            raise
        signature = "not looked for, which needs the package c2pa-python"
    if found is None and signature == "none":
        raise ValueError(f"{path.name} says nothing of how it was made.")
    said = {} if found is None else found.as_dict()
    return [*(f"{name:<12} {value}" for name, value in said.items()), f"{'signature':<12} {signature}"]


def verify(path: str | os.PathLike[str], *, trust: str | os.PathLike[str] | None = None) -> Verdict | None:
    """Whether a picture is as it was signed; None where it is not signed.

    Args:
        path: PNG, JPEG or TIFF.
        trust: PEM file of certificates that you trust; without one nobody is.

    Raises:
        ImportError: c2pa-python is not installed.
        ValueError: the file is of another kind, or damaged, or `trust` holds no certificate.
        OSError: a file cannot be read.
    """
    c2pa = _package()
    path = Path(path)
    settings: dict[str, Any] = dict(_OFFLINE)
    if trust is not None:
        anchors = Path(trust).read_text(encoding="ascii", errors="replace")
        if "-----BEGIN CERTIFICATE-----" not in anchors:
            raise ValueError(f"{Path(trust).name} holds no certificate to trust: expected PEM, such as your root.pem.")
        settings["trust"] = {"user_anchors": anchors}
    try:
        with c2pa.Context.from_dict(settings) as context, path.open("rb") as file:
            reader = c2pa.Reader.try_create(_FORMATS.get(path.suffix.lower()), file, context=context)
            if reader is None:
                return None
            with reader:
                state, results = str(reader.get_validation_state()), reader.get_validation_results() or {}
                manifest = reader.get_active_manifest() or {}
    except c2pa.C2paError as error:
        raise ValueError(f"The signature of {path.name} cannot be read ({_reason(error)}).") from error
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion["data"]["actions"]
    ]
    failures = results.get("activeManifest", {}).get("failure", [])
    return Verdict(
        state=state.lower(),
        signer=manifest.get("signature_info", {}).get("common_name"),
        source=next((action["digitalSourceType"] for action in actions if "digitalSourceType" in action), None),
        problems=tuple(dict.fromkeys(failure["code"] for failure in failures)),
    )


def _package() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise ImportError("Signatures need the package c2pa-python: run `pip install 'invdiff[c2pa]'`.") from error
    return c2pa


def _reason(error: BaseException) -> str:
    """What C2PA says without the kind of error before it."""
    return str(error).partition(": ")[2].rstrip(".") or str(error)
