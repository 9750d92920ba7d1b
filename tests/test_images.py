"""Image files and arrays: what goes in comes out, upright, in its own layout and range."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from invdiff.images import from_array, read_array, read_image, write_image


def _pixels(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    top = {"uint8": 256, "uint16": 65536}
    random = np.random.default_rng(seed)
    return random.integers(0, top[dtype], shape).astype(dtype) if dtype in top else random.random(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_eight_bit_files_are_read_as_they_are(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    pixels = _pixels(*shape)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    found = read_array(tmp_path / f"a{suffix}")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3), (1, 1, 3)])
@pytest.mark.parametrize(("suffix", "bits"), [(".png", 8), (".png", 16), (".tiff", 8), (".tiff", 16)])
def test_written_files_read_back_to_the_bit(tmp_path: Path, shape: tuple[int, ...], suffix: str, bits: int) -> None:
    pixels = _pixels(*shape, dtype=f"uint{bits}")
    tensor, _ = from_array(pixels)
    write_image(tmp_path / f"a{suffix}", tensor, bits=bits)
    np.testing.assert_array_equal(read_array(tmp_path / f"a{suffix}"), pixels)
    torch.testing.assert_close(read_image(tmp_path / f"a{suffix}"), tensor, atol=0, rtol=0)


@pytest.mark.parametrize("suffix", [".tiff", ".npy"])
def test_float_files_keep_what_lies_outside_the_range(tmp_path: Path, suffix: str) -> None:
    tensor = torch.linspace(-0.3, 1.4, 60).reshape(1, 3, 4, 5)
    write_image(tmp_path / f"a{suffix}", tensor, bits=32)
    assert torch.equal(read_image(tmp_path / f"a{suffix}"), tensor)


def test_sixteen_bit_gray_png_of_another_writer(tmp_path: Path) -> None:
    pixels = _pixels(5, 6, dtype="uint16")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), pixels)


def test_our_sixteen_bit_colour_png_is_valid_to_pillow(tmp_path: Path) -> None:
    pixels = _pixels(5, 6, 3, dtype="uint16")
    write_image(tmp_path / "a.png", from_array(pixels)[0], bits=16)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    with Image.open(tmp_path / "a.png") as image:  # Pillow keeps the high byte
        np.testing.assert_array_equal(np.asarray(image), pixels >> 8)


def _filtered(pixels: np.ndarray, kinds: list[int]) -> bytes:
    """PNG's row filters written out byte by byte from the standard's definitions."""
    size = pixels.shape[-1] * 2
    rows = pixels.astype(">u2").reshape(len(pixels), -1).view(np.uint8).astype(int)
    out = bytearray()
    for number, row in enumerate(rows):
        kind = kinds[number % len(kinds)]
        out.append(kind)
        for i, value in enumerate(row):
            a = row[i - size] if i >= size else 0
            b = rows[number - 1][i] if number else 0
            c = rows[number - 1][i - size] if number and i >= size else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((value - [0, a, b, (a + b) // 2, paeth][kind]) % 256)
    return bytes(out)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (13, 11)])
def test_sixteen_bit_png_of_every_filter(tmp_path: Path, channels: int, interlace: int, size: tuple[int, int]) -> None:
    pixels = _pixels(*size, channels, dtype="uint16")
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[r::dr, c::dc] for r, c, dr, dc in passes] if interlace else [pixels]
    data = b"".join(_filtered(part, [4, 3, 2, 1, 0]) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", size[1], size[0], 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, interlace)
    middle = len(data) // 2
    packed = zlib.compress(data)
    chunks = [(b"IHDR", header), (b"IDAT", packed[:middle]), (b"IDAT", packed[middle:]), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), pixels)
    if channels > 2:
        with Image.open(tmp_path / "a.png") as image:  # Pillow keeps the high byte: it vouches for the test's own file
            np.testing.assert_array_equal(np.asarray(image), pixels >> 8)


@pytest.mark.parametrize("options", [{"photometric": "miniswhite"}, {"photometric": "minisblack", "byteorder": ">"}])
def test_sixteen_bit_gray_tiff_variants(tmp_path: Path, options: dict) -> None:
    import tifffile

    pixels = _pixels(5, 6, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    expected = 65535 - pixels if options["photometric"] == "miniswhite" else pixels
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), expected)


def test_planar_sixteen_bit_colour_tiff(tmp_path: Path) -> None:
    import tifffile

    pixels = _pixels(3, 5, 6, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), np.moveaxis(pixels, 0, -1))


def test_jpeg_is_read(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None], 16, 0)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=98)
    assert np.abs(read_array(tmp_path / "a.jpg").astype(int) - ramp).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "deep.png", "deep.tif"])
def test_exif_rotation_is_respected(tmp_path: Path, orientation: int, kind: str) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:4, :8] = (255, 0, 0)
    pixels[4:, :8] = (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    path = tmp_path / f"b.{kind}"
    if kind == "deep.tif":
        import tifffile

        tag = [(274, "H", 1, orientation, False)]
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb", extratags=tag)
    elif kind == "deep.png":
        write_image(path, from_array(pixels)[0], bits=16)
        data = path.read_bytes()
        payload = exif.tobytes()[6:]
        path.write_bytes(data[:33] + _chunk(b"eXIf", payload) + data[33:])
    else:
        Image.fromarray(pixels).save(path, exif=exif)
    found = read_image(path)[0].movedim(0, -1).numpy() * 255
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8  # JPEG is lossy; a wrong turn is off by tens


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "deep"])
def test_alpha_is_refused_or_flattened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    value = 100
    if kind == "deep":
        path = tmp_path / "a.tif"
        import tifffile

        deep = np.zeros((4, 5, 4), np.uint16)
        deep[..., :3], deep[:, 2:, 3] = value * 257, 65535
        tifffile.imwrite(path, deep, photometric="rgb", extrasamples=["unassalpha"])
    elif kind == "palette":
        indexed = Image.new("P", (5, 4), 1)
        indexed.putpalette([0, 0, 0, value, value, value])
        indexed.paste(0, (0, 0, 2, 4))
        indexed.save(path, transparency=0)
    else:
        pixels = np.full((4, 5, 2 if kind == "LA" else 4), value, np.uint8)
        pixels[..., -1] = 255
        pixels[:, :2, -1] = 0
        Image.fromarray(pixels, kind).save(path)
    with pytest.raises(ValueError, match="alpha channel"):
        read_image(path)
    for alpha, background in (("white", 1.0), ("black", 0.0)):
        flat = read_image(path, alpha=alpha)  # type: ignore[arg-type]
        assert flat.shape[1] == (1 if kind == "LA" else 3)
        torch.testing.assert_close(flat[..., 2:], torch.full_like(flat[..., 2:], value / 255))
        assert (flat[..., :2] == background).all()


def test_half_transparent_pixels_are_mixed() -> None:
    pixels = np.full((2, 2, 4), 0.2)
    pixels[..., 3] = 0.25
    torch.testing.assert_close(from_array(pixels, alpha="white")[0], torch.full((1, 3, 2, 2), 0.8))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_arrays_round_trip_in_their_own_layout(shape: tuple[int, ...], dtype: str) -> None:
    pixels = _pixels(*shape, dtype=dtype)
    kept = pixels.copy()
    tensor, layout = from_array(pixels)
    assert tensor.shape == (1, 3 if shape[-1] == 3 else 1, 5, 6)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    back = layout.to_array(tensor[0])
    assert back.dtype == pixels.dtype
    assert back.shape == pixels.shape
    np.testing.assert_allclose(back, pixels, rtol=1e-7)
    tensor.fill_(7)
    np.testing.assert_array_equal(pixels, kept)


def test_data_range_and_conversion() -> None:
    tensor, layout = from_array(np.array([[0, 4095]], dtype=np.uint16), data_range=4095)
    assert tensor.flatten().tolist() == [0, 1]
    over = torch.tensor([[[-0.5, 1.5]]])
    assert layout.to_array(over).tolist() == [[0, 4095]]  # integers clip
    assert layout.to_array(over, dtype=np.float32).tolist() == [[-2047.5, 6142.5]]  # floats show what is there
    colour = layout.to_array(torch.zeros(2, 3, 4, 5))
    assert colour.shape == (2, 4, 5, 3)


def test_single_frame_only(tmp_path: Path) -> None:
    frames = [Image.fromarray(_pixels(4, 5, seed=s)) for s in (0, 1)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(OSError, match="2 frames"):
        read_array(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.array([[0.0, np.nan]]), r"NaN or infinite values \(1 of 2\)"),
        (np.array([[np.inf, np.inf]]), r"infinite values \(2 of 2\)"),
        (np.zeros((3, 40, 40)), "C x H x W"),
        (np.zeros((2, 4, 4, 3)), "expected H x W"),
        (np.zeros((0, 4)), "expected H x W"),
        (np.full((4, 4), 200.0), "data range"),
        (np.zeros((4, 4), np.int32), "state data_range"),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_array(array)


def test_other_arguments_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dtype bool"):
        from_array(np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="data_range is -1"):
        from_array(np.zeros((3, 3)), data_range=-1)
    with pytest.raises(ValueError, match="alpha is 'grey'"):
        from_array(np.zeros((3, 3)), alpha="grey")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not written"):
        write_image(tmp_path / "a.jpg", torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        write_image(tmp_path / "a.png", torch.zeros(2, 4, 4))


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_array(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_array(tmp_path)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(OSError, match="not an image that can be read"):
        read_array(tmp_path / "text.png")
    Image.fromarray(_pixels(64, 64)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    write_image(tmp_path / "whole16.png", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), bits=16)
    data16 = (tmp_path / "whole16.png").read_bytes()
    for cut in (data[: len(data) // 2], data[:30], data16[: len(data16) // 2]):
        (tmp_path / "cut.png").write_bytes(cut)
        with pytest.raises(OSError, match=r"cut\.png"):
            read_array(tmp_path / "cut.png")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(OSError, match="plain array"):
        read_array(tmp_path / "objects.npy")
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="CMYK"):
        read_array(tmp_path / "a.jpg")
    write_image(tmp_path / "whole.tif", torch.zeros(3, 64, 64), bits=16)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:40])
    with pytest.raises(OSError, match=r"cut\.tif"):
        read_array(tmp_path / "cut.tif")
