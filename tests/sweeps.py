"""Made-up folders of sweeps, as a run of experiments leaves them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from invdiff.images import write_image

COLUMNS = (
    "image",
    "sha256",
    *("psnr_mean", "psnr_draw", "ssim_mean", "ssim_draw", "lpips", "crps", "coverage90", "spread_skill", "chi2"),
    *("nfe", "nfe_backward", "seconds", "peak_mib", "draws", "label"),
)
VERSIONS = {"invdiff": "0.1.0", "torch": "2.6.0"}


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def write_job(
    sweep: Path,
    path: str,
    *,
    operator: str = "blur",
    prior: str = "tv",
    solver: str = "pnp_hqs",
    figures: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] = VERSIONS,
    pictures: bool = True,
    done: bool = True,
) -> Path:
    """One job's folder; `figures` has a row of figures for each image's name."""
    folder = sweep / path
    folder.mkdir(parents=True)
    names = {"operator": operator, "noise": "gaussian", "prior": prior, "solver": solver, "data": "skimage"}
    whole = {**{part: {"name": name} for part, name in names.items()}, "seed": 0, **(settings or {})}
    with (folder / "figures.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        for image, row in figures.items():
            writer.writerow({"image": image, "sha256": sha(image), **row})
    if pictures:
        for image in figures:
            write_pictures(folder / "pictures" / image, float(figures[image].get("psnr_mean") or 20.0))
    if done:
        key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        record = {"key": key, "settings": whole, "names": names, "versions": dict(versions), "seconds": 1.0}
        (folder / "done.json").write_text(json.dumps(record))
    return folder


def write_pictures(folder: Path, psnr: float, side: int = 16) -> None:
    """A gradient as the truth, and the same with noise of that PSNR as the mean."""
    folder.mkdir(parents=True)
    ramp = torch.linspace(0.1, 0.9, side)
    truth = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.full((side, side), 0.5)])
    noise = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))
    pictures = {"truth": truth, "measurement": truth[:, ::4, ::4], "mean": truth + 10 ** (-psnr / 20) * noise}
    for name, picture in (pictures | {"draw": truth + 1.5 * 10 ** (-psnr / 20) * noise}).items():
        write_image(folder / f"{name}.png", picture.clamp(0, 1))


def rows(psnrs: Sequence[float], *, draws: int = 0, nfe: int = 24, seconds: float = 2.0) -> dict[str, dict[str, Any]]:
    """Rows of images "a", "b", ... with these PSNRs; with draws also the figures of a spread."""
    out = {}
    for place, psnr in enumerate(psnrs):
        row: dict[str, Any] = {"psnr_mean": psnr, "ssim_mean": psnr / 40, "chi2": 1.1, "nfe": nfe, "nfe_backward": 0}
        row |= {"seconds": seconds * (1 + 0.1 * place), "peak_mib": 300 + place, "draws": draws}
        if draws:
            error = 10 ** (-psnr / 20)
            row |= {"psnr_draw": psnr - 2.5, "ssim_draw": psnr / 45, "crps": 0.5 * error, "coverage90": 0.85}
            row |= {"spread_skill": 0.8 + 0.05 * place, "label": "uncalibrated spread"}
        out["abcdefghij"[place]] = row
    return out


def write_sweep(
    sweep: Path, operators: Iterable[str] = ("blur", "down4"), images: int = 3, pictures: bool = True
) -> Path:
    """Three priors of a point solver and one that draws, for each operator."""
    for shift, operator in enumerate(operators):
        for step, prior in enumerate(("gaussian", "tv", "natural")):
            psnrs = [22.0 + 2 * step + 1.5 * place + 0.3 * place * step - shift for place in range(images)]
            path = f"{operator}_{prior}_pnp_hqs"
            write_job(sweep, path, operator=operator, prior=prior, figures=rows(psnrs), pictures=pictures)
        psnrs = [26.5 + 1.4 * place - shift for place in range(images)]
        write_job(
            sweep,
            f"{operator}_natural_ddrm",
            operator=operator,
            prior="natural",
            solver="ddrm",
            figures=rows(psnrs, draws=8, nfe=50, seconds=9.0),
            pictures=pictures,
        )
    return sweep
