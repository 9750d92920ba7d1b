"""What a picture is and how it was made, carried by the picture itself: IPTC's digital source type and ours, in XMP."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import metadata
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import xmp

if TYPE_CHECKING:
    from .operators import Operator
    from .posterior import Posterior

__all__ = [
    "Provenance",
    "bare",
    "degraded",
    "describe",
    "embed",
    "figure",
    "is_generative",
    "read",
    "software",
    "write_sidecar",
    "write_whole",
]

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
EDITED = "compositeWithTrainedAlgorithmicMedia"
GENERATED = "trainedAlgorithmicMedia"
_AI = (EDITED, GENERATED, "compositeSynthetic")

_CLASSICAL = {"BM3D", "Bilateral", "GaussianBlur", "GaussianMixturePrior", "GaussianPrior", "Median", "NonLocalMeans"}
_CLASSICAL |= {"TV", "Wavelet"}
_GENERATIVE = {"ConvertedPrior", "DiffusionPrior"}
# Trained to give the mean, which nothing is drawn from unless a solver that draws is built on them.
_REGRESSION = {"DRUNet", "DnCNN", "FFDNet"}


@dataclass(frozen=True)
class Provenance:
    """What a picture shows and what made it; all that is None is unknown or has no meaning.

    Args:
        content: what it shows, in words: "draw 7 of seed 0", "mean of 32 draws".
        source: a term of IPTC's digital source types, such as "compositeWithTrainedAlgorithmicMedia"; None where we
            cannot say, as of a measurement that somebody gave us.
        prior: its name.
        weights: SHA-256 of the prior's weights, where it has any.
        operator, noise, solver: their class and settings.
        sigma: of Gaussian noise, [0, 1] units, where it is one number.
        seed, draw: of the random stream; None for what is not one draw.
        draws: how many a mean or a map was made from.
        calibration: what the spread of the draws is worth, the label of the posterior.
        software: name and version.
    """

    content: str = ""
    source: str | None = None
    prior: str | None = None
    weights: str | None = None
    operator: str | None = None
    noise: str | None = None
    sigma: float | None = None
    solver: str | None = None
    seed: int | None = None
    draw: int | None = None
    draws: int | None = None
    calibration: str | None = None
    software: str = ""

    @property
    def uri(self) -> str | None:
        """The source as IPTC's full address of the term."""
        return None if self.source is None else VOCABULARY + self.source

    @property
    def generative(self) -> bool:
        """Whether a generative model made some of what the picture shows."""
        return self.source in _AI

    def sentence(self) -> str:
        """What a person should know of the picture."""
        words = [self.content or "picture"]
        words += [f"by {self.software}"] if self.software else []
        words += [f"with the prior {self.prior}"] if self.prior else []
        sentences = [" ".join(words)]
        if self.source == GENERATED:
            sentences.append("made by a generative model alone, nothing of it was measured")
        elif self.generative:
            sentences.append("detail that the measurement does not fix is invented by a generative model")
        sentences += [self.calibration] if self.calibration else []
        return " ".join(f"{text[:1].upper()}{text[1:]}." for text in sentences)

    def as_dict(self) -> dict[str, Any]:
        """What is known, ready for JSON, with the full address of the source."""
        known = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, "")}
        return known | ({"source": self.uri} if self.source else {})

    def packet(self) -> bytes:
        """The XMP packet that says this."""
        values = {"dc:description": self.sentence()}
        if self.software:
            values["xmp:CreatorTool"] = self.software
        if self.uri:
            values["Iptc4xmpExt:DigitalSourceType"] = self.uri
        if self.generative and self.prior:
            values["Iptc4xmpExt:AISystemUsed"] = self.prior
            if self.weights:
                values["Iptc4xmpExt:AISystemVersionUsed"] = f"SHA-256 {self.weights}"
        own = {k: v for k, v in self.as_dict().items() if k not in ("source", "software")}
        return xmp.packet(values | {f"invdiff:{name}": str(value) for name, value in own.items()})


