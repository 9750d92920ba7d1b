"""The images of a training run: every kind of file, no leakage, none lost in silence, one decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from experiments import decode as decoding
from experiments.data import Crops, batches_of, find, fixed_crops, hold_out, read, source_of, split, without_twins
from experiments.decode import decode, decode_all
from experiments.loop import run
from experiments.settings import SettingsError
from invdiff.images import write_image


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_colour_files_of_8_bits_are_kept(tmp_path, suffix):
    truth = picture(0)
    Image.fromarray(truth).save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(decode(tmp_path / f"x.{suffix}", 3), truth)


def test_sixteen_bits_are_kept(tmp_path):
    truth = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0))
    for name in ("x.png", "x.tif"):
        write_image(tmp_path / name, truth, bits=16)
        array = decode(tmp_path / name, 3)
        assert array.dtype == np.uint16
        np.testing.assert_allclose(batches_of([array])[0], truth, atol=1 / 65535)


def test_gray_becomes_colour_and_colour_gray(tmp_path):
    truth = picture(0)
    Image.fromarray(truth).save(tmp_path / "x.png")
    gray = np.asarray(Image.fromarray(truth).convert("L"))
    Image.fromarray(gray).save(tmp_path / "g.png")
    luma = decode(tmp_path / "x.png", 1)
    assert luma.shape == (20, 30, 1)
    assert int(np.abs(luma[..., 0].astype(int) - gray).max()) <= 1, "Pillow rounds its weights"
    np.testing.assert_array_equal(decode(tmp_path / "g.png", 3), np.stack([gray] * 3, -1))


def test_float_images_are_kept_in_16_bits_and_refused_outside_0_to_1(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    assert decode(tmp_path / "x.tif", 1).max() == 65535
    tifffile.imwrite(tmp_path / "y.tif", np.full((8, 8), 300.0, dtype=np.float32))
    with pytest.raises(ValueError, match=r"y.tif has float values from 300 to 300: expected 0 to 1"):
        decode(tmp_path / "y.tif", 1)


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path):
    truth = picture(0)
    opaque = np.concatenate([truth, np.full((20, 30, 1), 255, np.uint8)], -1)
    Image.fromarray(opaque).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode(tmp_path / "x.png", 3), truth)
    opaque[0, 0, 3] = 0
    Image.fromarray(opaque).save(tmp_path / "y.png")
    with pytest.raises(ValueError, match=r"y.png has transparent pixels"):
        decode(tmp_path / "y.png", 3)


def test_files_are_found_in_subfolders_and_hidden_ones_left_out(tmp_path):
    (tmp_path / "a" / ".thumbnails").mkdir(parents=True)
    for name in ("b.PNG", "a/x.png", "a/.thumbnails/x.png", "notes.txt"):
        (tmp_path / name).touch()
    assert find(tmp_path) == ["a/x.png", "b.PNG"]


def test_a_folder_without_images_and_none_at_all_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"No images in data=.*: expected files ending in .bmp"):
        find(tmp_path)
    with pytest.raises(SettingsError, match=r"data=.*nowhere is no folder"):
        find(tmp_path / "nowhere")


def test_whole_photographs_are_held_out():
    names = [f"x__{photo}__720_{tile:02d}.webp" for photo in "abcdef" for tile in range(5)] + ["y__lone_1.webp"]
    held = hold_out(names, 8)
    assert 8 <= len(held) <= 12
    assert not {source_of(name) for name in held} & {source_of(name) for name in set(names) - set(held)}
    assert held == hold_out(names[::-1], 8)


def test_a_pattern_says_which_photograph_a_file_is_of():
    names = [f"slide{n}_tile{m}.png" for n in range(5) for m in range(4)]
    train, held = split(names, 1, group=r"(slide\d+)_")
    assert len(held) == 4
    assert len({name.split("_")[0] for name in held}) == 1
    assert not set(train) & set(held)
    assert source_of("other.png", r"(slide\d+)_") == "other.png"
    assert source_of("slide7_x.png", r"slide\d+") == "slide7"


def test_a_share_a_number_or_a_list_is_held_out(tmp_path):
    names = [f"{n}.png" for n in range(40)]
    assert [len(split(names, held)[1]) for held in (0, 0.05, 7)] == [0, 2, 7]
    (tmp_path / "list.txt").write_text("3.png\nwith a space.png\n")
    assert split([*names, "sub/with a space.png"], str(tmp_path / "list.txt"))[1] == ["3.png", "sub/with a space.png"]


@pytest.mark.parametrize(
    ("heldout", "names", "sentence"),
    [
        ("missing.txt", ["a.png"], r"heldout=missing.txt is no file"),
        ("{list}", ["a.png"], r"None of the names in heldout=.* is in the folder"),
        ("{list}", ["s__p__1_0.png", "s__p__1_1.png"], r"heldout=.* splits the photograph 's__p'"),
        (2, ["a.png", "b.png"], r"heldout=2 leaves none of the 2 images to train on"),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path, heldout, names, sentence):
    (tmp_path / "list.txt").write_text("s__p__1_0.png\n")
    wanted = heldout.format(list=tmp_path / "list.txt") if isinstance(heldout, str) else heldout
    with pytest.raises(SettingsError, match=sentence):
        split(names, wanted)


def test_the_tracked_list_leaks_no_photograph():
    held = (Path(__file__).parents[2] / "experiments" / "heldout.txt").read_text().split()
    assert len(held) == len(set(held)) == 300


def test_copies_of_held_out_files_are_not_trained_on(tmp_path):
    for name, content in (("a.png", b"one"), ("b.png", b"one"), ("c.png", b"two"), ("d.png", b"three")):
        (tmp_path / name).write_bytes(content)
    assert without_twins(tmp_path, ["b.png", "c.png", "d.png"], ["a.png"]) == (["c.png", "d.png"], 1)


def test_a_folder_of_copies_is_refused(folder, settings):
    first = (folder / "photographs" / "b_three.png").read_bytes()
    for path in (folder / "photographs").glob("*.png"):
        path.write_bytes(first)
    with pytest.raises(SettingsError, match=r"Every image in data=.* is a copy of a held-out one"):
        run(settings())


def test_what_is_left_out_is_counted(tmp_path):
    for name, height in (("big.png", 20), ("small.png", 9), ("tiny.png", 8)):
        Image.fromarray(picture(0, height)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = read(tmp_path, find(tmp_path), channels=3, least=16, limit=1e9, cache=tmp_path)
    assert found.names == ["big.png"]
    assert found.notes[0].startswith("1 of 4 images cannot be used and are left out; the first: ")
    assert "broken.png" in found.notes[0]
    assert found.notes[1] == (
        "2 of 3 images are left out, as their shorter side is below the crop of 16 pixels (the smallest has 8)."
    )
    with pytest.raises(SettingsError, match=r"None of the 4 images .* the largest is 20 pixels; give a crop"):
        read(tmp_path, find(tmp_path), channels=3, least=24, limit=1e9, cache=tmp_path)
    with pytest.raises(SettingsError, match=r"None of the 1 images in .* can be used: .*broken.png"):
        read(tmp_path, ["broken.png"], channels=3, least=16, limit=1e9, cache=tmp_path)


def test_images_beyond_the_limit_are_mapped_and_found_again(tmp_path, monkeypatch):
    for n in range(3):
        Image.fromarray(picture(n, 11 + 2 * n, 13)).save(tmp_path / f"{n}.png")
    write_image(tmp_path / "deep.png", torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)), bits=16)
    (tmp_path / "broken.png").write_bytes(b"no image")
    names, cache = find(tmp_path), tmp_path / "cache"
    kept, arrays, refused = decode_all(tmp_path, names, 3, 1e9, cache)
    assert not cache.exists()
    mapped = decode_all(tmp_path, names, 3, 500, cache)
    assert (mapped[0], mapped[2]) == (kept, refused)
    for held, memory in zip(mapped[1], arrays, strict=True):
        assert isinstance(held.base, np.memmap) or isinstance(held, np.memmap)
        np.testing.assert_array_equal(held, memory)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "read_array", lambda path: pytest.fail(f"{path} was decoded again"))
        again = decode_all(tmp_path, names, 3, 500, cache)
    np.testing.assert_array_equal(again[1][0], arrays[0])
    Image.fromarray(picture(9, 30, 13)).save(tmp_path / "0.png")
    changed = decode_all(tmp_path, names, 3, 500, cache)[1]
    assert changed[kept.index("0.png")].shape == (30, 13, 3), "the file changed, so the map is made anew"
    assert not list(cache.glob("*.part"))


def test_crops_are_flipped_and_turned_pieces_of_the_images_by_their_share_of_the_pixels():
    image = picture(0, 8, 8)
    other = np.zeros((8, 24, 3), dtype=np.uint8)
    batch = Crops([image, other], 8).batch(400, np.random.default_rng(0))
    assert batch.shape == (400, 3, 8, 8)
    share = float((batch.flatten(1).sum(1) == 0).float().mean())
    assert share == pytest.approx(0.75, abs=0.07)
    turned = [np.rot90(image, k)[:, ::s].copy() for k in range(4) for s in (1, -1)]
    eight = batches_of(turned).flatten(1)
    found = [int((eight == one.flatten()).all(1).nonzero()) for one in batch if one.sum() > 0]
    assert set(found) == set(range(8))
    plain = Crops([image], 8, flip=False, rotate=False).batch(5, np.random.default_rng(0))
    assert torch.equal(plain, batches_of([image]).expand(5, 3, 8, 8))


def test_a_batch_is_its_random_numbers_alone():
    crops = Crops([picture(0), picture(1)], 8)
    first, again, other = (crops.batch(4, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_validation_crops_are_the_same_every_time_and_spread_over_the_images():
    images = [np.full((40, 50, 3), n, dtype=np.uint8) for n in range(10)]
    crops = fixed_crops(images, 5, 33, 4)
    assert crops.shape == (5, 3, 32, 32)
    assert (crops[:, 0, 0, 0] * 255).round().tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(crops, fixed_crops(images, 5, 33, 4))
    assert fixed_crops(images[:2], 5, 64, 4).shape == (5, 3, 40, 40)
