"""PNG of 16 bits per channel (ISO/IEC 15948), since Pillow keeps only the high byte of 16-bit colour."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode", "encode", "is_deep_colour"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type: gray, RGB, gray + alpha, RGB + alpha
# Adam7: (first row, first column, row step, column step) of the seven passes
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def is_deep_colour(head: bytes) -> bool:
    """Whether a file that begins with `head` (26 bytes) is a PNG of 16 bits with colour or alpha."""
    return head.startswith(_SIGNATURE) and len(head) >= 26 and head[24] == 16 and head[25] in (2, 4, 6)


def decode(data: bytes) -> NDArray[np.uint16]:
    """The pixels of a 16-bit PNG, H x W x C, interlaced or not.

    Raises:
        ValueError: the file is cut short, damaged or not a 16-bit PNG without a palette.
    """
    header, packed = _chunks(data)
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    if depth != 16 or colour not in _CHANNELS:
        raise ValueError(f"it has {depth} bits and colour type {colour}, expected 16 bits and no palette")
    channels = _CHANNELS[colour]
    image = np.zeros((height, width, channels), np.uint16)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(len(range(r, height, dr)), len(range(c, width, dc))) for r, c, dr, dc in passes]
    needed = sum(rows * (1 + 2 * channels * columns) for rows, columns in sizes if columns)
    # The header says how much to expect: a file that inflates to more is not read further.
    raw = np.frombuffer(zlib.decompressobj().decompress(packed, needed), np.uint8)
    if len(raw) < needed:
        raise ValueError(f"it holds {len(raw)} of {needed} bytes of pixels")
    at = 0
    for (r, c, dr, dc), (rows, columns) in zip(passes, sizes, strict=True):
        if rows and columns:
            stride = 1 + 2 * channels * columns
            part = _unfilter(raw[at : at + rows * stride].reshape(rows, stride), 2 * channels)
            image[r::dr, c::dc] = part.view(">u2").reshape(rows, columns, channels)
            at += rows * stride
    return image


def encode(array: NDArray[np.uint16]) -> bytes:
    """A PNG of H x W (gray) or H x W x 3 uint16 pixels, without row filters."""
    height, width = array.shape[:2]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    data = np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if array.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 6)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """The header and the joined pixel data."""
    header, packed, at = b"", [], len(_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4:
            break
        if zlib.crc32(kind + body) != struct.unpack(">I", checksum)[0]:
            raise ValueError(f"the checksum of its chunk {kind.decode('latin1')} is wrong")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"IEND":
            return header, b"".join(packed)
        at += 12 + length
    raise ValueError("it is cut short")


def _unfilter(rows: NDArray[np.uint8], pixel: int) -> NDArray[Any]:
    """Undo the row filters; rows (H, 1 + W * pixel) begin with their filter type.

    A byte needs its left, upper and upper left neighbours, so all pixels of one anti-diagonal are done at once: H + W
    steps of numpy, where a loop over pixels would take minutes for a photograph.
    """
    kinds = rows[:, 0].astype(np.int16)
    if kinds.max() > 4:
        raise ValueError(f"it has a row filter of type {kinds.max()}, which does not exist")
    height, width = len(rows), (rows.shape[1] - 1) // pixel
    # One row and column of zeros in front stand for the neighbours outside the image.
    done = np.zeros((height + 1, width + 1, pixel), np.int16)
    done[1:, 1:] = rows[:, 1:].reshape(height, width, pixel)
    for diagonal in range(height + width - 1):
        r = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        c = diagonal - r
        left, up, corner = done[r + 1, c], done[r, c + 1], done[r, c]
        kind = kinds[r, None]
        near_left, near_up, near_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        paeth = np.where(
            (near_left <= near_up) & (near_left <= near_corner), left, np.where(near_up <= near_corner, up, corner)
        )
        guess = np.select([kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) // 2, paeth], 0)
        done[r + 1, c + 1] = (done[r + 1, c + 1] + guess) & 255
    return np.ascontiguousarray(done[1:, 1:].astype(np.uint8)).reshape(height, -1)