def describe(posterior: Posterior, what: int | str) -> Provenance:
    """Say what a picture made of a posterior is.

    Args:
        posterior: its record says what ran.
        what: the number of a draw; "restored" for the mean or the point estimate; "std" for the map of the standard
            deviation; "draws" for a stack of all; "figure" for one that shows several of these.

    Raises:
        ValueError: for anything else.

    >>> import torch
    >>> from invdiff import Posterior
    >>> describe(Posterior(torch.zeros(2, 1, 4, 4), {"prior": {"name": "TV"}, "seed": 3}), 1).content
    'draw 1 of seed 3'
    """
    record, point = posterior.record, posterior.point
    ai = is_generative(record.get("prior"), drawn=not point)
    measured, count = record.get("operator") is not None, posterior.usable
    # Without a measurement nothing but the prior made the picture, unless it went on from one.
    alone = not measured and record.get("start") is None
    source = (GENERATED if ai else "algorithmicMedia") if alone else (EDITED if ai else "algorithmicallyEnhanced")
    draw = int(what) if isinstance(what, Integral) and not isinstance(what, bool) else None
    if draw is not None:
        content = f"draw {draw}" + (f" of seed {record['seed']}" if "seed" in record else "")
        content += _moved(record)
    elif what == "restored":
        content = "point estimate" if point else f"mean of {count} draws"
    elif what == "std":
        content, source = f"standard deviation of {count} draws", "dataDrivenMedia"
    elif what == "draws":
        content = f"{len(posterior)} draws{_moved(record)}"
    elif what == "figure":
        content, source = "figure of a restoration", "compositeSynthetic" if ai else "composite"
    else:
        raise ValueError(f"what is {what!r}: expected the number of a draw, 'restored', 'std', 'draws', 'figure'.")
    noise = record.get("noise") or {}
    level = noise.get("sigma") if noise.get("name") == "GaussianNoise" else None
    prior = record.get("prior")
    return Provenance(
        content=content,
        source=source,
        prior=bare(str(prior.get("prior") or prior.get("name"))) if isinstance(prior, Mapping) else None,
        weights=_weights(prior),
        operator=_summary(record.get("operator")),
        noise=_summary(noise),
        sigma=float(level) if isinstance(level, int | float) else None,
        solver=_summary(record.get("solver")),
        seed=record.get("seed"),
        draw=draw,
        draws=None if point or draw is not None else count,
        calibration=None if point else posterior.label,
        software=software(record),
    )


def _moved(record: Mapping[str, Any]) -> str:
    """What recalibration made of draws, which are then none of the seed's."""
    found = record.get("calibration")
    return f", its distance from the mean scaled by {found['scale']:.4g}" if found else ""


def degraded(operator: Operator, sigma: float, seed: int) -> Provenance:
    """The provenance of a measurement that was made from a clean image, with Gaussian noise of that sigma and seed."""
    from .record import describe as describe_object

    return Provenance(
        content="measurement made from a clean image",
        source="algorithmicallyEnhanced",
        operator=_summary(describe_object(operator)),
        sigma=sigma,
        seed=seed,
        software=software(),
    )


def figure(content: str) -> Provenance:
    """The provenance of a plot of figures: IPTC's dataDrivenMedia."""
    return Provenance(content=content, source="dataDrivenMedia", software=software())


def is_generative(prior: Any, *, drawn: bool) -> bool:
    """Whether IPTC's "edited using Generative AI" holds for what a prior, described in a record, made.

    A diffusion network is a generative model, also where a solver makes a point estimate with it. TV, BM3D and other
    methods without training are not, nor is a network that was trained to remove noise and only removes noise (the
    definition of `algorithmicallyEnhanced` names noise reduction); draws on it make it a generative model. Networks of
    another kind, and functions that we cannot see into, count as generative, as a missing mark does more harm than one
    too many. An attribute `generative` of the prior, true or false, overrides all of it.

    Args:
        prior: `record["prior"]`.
        drawn: whether the result is draws, or made of draws.

    >>> is_generative({"name": "TV"}, drawn=True), is_generative({"name": "DnCNN"}, drawn=True)
    (False, True)
    """
    if not isinstance(prior, Mapping):
        return False
    stated, name = prior.get("generative"), prior.get("name")
    if isinstance(stated, bool):
        return stated
    if isinstance(prior.get("inner"), Mapping):
        return is_generative(prior["inner"], drawn=drawn)
    function = prior.get("function")
    kind = str(function.get("name")).rpartition(".")[2] if isinstance(function, Mapping) else name
    if name in _GENERATIVE or name in _CLASSICAL:
        return name in _GENERATIVE
    if kind in _REGRESSION:
        return drawn
    return any(_weights(part) is not None or "opaque" in part for part in _parts(prior))


def software(record: Mapping[str, Any] | None = None) -> str:
    """Name and version of what computed: of the record, or of what is installed."""
    version = (record or {}).get("environment", {}).get("invdiff")
    try:
        return f"invdiff {version or metadata.version('invdiff')}"
    except metadata.PackageNotFoundError:
        return "invdiff"


