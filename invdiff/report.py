"""The output folder of a restoration: pictures, figures and the record, complete or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import plots
from .images import write_image
from .mark import marked
from .provenance import Provenance, describe, embed, software, write_sidecar
from .record import weight_hash
from .restoration import Restoration
from .rim import Rim

if TYPE_CHECKING:
    from .signing import Signer

__all__ = ["output_folder", "weight_hash", "write_json", "write_restoration"]


@contextmanager
def output_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to write into; when the block ends well its content becomes `target`, else nothing remains.

    A new target appears in one rename. In an existing folder (empty, or with `overwrite`) the files are moved in one by
    one, record.json last: a folder with a record is complete. Files of other names are left alone.

    Raises:
        OSError: the target is a file, is not empty without `overwrite`, or cannot be written. This is found on entry.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file: give a folder for the results.")
    exists = target.is_dir()
    if exists and not overwrite and any(target.iterdir()):
        raise FileExistsError(f"The folder {target} is not empty: choose another, or add --overwrite.")
    # Inside an existing folder the stage is on its file system for sure (it may be a mount point).
    parent = target if exists else target.absolute().parent
    made = _make_parents(parent, target)
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name or 'out'}-", suffix=".partial", dir=parent))
    except OSError as error:
        _remove_empty(made)
        raise PermissionError(f"The folder {target} cannot be written ({error.strerror}): choose another.") from error
    try:
        yield stage
        stage.chmod(0o755 & ~_umask())  # mkdtemp makes folders that only their owner reads
        if exists:
            _move_in(stage, target)
        else:
            os.rename(stage, target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(made)
        raise


def _make_parents(parent: Path, target: Path) -> list[Path]:
    """Make what is missing above the target; return it, innermost first."""
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.insert(0, folder)
    except OSError as error:
        _remove_empty(made)
        raise PermissionError(f"The folder {target} cannot be made ({error.strerror}): choose another.") from error
    return made


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _move_in(stage: Path, target: Path) -> None:
    (target / "record.json").unlink(missing_ok=True)
    for entry in sorted(stage.iterdir(), key=lambda path: path.name == "record.json"):
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(entry, place)
    stage.rmdir()


def write_restoration(
    folder: Path,
    result: Restoration,
    record: Mapping[str, Any],
    *,
    bits: int = 8,
    keep_posterior: bool = False,
    mark: bool = False,
    signer: Signer | None = None,
) -> None:
    """Write restored.png, draws/, std.png, measurement.png, panel.png, metrics.json and record.json into a folder.

    Every picture carries its provenance (see `invdiff.provenance`), and provenance.json says the same of them all.

    Args:
        folder: an empty folder.
        result: what `restore` returned.
        record: what ran; the posterior's own record is added to it.
        bits: 8 or 16, of the images (figures have 8).
        keep_posterior: also write posterior.safetensors, the draws as floats, for `Posterior.load`.
        mark: put a small visible label into the corner of restored.png and of the draws (see `mark.marked`); a warning
            says where a picture is too small for it.
        signer: signs every picture whose source is known, which is all but the measurement.
    """
    posterior = result.posterior
    pictures: dict[str, Provenance] = {}

    def write(name: str, image: Tensor, what: int | str) -> None:
        pictures[name] = describe(posterior, what)
        if mark:
            try:
                image = marked(image, pictures[name])
            except ValueError as error:
                warnings.warn(f"{error} It is written without one.", stacklevel=3)
        write_image(folder / name, image, bits=bits, provenance=pictures[name])

    restored = posterior.mean().cpu()
    write("restored.png", restored, "restored")
    if not posterior.point:
        (folder / "draws").mkdir()
        width = max(3, len(str(len(posterior) - 1)))
        for number, draw in posterior.each():
            write(f"draws/{number:0{width}d}.png", draw, number)
    y = result.measurement
    if y.ndim == 3 and y.shape[0] in (1, 3):
        pictures["measurement.png"] = Provenance(content="measurement", software=software(posterior.record))
        write_image(folder / "measurement.png", y, bits=bits, provenance=pictures["measurement.png"])
    has_spread = result.std is not None
    if has_spread:
        plots.uncertainty_map(posterior).savefig(folder / "std.png")
        pictures["std.png"] = describe(posterior, "std")
        embed(folder / "std.png", pictures["std.png"])
    plots.panel(
        y,
        restored,
        draw=None if posterior.point else next(posterior.each())[1].cpu(),
        std=posterior.std().cpu() if has_spread else None,
        truth=result.truth,
        label=posterior.label,
        captions=_captions(result),
        rim=Rim.of(posterior.record),
    ).savefig(folder / "panel.png")
    pictures["panel.png"] = describe(posterior, "figure")
    embed(folder / "panel.png", pictures["panel.png"])
    if signer is not None:
        for name, provenance in pictures.items():
            if provenance.source is not None:
                signer.sign(folder / name)
    write_sidecar(folder / "provenance.json", pictures)
    if keep_posterior:
        posterior.save(folder / "posterior.safetensors")
    write_json(folder / "metrics.json", result.metrics)
    write_json(folder / "record.json", {**record, **posterior.record})


def _captions(result: Restoration) -> dict[str, str]:
    metrics = result.metrics
    count = result.posterior.usable
    notes = {
        "measurement": " x ".join(map(str, result.measurement.shape[-2:])) + f", sigma {result.sigma:.3g}",
        "restored": "point estimate" if result.posterior.point else f"mean of {count} draw{'s' if count > 1 else ''}",
    }
    if result.sigma_estimated:
        notes["measurement"] += " (estimated)"
    if metrics.get("psnr_measurement") is not None:
        notes["measurement"] += f", {metrics['psnr_measurement']:.2f} dB"
    if metrics.get("psnr") is not None:
        notes["restored"] += f", {metrics['psnr']:.2f} dB"
    if metrics.get("psnr_draw") is not None:
        notes["draw"] = f"{metrics['psnr_draw']:.2f} dB on average"
    if "mean_std" in metrics:
        notes["std"] = f"mean {metrics['mean_std']:.3f}"
    if metrics.get("spread_ratio") is not None:
        notes["std"] += f", spread / error {metrics['spread_ratio']:.2f}"
    rim = Rim.of(result.posterior.record)
    if rim and "std" in notes:
        notes["std"] += f"\n{rim.words}"
    return notes


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that every reader takes: infinite and undefined numbers as words."""
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
