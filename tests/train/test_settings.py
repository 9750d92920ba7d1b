"""Settings that cannot be used are refused in a sentence, before anything is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.data import find, split
from experiments.log import tensorboard_writer
from experiments.loop import run
from experiments.output import check_licences
from experiments.settings import SettingsError, check
from experiments.train_demo import lay_out

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "experiments" / "training"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("optimizer=adam", r"optimizer=adam is unknown: expected one of adamw, muon"),
        ("schedule=step", r"schedule=step is unknown: expected one of linear, cosine"),
        ("precision=float16", r"precision=float16 is unknown: expected one of auto, float32, bfloat16"),
        ("channels=4", r"channels=4 is unknown: expected one of 1, 3"),
        ("predicts=noise", r"predicts=noise is unknown: expected one of F, eps, x0, v, flow"),
        ("network.kind=vit", r"network.kind=vit is unknown: expected one of unet, dncnn, drunet, ffdnet"),
        ("steps=0", r"steps=0 cannot be used: expected a whole number from 1 on"),
        ("batch=2.5", r"batch=2.5 cannot be used: expected a whole number"),
        ("validate_every=-1", r"validate_every=-1 cannot be used: expected a whole number from 0 on"),
        ("lr=0", r"lr=0 cannot be used: expected a number above 0"),
        ("clip=nan", r"clip=nan cannot be used: expected a number above 0"),
        ("ema=1", r"ema=1 cannot be used: expected a number from 0 to below 1"),
        ("ema=[]", r"ema=\[\] cannot be used: expected a number from 0 to below 1, or a list of them"),
        ("heldout=1.5", r"heldout=1.5 cannot be used: expected a file, a share below 1 or a whole number"),
        ("sigma_range=[0.0,50.0]", r"sigma_range=\[0.0, 50.0\] cannot be used"),
        ("sigma_range=[2.0,1.0]", r"sigma_range=\[2.0, 1.0\] cannot be used: expected \[lowest, highest\]"),
        ("crop=17", r"crop=17 is no multiple of 2, by which this unet reduces an image: use crop=16"),
        ("crop=64", r"None of the 3 images .* the largest is 36 pixels; give a crop of at most"),
        ("device=tpu:x", r"device=tpu:x is unknown: expected auto, cpu, cuda or cuda:0"),
        ("init=nowhere.safetensors", r"init=nowhere.safetensors cannot be used: .* does not exist"),
        ("licences.nobody=MIT", r"licences names 'nobody', which no file comes from: the sources are a, b"),
        ("group='('", r"group=\( is no regular expression"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(settings, change, sentence):
    # `licences` is an open mapping.
    with pytest.raises(SettingsError, match=sentence):
        run(settings(f"+{change}" if change.startswith("licences") else change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(settings):
    with pytest.raises(SettingsError, match=r"device=cuda is not on this machine: use device=auto or device=cpu"):
        run(settings("device=cuda"))


@pytest.mark.parametrize("network", ["unet", "dncnn", "ffdnet", "drunet"])
@pytest.mark.parametrize("config", ["train", "natural_1", "natural_2", "natural_3", "demo"])
def test_every_configuration_passes_the_check(settings, network, config):
    check(settings(network=network, config=config))


def test_the_demo_learns_from_pictures_that_are_there(tmp_path):
    images = lay_out(tmp_path)
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("demo", [f"data={images}", f"heldout={tmp_path / 'heldout.txt'}"])
    names = {path.stem for path in images.glob("*.png")}
    assert names == {*cfg.licences, "chelsea"}
    train, held = split(find(images), cfg.heldout)
    assert held == ["chelsea.png"]
    assert len(train) == 7


def test_every_setting_has_its_line_of_explanation():
    for file in (CONF / "train.yaml", *(CONF / "network").glob("*.yaml")):
        for line in file.read_text().splitlines():
            key = line.split(":")[0].strip()
            if ":" in line and key not in ("defaults", "hydra", "run", "output_subdir", "network", "kind"):
                assert "#" in line or key.startswith("- override"), f"{file.name}: {line}"


def test_other_settings_do_not_go_on_with_a_run(settings):
    run(settings())
    with pytest.raises(SettingsError, match=r"out=.* holds a run with lr=0.001, and this one has lr=0.002: use"):
        run(settings("lr=2e-3"))
    with pytest.raises(SettingsError, match=r"holds a run with network=.*, and this one has network="):
        run(settings("network.widths=[4,4]"))


def test_other_images_do_not_go_on_with_a_run(folder, settings):
    run(settings())
    (folder / "photographs" / "a__one__320_00.png").unlink()
    with pytest.raises(
        SettingsError, match=r"data=.* has 2 images to train on, and the run in out=.* began with 3: use"
    ):
        run(settings())


def test_a_cosine_is_not_prolonged(settings):
    run(settings("schedule=cosine"))
    with pytest.raises(SettingsError, match=r"holds a run of steps=6 with a cosine, which 8 steps would bend"):
        run(settings("schedule=cosine", "steps=8"))


def test_another_file_in_place_of_the_checkpoint_is_refused(folder, settings):
    (folder / "out").mkdir()
    (folder / "out" / "last.pt").write_bytes(b"something else")
    with pytest.raises(SettingsError, match=r"last.pt is no checkpoint of this program: use another out="):
        run(settings())


def test_tensorboard_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match=r"tensorboard=true needs the package tensorboard: `pip install"):
        tensorboard_writer(tmp_path)


def test_missing_licences_are_named():
    assert check_licences({"a": "MIT"}, ["a", "b", "c"]) == [
        "No licence is stated for b, c: give +licences.NAME=... so that the card says it."
    ]
    assert check_licences({"mine": "CC0"}, []) == []
    assert check_licences({}, [])[0].startswith("No licence of the images is stated")


def test_the_command_ends_in_one_sentence(command_line):
    command = [sys.executable, "-m", "experiments.train", *command_line("crop=17")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == "crop=17 is no multiple of 2, by which this unet reduces an image: use crop=16.\n"
