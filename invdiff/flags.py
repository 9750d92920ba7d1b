"""Options that several commands of the command line take, as Typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import OPTION_NAMES

__all__ = [
    "Alpha",
    "Boundary",
    "DataRange",
    "Factor",
    "Keep",
    "Kind",
    "MaskFile",
    "MaskKind",
    "MaskSeed",
    "Out",
    "Overwrite",
    "Pattern",
    "Psf",
    "PsfIndex",
    "PsfKey",
    "PsfKind",
    "Reduction",
    "Seed",
    "Weights",
    "operator_options",
    "option",
]


def option(*names: str, help: str) -> Any:
    """An option whose default is shown in the help."""
    return typer.Option(*names, help=help, show_default=True)


Out = Annotated[Path, option("--out", help="Folder for the results; made here.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace results in a folder that is not empty.")]
Alpha = Annotated[str, option("--alpha", help="refuse an alpha channel, or flatten it on white or black.")]
DataRange = Annotated[
    float | None, option("--data-range", help="Value that stands for white (255, 65535, or 1 for float).")
]
Seed = Annotated[int, option("--seed", help="Seed of draws and simulated noise, from 0 on.")]
Kind = Annotated[str, option("--operator", help="blur, downsample, mask, gray, denoise or bayer.")]
Psf = Annotated[Path | None, option("--psf", help="blur, downsample: PSF file (.npy, .mat or an image).")]
PsfKind = Annotated[
    str | None,
    option("--psf-kind", help="Instead of a file: gaussian:1.5, disk:3, motion:9:30 or uniform:5 (pixels)."),
]
PsfIndex = Annotated[int | None, option("--psf-index", help="Which PSF, from 0, of a file that holds several.")]
PsfKey = Annotated[str | None, option("--psf-key", help="Which variable of a .mat file that holds several.")]
Boundary = Annotated[
    str | None,
    option("--boundary", help="blur: valid for a photograph; circular (default), reflect, replicate or zero."),
]
Factor = Annotated[int | None, option("--factor", help="downsample: whole factor (default 4).")]
Reduction = Annotated[str | None, option("--kind", help="downsample: box (default), bicubic or psf.")]
MaskFile = Annotated[
    Path | None, option("--mask", help="mask: image or .npy, white (1) is seen, black (0) is missing.")
]
Keep = Annotated[float | None, option("--keep", help="mask: share of the pixels seen in a random mask (default 0.3).")]
MaskKind = Annotated[str | None, option("--mask-kind", help="mask: random (default), box, half or text.")]
MaskSeed = Annotated[int | None, option("--mask-seed", help="mask: seed of random and text masks (default 0).")]
Weights = Annotated[str | None, option("--weights", help="gray: bt601 (default) or bt709.")]
Pattern = Annotated[str | None, option("--pattern", help="bayer: RGGB (default), BGGR, GRBG or GBRG.")]


def operator_options(context: typer.Context) -> dict[str, Any]:
    """Those of `options.build_operator` that were given to a command, None for the others."""
    return {name: context.params[name] for name in OPTION_NAMES}
