"""Image files: PNG, JPEG and TIFF of 8 and 16 bit (TIFF also float) and .npy, read upright, written without loss."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from . import png16, xmp
from .arrays import Alpha, Layout, from_array
from .provenance import write_whole

if TYPE_CHECKING:
    from .provenance import Provenance

__all__ = ["Alpha", "Layout", "from_array", "read_array", "read_image", "write_image"]

Array = NDArray[Any]

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_EXIF_ORIENTATION = 0x0112


def read_image(path: str | Path, *, alpha: Alpha = "refuse", data_range: float | None = None) -> Tensor:
    """Read an image file as a float32 tensor (1, C, H, W) in [0, 1]; `read_array` and `from_array` in one call.

    Raises:
        OSError: the file is missing or is not an image that can be read.
        ValueError: its alpha channel, range or values are not accepted (see `from_array`).
    """
    return from_array(read_array(path), data_range=data_range, alpha=alpha, name=str(path))[0]


def read_array(path: str | Path) -> Array:
    """Read PNG, JPEG, TIFF or .npy as the file stores it: H x W or H x W x C, uint8, uint16 or float, upright.

    The EXIF orientation is applied. Palettes become colours; an alpha channel comes last. Colour profiles are ignored.

    Raises:
        OSError: the file is missing, is no image, is cut short, or is of a kind that is not read (animations, CMYK).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a PNG, JPEG, TIFF or .npy file.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of an image file in it.")
    with path.open("rb") as file:
        head = file.read(26)
    if head.startswith(b"\x93NUMPY"):
        return _read_npy(path)
    if head.startswith(_TIFF):
        deep = _read_deep_tiff(path)
        if deep is not None:
            return deep
    array, orientation = _read_pillow(path)
    if png16.is_deep_colour(head):
        array = _read_deep_png(path)  # Pillow has checked the file but keeps 8 of the 16 bits
    return _upright(array, orientation)


def write_image(path: str | Path, image: Tensor, *, bits: int = 8, provenance: Provenance | None = None) -> None:
    """Write (C, H, W), (1, C, H, W) or (H, W) in [0, 1] as .png (8, 16 bit), .tif/.tiff (8, 16, 32) or .npy (32).

    8 and 16 bits are clipped to [0, 1] and rounded; 32 bits are floats, kept as they are. What stands at the path
    is replaced whole or not at all.

    Args:
        path: its suffix decides on the format.
        image: in [0, 1].
        bits: of a value.
        provenance: what the picture is and what made it, written beside the pixels (not into .npy, which has no place
            for it); see `provenance.describe`.

    Raises:
        ValueError: a shape, a suffix or a number of bits that is not written, or provenance for .npy.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    allowed = {".png": (8, 16), ".tif": (8, 16, 32), ".tiff": (8, 16, 32), ".npy": (32,)}
    if bits not in allowed.get(suffix, ()):
        raise ValueError(f"{path.name} of {bits} bits is not written: use .png (8, 16), .tiff (8, 16, 32), .npy (32).")
    planes = image.reshape(image.shape[-3:]) if image.ndim > 2 else image[None]
    if planes.ndim != 3 or planes.shape[0] not in (1, 3):
        raise ValueError(f"The image has shape {tuple(image.shape)}: expected one image of 1 or 3 channels, C x H x W.")
    dtype, top = {8: ("uint8", 255.0), 16: ("uint16", 65535.0), 32: ("float32", 1.0)}[bits]
    array = Layout(False, np.dtype(dtype), top).to_array(planes)
    if suffix == ".npy" and provenance is not None:
        raise ValueError(f"{path.name} cannot hold provenance: use .png or .tiff, or leave it out.")
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, array)
    elif suffix == ".png" and bits == 16:
        file.write(png16.encode(array))
    elif suffix == ".png":
        from PIL import Image

        Image.fromarray(array).save(file, "png")
    else:
        import tifffile

        tifffile.imwrite(file, array, photometric="rgb" if array.ndim == 3 else "minisblack", compression="zlib")
    data = file.getvalue()
    write_whole(path, data if provenance is None else xmp.insert(data, provenance.packet()))


def _read_npy(path: Path) -> Array:
    try:
        return cast(Array, np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise OSError(f"{path} is not a plain array: save it again with numpy.save and no objects in it.") from error


def _read_pillow(path: Path) -> tuple[Array, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":
                    raise OSError(f"{path} holds {frames} frames or pages: save the one you mean on its own.")
                orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
                return _pillow_array(image, path), orientation
    except UnidentifiedImageError as error:
        raise OSError(f"{path} is not an image that can be read: expected PNG, JPEG, TIFF or .npy.") from error
    except Image.DecompressionBombError as error:
        raise OSError(f"{path} claims more than 178 million pixels: crop it, or pass the array from Python.") from error
    except (SyntaxError, ValueError, struct.error, EOFError, zlib.error) as error:
        raise OSError(f"{path} is damaged ({error}): get the file again.") from error
    except OSError as error:
        if str(path) in str(error):
            raise
        raise OSError(f"{path} is damaged ({error}): get the file again.") from error


def _pillow_array(image: Any, path: Path) -> Array:
    mode = image.mode
    if mode == "1":
        image = image.convert("L")
    elif mode in ("P", "PA") or (mode in ("L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA", "F", "I;16", "I;16B", "I;16L"):
        raise OSError(f"{path} is in the colour mode {mode}, which is not read: convert it to gray or RGB first.")
    array = np.asarray(image)
    return array.astype(array.dtype.newbyteorder("="))


def _read_deep_png(path: Path) -> Array:
    try:
        return png16.decode(path.read_bytes())
    except (ValueError, struct.error, zlib.error) as error:
        raise OSError(f"{path} is damaged ({error}): get the file again.") from error


def _read_deep_tiff(path: Path) -> Array | None:
    """16-bit and float TIFF, which Pillow reads in part only; None where Pillow is the better reader."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = cast(Any, file.pages[0])
            if page.dtype not in (np.dtype("uint16"), np.dtype("float32"), np.dtype("float64")):
                return None
            if len(file.pages) > 1:
                raise OSError(f"{path} holds {len(file.pages)} pages: save the one you mean on its own.")
            if page.photometric.name not in ("MINISBLACK", "MINISWHITE", "RGB"):
                raise OSError(f"{path} has the colours {page.photometric.name}: convert it to gray or RGB first.")
            array = page.asarray()
            if array.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                array = np.moveaxis(array, 0, -1)
            if page.photometric.name == "MINISWHITE":
                array = np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else 1 - array
            return _upright(array, int(page.tags[274].value) if 274 in page.tags else 1)
    except (tifffile.TiffFileError, ValueError, IndexError, struct.error, zlib.error) as error:
        if "imagecodecs" in str(error):
            raise OSError(f"{path} is compressed in a way that needs `pip install imagecodecs`.") from error
        raise OSError(f"{path} is damaged ({error}): get the file again.") from error


def _upright(array: Array, orientation: int) -> Array:
    """Apply the EXIF orientation (1 to 8; anything else means upright, as viewers take it)."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
