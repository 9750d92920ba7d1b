"""Certificates made for a test, which needs the package cryptography."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def _name(common: str) -> Any:
    words = ((x509.oid.NameOID.ORGANIZATION_NAME, "Test"), (x509.oid.NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(kind, word) for kind, word in words])


def _certificate(subject: str, key: Any, issuer: Any, *, authority: bool, days: tuple[int, int]) -> Any:
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("Root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days[0]))
        .not_valid_after(now + datetime.timedelta(days[1]))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.KeyUsage(**usage, decipher_only=False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if not authority:
        purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        about = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
        builder = builder.add_extension(purpose, False).add_extension(about, False)
    return builder.sign(issuer, hashes.SHA256())


def make_identity(folder: Path, kind: str = "es256", days: tuple[int, int] = (-1, 30)) -> tuple[Path, Path, Path]:
    """Files of a chain, its key and its root."""
    authority, key = KEYS["es256"](), KEYS[kind]()
    root = _certificate("Root", authority, authority, authority=True, days=(-400, 400)).public_bytes(PEM)
    own = _certificate("Jo's <lab>", key, authority, authority=False, days=days).public_bytes(PEM)
    secret = key.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    for name, content in (("chain.pem", own + root), ("key.pem", secret), ("root.pem", root)):
        (folder / name).write_bytes(content)
    return folder / "chain.pem", folder / "key.pem", folder / "root.pem"
