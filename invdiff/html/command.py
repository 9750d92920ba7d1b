"""What `invdiff report` does: read a run and what else is given, and write the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..arrays import Alpha, from_array
from ..images import read_array
from ..operators import Operator
from ..options import build_operator
from ..posterior import Posterior
from .report import write_report

__all__ = ["report"]


def report(
    run: Path,
    *,
    out: Path,
    measurement: Path | None,
    truth: Path | None,
    operator: str | None,
    operator_options: Mapping[str, Any],
    sigma: float | None,
    calibrator: Path | None,
    anyway: bool,
    title: str | None,
    number: int,
    overwrite: bool,
    alpha: Alpha,
    data_range: float | None,
) -> None:
    """Write the report of a run: the folder of `--store`, the results of `restore`, or a posterior.safetensors."""
    named = [name for name, value in operator_options.items() if value is not None]
    if operator is None and named:
        raise ValueError(f"--{named[0].replace('_', '-')} is given without --operator: say which operator it is of.")
    if anyway and calibrator is None:
        raise ValueError("--anyway is given without --calibrator: it takes one that was made with other settings.")
    folder, posterior = _load(run)
    if measurement is None and folder is not None:
        found = folder / "measurement.png"
        measurement = found if found.is_file() else None
    scaled = None
    if calibrator is not None:
        from ..conformal import Calibrator

        scaled = Calibrator.load(calibrator)
    path = write_report(
        out,
        posterior,
        measurement=_image(measurement, alpha, data_range),
        truth=_image(truth, alpha, data_range),
        operator=None if operator is None else _operator(operator, operator_options, posterior),
        sigma=sigma,
        calibrator=scaled,
        anyway=anyway,
        title=title or (None if folder is None else folder.resolve().name),
        number=number,
        overwrite=overwrite,
    )
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")


def _load(run: Path) -> tuple[Path | None, Posterior]:
    """The posterior, and the folder of results that it lies in, if it does."""
    if not run.exists():
        raise FileNotFoundError(
            f"{run} is not there: expected the folder of --store, the results of restore, or a posterior.safetensors."
        )
    kept = run / "posterior.safetensors"
    if run.is_dir() and not (run / "zarr.json").exists():
        if not kept.is_file():
            raise FileNotFoundError(
                f"{run} holds no draws as floats: give the folder of --store, or run restore with --keep-posterior."
            )
        return run, Posterior.load(kept)
    return None, Posterior.load(run)


def _image(path: Path | None, alpha: Alpha, data_range: float | None) -> Tensor | None:
    if path is None:
        return None
    return from_array(read_array(path), data_range=data_range, alpha=alpha, name=str(path))[0][0]


def _operator(name: str, options: Mapping[str, Any], posterior: Posterior) -> Operator:
    shape = posterior.shape[-3:]
    if len(shape) != 3:
        raise ValueError(
            f"The draws have shape {posterior.shape}: a report shows images of 1 or 3 channels, (C, H, W)."
        )
    # The draws have the shape of what was degraded.
    return build_operator(name, shape, simulate=True, **options)