def embed(path: str | os.PathLike[str], provenance: Provenance) -> None:
    """Put provenance into a PNG, JPEG or TIFF file, as XMP; its pixels stay as they are, bit for bit.

    Sign afterwards: a change of the file breaks a signature.

    Raises:
        ValueError: another kind of file, a damaged one, or one whose XMP somebody else wrote, which would be lost.
        OSError: it cannot be read or written.
    """
    path = Path(path)
    data = path.read_bytes()
    with _named(path):
        kept = xmp.extract(data)
        if kept is not None and not any(name.startswith("invdiff:") for name in xmp.properties(kept)):
            raise ValueError("its XMP is of other software and would be lost; embed in a copy without it")
        data = xmp.insert(data, provenance.packet())
    write_whole(path, data)


def read(path: str | os.PathLike[str]) -> Provenance | None:
    """The provenance that a PNG, JPEG or TIFF file carries; None where its XMP says neither ours nor IPTC's.

    Raises:
        ValueError: another kind of file, or a damaged one.
        OSError: it cannot be read.
    """
    path = Path(path)
    # Mapped, since a stack of draws may be longer than the memory.
    with path.open("rb") as file, _named(path), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        packet = xmp.extract(data)
        found = {} if packet is None else xmp.properties(packet)
    values: dict[str, Any] = {}
    for field in fields(Provenance):
        text = found.get(f"invdiff:{field.name}")
        if text is not None and field.name not in ("source", "software"):
            try:
                convert = {"sigma": float, "seed": int, "draw": int, "draws": int}.get(field.name, str)
                values[field.name] = convert(text)
            except ValueError as error:
                raise ValueError(f"{path.name} has the {field.name} {text!r} in its XMP: expected a number.") from error
    source = found.get("Iptc4xmpExt:DigitalSourceType", "").replace("https:", "http:")
    if source.startswith(VOCABULARY):
        values["source"] = source.removeprefix(VOCABULARY)
    return Provenance(**values, software=found.get("xmp:CreatorTool", "")) if values else None


def write_sidecar(path: str | os.PathLike[str], pictures: Mapping[str, Provenance]) -> None:
    """Write JSON that says the same of pictures, for when their metadata is lost, with the SHA-256 of each file.

    Args:
        path: of the JSON file.
        pictures: by their path from the folder of the JSON file, with forward slashes.
    """
    path = Path(path)
    entries = {
        name: {"sha256": hashlib.sha256((path.parent / name).read_bytes()).hexdigest()} | provenance.as_dict()
        for name, provenance in pictures.items()
    }
    text = json.dumps({"format": 1, "pictures": entries}, indent=2, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; links are followed, and what is replaced hands its permissions on."""
    place = path.resolve()
    part = place.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        if place.exists():
            shutil.copymode(place, part)
        os.replace(part, place)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the bytes of a file are refused for becomes a sentence with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path.name} cannot hold provenance: {error}.") from error


def _parts(entry: Any) -> list[Mapping[str, Any]]:
    """A description and all that are nested in it."""
    if isinstance(entry, Mapping):
        return [entry, *(part for value in entry.values() for part in _parts(value))]
    return [part for value in entry for part in _parts(value)] if isinstance(entry, list | tuple) else []


def _weights(prior: Any) -> str | None:
    """The hash of a prior's weights: its own, or that of the first network in it (arrays have hashes too)."""
    for part in _parts(prior):
        if isinstance(part.get("sha256"), str) and ("dtype" not in part):
            return str(part["sha256"])
    return None


def _summary(entry: Any) -> str | None:
    """A class and its plain settings in one line: "BoxDownsample(in_shape=[3, 48, 48], factor=2)"."""
    if not isinstance(entry, Mapping) or "name" not in entry:
        return None
    settings = []
    for name, value in entry.items():
        numbers = isinstance(value, list | tuple) and len(value) <= 4 and all(isinstance(v, int | float) for v in value)
        if name not in ("name", "sha256") and (numbers or isinstance(value, bool | int | float)):
            settings.append(f"{name}={list(value) if isinstance(value, tuple) else value}")
        elif name not in ("name", "sha256") and isinstance(value, str) and len(value) <= 80:
            settings.append(f"{name}={bare(value)}")
    settings += [inner for part in entry.get("operators", ()) if (inner := _summary(part))]
    return f"{bare(str(entry['name']))}({', '.join(settings)})" if settings else bare(str(entry["name"]))


def bare(text: str) -> str:
    """A name without the folders before it, which are nobody else's business.

    >>> bare("dncnn:/home/me/a.pth")
    'dncnn:a.pth'
    """
    kind, rest = re.fullmatch(r"(\w\w+:)?(.*)", text, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return kind + re.split(r"[\\/]", rest)[-1]
