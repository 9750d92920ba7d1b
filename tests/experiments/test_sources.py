"""The images of an experiment, and the protocols that say which they were."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from invdiff.experiments import protocols
from invdiff.experiments.build import build
from invdiff.experiments.run import compose
from invdiff.experiments.sources import PHOTOGRAPHS, Folder, Named, Skimage, load_matrix


def test_every_photograph_comes_with_scikit_image():
    for name in PHOTOGRAPHS:
        (picture,) = Skimage((name,), crop=64).load()
        assert picture.pixels.shape[0] in (1, 3)
        assert picture.pixels.shape[1:] == (64, 64)
        assert 0 <= picture.pixels.min() < picture.pixels.max() <= 1


def test_the_crop_is_the_middle_and_the_hash_is_of_its_pixels():
    (picture,) = Skimage(("chelsea",), crop=100).load()
    cat = photographs.chelsea()
    top, left = (cat.shape[0] - 100) // 2, (cat.shape[1] - 100) // 2
    middle = np.ascontiguousarray(cat[top : top + 100, left : left + 100])
    assert picture.sha256 == hashlib.sha256(middle.tobytes()).hexdigest()
    assert torch.equal(picture.pixels, torch.from_numpy(middle).permute(2, 0, 1) / 255)


def test_reduced_images_are_averages():
    (whole,) = Skimage(("coffee",), crop=None).load()
    (half,) = Skimage(("coffee",), crop=None, reduce=2).load()
    assert half.pixels.shape[1] == whole.pixels.shape[1] // 2
    means = whole.pixels.reshape(3, half.pixels.shape[1], 2, half.pixels.shape[2], 2).mean((2, 4))
    assert (half.pixels - means).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Skimage(("nobody",)), "data.images names 'nobody': expected some of astronaut, "),
        (Skimage(()), "data.images has no image: expected PNG"),
        (Skimage(("text",), crop=200), "data.crop is 200: text has 172 x 448 pixels; crop less."),
        (Skimage(("text",), crop=0), "data.crop is 0: expected a whole number from 1 on."),
        (Skimage(("text",), reduce=1.5), "data.reduce is 1.5: expected a whole number from 1 on."),
        (Skimage(("text", "text")), "data.images has two images named text: give each a name of its own."),
        (Named("nothing"), "data.name is 'nothing': expected one of cbsd68, kodak24, set5."),
    ],
)
def test_what_cannot_be_loaded(source, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is compared below
        source.load()
    assert str(caught.value).startswith(sentence)


@pytest.fixture
def folder(tmp_path):
    for name, value in (("b.png", 10), ("a.png", 200), ("c.tif", 90)):
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder(folder):
    assert [picture.name for picture in Folder(str(folder)).load()] == ["a", "b", "c"]
    assert [picture.name for picture in Folder(str(folder), limit=2).load()] == ["a", "b"]
    assert [picture.name for picture in Folder(str(folder), images=("c", "a.png")).load()] == ["c", "a"]
    with pytest.raises(ValueError, match=r"data\.images names 'd', which"):
        Folder(str(folder), images=("d",)).load()
    with pytest.raises(NotADirectoryError, match="expected a folder of images"):
        Folder(str(folder / "none")).load()


def test_the_test_sets_are_found_by_a_variable(folder, monkeypatch):
    monkeypatch.delenv("INVDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data=set5 needs the environment variable INVDIFF_DATA: .* test/Set5"):
        Named("set5").load()
    monkeypatch.setenv("INVDIFF_DATA", str(folder))
    with pytest.raises(NotADirectoryError, match="which has no folder test/Set5: put it there"):
        Named("set5").load()
    (folder / "test").mkdir()
    (folder / "test" / "Set5").symlink_to(folder)
    assert len(Named("set5", limit=2).load()) == 2


def test_the_published_test_sets(data):
    assert [len(Named(name, crop=64).load()) for name in ("cbsd68", "kodak24", "set5")] == [68, 24, 5]


def test_a_matrix(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float32))
    assert torch.equal(load_matrix(str(tmp_path / "a.npy")), torch.eye(3, dtype=torch.float64))
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"holds an array of shape \(2, 2, 2\): expected a matrix"):
        load_matrix(str(tmp_path / "b.npy"))
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(OSError, match="not a plain array"):
        load_matrix(str(tmp_path / "c.npy"))


def followed(*words):
    (job,) = compose(["prior=tv", *words])
    return job.settings, protocols.followed(job.settings, build(job.settings["data"]).load())


@pytest.mark.parametrize("task", ["blur", "downsample", "mask", "grayscale"])
def test_the_experiments_follow_their_protocol(task):
    settings, run = followed(f"experiment=skimage_{task}_natural_kps")
    assert settings["protocol"] == f"skimage_{task}"
    assert not protocols.differences(protocols.read(settings["protocol"]), run)


@pytest.mark.parametrize("task", ["blur", "downsample", "mask", "grayscale"])
def test_those_of_cbsd68_too(task, data):
    settings, run = followed(f"experiment=cbsd68_{task}_natural_kps")
    assert len(run["images"]) == 68
    assert not protocols.differences(protocols.read(settings["protocol"]), run)


def test_what_differs_from_a_protocol_is_said(tmp_path):
    _, run = followed("operator=blur", "data.images=[chelsea,camera]", "operator.kernel.sigma=3", "draws=7")
    said = protocols.differences(protocols.read("skimage_blur"), run)
    assert "the image astronaut is missing." in said
    assert "the image camera is not in the protocol." in said
    assert "operator.kernel.sigma is 3, the protocol has 2.0." in said
    assert "draws is 7, the protocol has 20." in said
    protocols.write(tmp_path / "mine.yaml", run)
    assert protocols.read(str(tmp_path / "mine.yaml")) == run


def test_what_is_no_protocol(tmp_path):
    with pytest.raises(ValueError, match=r"protocol is nothing: expected a \.yaml file, or one of cbsd68_blur, "):
        protocols.read("nothing")
    (tmp_path / "odd.yaml").write_text("images: {}\n")
    with pytest.raises(ValueError, match="is no protocol: expected exactly images, data, operator, noise"):
        protocols.read(str(tmp_path / "odd.yaml"))
