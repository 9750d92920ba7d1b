"""Options that several commands of the command line take, as Typer reads them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import OPTION_NAMES

__all__ = ["Alpha", "DataRange", "Kind", "Out", "Overwrite", "Seed", "option", "takes_operator"]


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
_OPERATOR: dict[str, Any] = {
    "psf": Annotated[Path | None, option("--psf", help="blur, downsample: PSF file (.npy, .mat or an image).")],
    "psf_kind": Annotated[
        str | None,
        option("--psf-kind", help="Instead of a file: gaussian:1.5, disk:3, motion:9:30 or uniform:5 (pixels)."),
    ],
    "psf_index": Annotated[int | None, option("--psf-index", help="Which PSF, from 0, of a file that holds several.")],
    "psf_key": Annotated[str | None, option("--psf-key", help="Which variable of a .mat file that holds several.")],
    "boundary": Annotated[
        str | None,
        option("--boundary", help="blur: valid for a photograph; circular (default), reflect, replicate or zero."),
    ],
    "factor": Annotated[int | None, option("--factor", help="downsample: whole factor (default 4).")],
    "kind": Annotated[str | None, option("--kind", help="downsample: box (default), bicubic or psf.")],
    "mask": Annotated[
        Path | None, option("--mask", help="mask: image or .npy, white (1) is seen, black (0) is missing.")
    ],
    "keep": Annotated[
        float | None, option("--keep", help="mask: share of the pixels seen in a random mask (default 0.3).")
    ],
    "mask_kind": Annotated[str | None, option("--mask-kind", help="mask: random (default), box, half or text.")],
    "mask_seed": Annotated[int | None, option("--mask-seed", help="mask: seed of random and text masks (default 0).")],
    "weights": Annotated[str | None, option("--weights", help="gray: bt601 (default) or bt709.")],
    "pattern": Annotated[str | None, option("--pattern", help="bayer: RGGB (default), BGGR, GRBG or GBRG.")],
}


def takes_operator(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `options.build_operator` behind its own, which it gets as `operator_options`."""
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def called(**given: Any) -> None:
        command(operator_options={name: given.pop(name) for name in OPTION_NAMES}, **given)

    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "operator_options"]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_OPERATOR[name])
        for name in OPTION_NAMES
    ]
    # Typer reads both.
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
