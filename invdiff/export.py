"""Draws in files: safetensors, npz, a TIFF stack, HDF5; written a part at a time, whole or not at all."""

from __future__ import annotations

import io
import json
import math
import os
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from .posterior import Posterior

__all__ = ["export", "safetensors"]

KINDS = (".npz", ".tif", ".tiff", ".h5", ".hdf5")


def export(posterior: Posterior, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the draws of a posterior, with its record as JSON.

    npz: `draws` (draws, [m,] *in_shape), `record`, `label`. HDF5: the same, as datasets. TIFF: a stack
    of one page for each channel of each draw of each measurement, channels first, then measurements; record and label
    are its description, and its XMP says what it is (`provenance`). The record leaves out the path of the folder that
    the draws were kept in.

    Args:
        posterior: in memory or in a folder, which is never read whole.
        path: the suffix decides.
        overwrite: whether a file that stands there may be replaced.

    Raises:
        ValueError: another suffix, or a TIFF of what is no image.
        FileExistsError: something stands there.
        FileNotFoundError: there is no such folder.
    """
    target = Path(path)
    if target.suffix.lower() not in KINDS:
        raise ValueError(f"{target.name} ends in {target.suffix or 'nothing'}: expected one of {', '.join(KINDS)}.")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already: choose another name, or give overwrite=True.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} in: make it first.")
    inside = posterior.shape[2 if posterior.record.get("batched") else 1 :]
    if target.suffix.lower().startswith(".t") and len(inside) < 2:
        raise ValueError(f"{target.name} is to hold images: these draws have the shape {inside}; use npz or HDF5.")
    write = {".n": _npz, ".t": _tiff, ".h": _hdf5}[target.suffix.lower()[:2]]
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part{target.suffix}")
    try:
        write(posterior, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def safetensors(posterior: Posterior, path: Path) -> None:
    """Write the file of `Posterior.save`: the length of a header as 8 bytes, the header as JSON, the draws."""
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
    dtype = next(posterior.blocks()).dtype
    size = math.prod(posterior.shape) * dtype.itemsize
    header = {
        "__metadata__": {"record": json.dumps(posterior.portable_record), "label": posterior.label},
        "draws": {"dtype": names[dtype], "shape": posterior.shape, "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the draws are aligned
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for block in posterior.blocks():
            handle.write(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _npz(posterior: Posterior, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        dtype = next(posterior.blocks())[:1].numpy(force=True).dtype
        with archive.open("draws.npy", "w", force_zip64=True) as handle:
            head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": posterior.shape}
            np.lib.format.write_array_header_1_0(handle, head)
            for block in posterior.blocks():
                handle.write(block.numpy(force=True).tobytes())
        for name, text in (("record", json.dumps(posterior.portable_record)), ("label", posterior.label)):
            buffer = io.BytesIO()
            np.save(buffer, np.array(text))
            archive.writestr(f"{name}.npy", buffer.getvalue())


def _tiff(posterior: Posterior, path: Path) -> None:
    import tifffile

    from .provenance import describe

    text = json.dumps({"label": posterior.label, "shape": posterior.shape, "record": posterior.portable_record})
    packet = describe(posterior, "draws").packet()
    big = math.prod(posterior.shape) * 8 > 2**31
    with tifffile.TiffWriter(path, bigtiff=big) as stack:
        first = True
        for block in posterior.blocks():
            pages = block.numpy(force=True)
            for page in pages.reshape(-1, *pages.shape[-2:]):
                stack.write(
                    page,
                    photometric="minisblack",
                    contiguous=True,
                    metadata=None,
                    description=text if first else None,
                    extratags=[(700, 1, len(packet), packet, True)] if first else (),
                )
                first = False


def _hdf5(posterior: Posterior, path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        dataset, first = None, 0
        for block in posterior.blocks():
            values = block.numpy(force=True)
            if dataset is None:
                dataset = file.create_dataset("draws", posterior.shape, values.dtype)
            dataset[first : first + len(values)] = values
            first += len(values)
        file["record"], file["label"] = json.dumps(posterior.portable_record), posterior.label
