"""What training writes is what the prior slot reads: every parametrisation, every network, and an honest card."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import sheets, validate
from experiments.loop import run
from experiments.muon import Muon, orthogonal
from experiments.objective import Diffusion, build, fill_from
from experiments.settings import SettingsError
from invdiff import provenance
from invdiff.priors import as_prior, load, load_natural
from invdiff.priors.parametrization import input_scale, scalings
from invdiff.record import weight_hash

KINDS = ("F", "eps", "x0", "v", "flow")


def paint_flat(folder: Path) -> None:
    """Images that are learned in a few steps."""
    for n, path in enumerate((folder / "photographs").glob("*.png")):
        Image.fromarray(np.full((32, 32, 3), 200 + n, dtype=np.uint8)).save(path)


def tiny(predicts: str) -> Diffusion:
    config = {"channels": 1, "widths": [6, 8], "blocks": 1, "embedding": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = Diffusion(config, predicts=predicts, sigma_data=0.25, sigma_range=(0.002, 50.0))
        for value in found.network.parameters():
            torch.nn.init.normal_(value, std=0.1)
    return found


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(4, 1, 8, 8, generator=generator)
    return x0, torch.tensor([0.002, 0.1, 1.0, 30.0]), torch.randn(x0.shape, generator=generator)


def test_the_loss_of_F_is_that_of_edm():
    objective, (x0, sigma, noise) = tiny("F"), batch()
    s = sigma[:, None, None, None].double()
    total = s**2 + 0.25**2
    # Karras et al. 2022, table 1, written out: the code under test takes its factors from elsewhere.
    skip, out, inner, c_noise = 0.25**2 / total, 0.25 * s / total.sqrt(), 1 / total.sqrt(), s.log() / 4
    noisy = x0.double() - 0.5 + sigma[:, None, None, None] * noise
    output = objective.network((inner * noisy).float(), c_noise.flatten().float())
    expected = (output - (x0 - 0.5 - skip * noisy) / out).square()
    found = objective.losses(x0, sigma, noise).double()
    torch.testing.assert_close(found, expected.mean((1, 2, 3)), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("predicts", KINDS)
def test_every_parametrisation_has_the_same_loss_for_the_same_image(predicts):
    objective, (x0, sigma, noise) = tiny(predicts), batch()
    s = sigma[:, None, None, None].double()
    noisy = x0.double() - 0.5 + s * noise
    with torch.no_grad():
        output = objective.network((input_scale("edm", s, 0.25) * noisy).float(), sigma.log() / 4).double()
        found = objective.losses(x0, sigma, noise).double()
    skip, out = scalings(predicts, s, 0.25)
    error = skip * noisy + out * output - (x0.double() - 0.5)
    # EDM's weighting of the error of the image, Karras et al. 2022, table 1.
    expected = (s**2 + 0.25**2) / (s * 0.25) ** 2 * error.square()
    torch.testing.assert_close(found, expected.mean((1, 2, 3)), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("predicts", KINDS)
def test_the_prior_of_a_file_estimates_what_was_trained(tmp_path, predicts):
    objective, (x0, sigma, noise) = tiny(predicts), batch()
    objective.save(tmp_path / "x.safetensors", objective.network.state_dict(), {})
    prior = load_natural(tmp_path / "x.safetensors", precision="float32")
    fill_from(objective, str(tmp_path / "x.safetensors"))
    s = sigma[:, None, None, None]
    with torch.no_grad():
        found = objective.losses(x0, sigma, noise).double()
        error = (prior(x0 + s * noise, sigma) - x0).double()
    expected = (s**2 + 0.25**2) / (s * 0.25) ** 2 * error.square()
    # At the lowest noise level the estimate is rounded to 1e-7 and the weight is 1 / sigma^2.
    torch.testing.assert_close(found, expected.mean((1, 2, 3)), rtol=5e-3, atol=0.0)


@pytest.mark.parametrize("predicts", KINDS)
def test_every_parametrisation_learns_and_its_card_says_which(folder, settings, predicts):
    paint_flat(folder)
    run(settings(f"predicts={predicts}", "steps=60", "lr=5e-3", "checkpoint_every=20"))
    card = load_natural(folder / "out" / "prior.safetensors").card
    assert card["parametrization"] == predicts
    losses = [float(row["loss"]) for row in csv.DictReader((folder / "out" / "log.csv").open())]
    assert losses[-1] < 0.7 * losses[0]


def test_the_card_says_what_the_weights_learned_from(folder, settings):
    licences = ["+licences.a=MIT", "+licences.b='CC BY 4.0'"]
    run(settings("ema=[0.5,0.9]", "validate_every=2", *licences))
    prior = load_natural(folder / "out" / "prior.safetensors")
    card = prior.card
    assert card["licences"] == {"a": "MIT", "b": "CC BY 4.0"}
    assert card["sources"] == ["a", "b"]
    assert (card["images"], card["steps"], card["channels"], card["sigma_range"]) == (3, 6, 3, [0.002, 50.0])
    assert card["ema"] in (0.5, 0.9)
    assert set(card["validation"]) == {f"psnr {level}" for level in validate.LEVELS}
    assert card["training"]["threads"] == torch.get_num_threads()
    assert card["sha256"] == weight_hash(prior)
    assert str(folder) not in str(card)
    rows = list(csv.DictReader((folder / "out" / "validation.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    last = {key: float(value) for key, value in rows[-1].items() if key.startswith("psnr")}
    means = {ema: sum(v for k, v in last.items() if k.endswith(f"ema {ema}")) for ema in ("0.5", "0.9")}
    assert means[f"{card['ema']:g}"] == max(means.values()), "the average of best validation is kept"
    assert "held-out loss 0.1 to 0.3" in rows[-1]
    assert not list((folder / "out").glob(".*"))


def test_without_held_out_images_there_is_no_validation(folder, settings, capsys):
    run(settings("heldout=0"))
    assert "No image is held out, so there is no validation." in capsys.readouterr().out
    assert load_natural(folder / "out" / "prior.safetensors").card["validation"] == {}
    assert not (folder / "out" / "validation.csv").exists()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", ["dncnn", "ffdnet", "drunet"])
def test_denoisers_are_read_by_the_prior_slot(folder, settings, network, channels):
    run(settings(f"channels={channels}", "sigma_range=[0.0,0.3]", "validate_every=6", network=network))
    path = folder / "out" / "prior.safetensors"
    prior = load(f"{network}:{path}", sigma_range=(0.0, 0.3))
    assert prior.channels == channels
    objective = build(settings(f"channels={channels}", "sigma_range=[0.0,0.3]", network=network))
    fill_from(objective, str(path))
    x0 = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma, noise = torch.tensor([0.05, 0.2]), torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        error = prior(x0 + sigma[:, None, None, None] * noise, sigma) - x0
        torch.testing.assert_close(objective.losses(x0, sigma, noise), error.square().mean((1, 2, 3)))
    rows = list(csv.DictReader((folder / "out" / "validation.csv").open()))
    assert "psnr 75" in rows[-1], "0.3 is above 75 of 255"


@pytest.mark.parametrize("network", ["unet", "dncnn", "ffdnet", "drunet"])
def test_the_loss_goes_through_the_runner(settings, network):
    objective = build(settings("sigma_range=[0.01,0.3]", network=network))
    calls = []

    class Wrapper(torch.nn.Module):
        def forward(self, *given):
            calls.append(len(given))
            return objective.network(*given)

    objective.runner = Wrapper()
    images = torch.full((2, 3, 16, 16), 0.3)
    objective.losses(images, torch.tensor([0.1, 0.2]), torch.ones_like(images)).mean().backward()
    assert len(calls) == 1, "what torch.compile or DistributedDataParallel made of the network is what runs"
    assert all(value.grad is not None for value in objective.network.parameters())


def test_denoisers_learn(folder, settings):
    paint_flat(folder)
    for network in ("dncnn", "ffdnet", "drunet"):
        out = folder / network
        run(settings(f"out={out}", "steps=60", "lr=3e-3", "checkpoint_every=20", network=network))
        losses = [float(row["loss"]) for row in csv.DictReader((out / "log.csv").open())]
        assert losses[-1] < 0.7 * losses[0], network


def test_training_goes_on_from_a_file(folder, settings):
    run(settings(f"out={folder / 'first'}"))
    first = folder / "first" / "prior.safetensors"
    objective = build(settings())
    fill_from(objective, str(first))
    assert torch.equal(objective.network.head.weight, load_natural(first).network.head.weight)
    with pytest.raises(SettingsError, match=r"init=.* is a U-Net .* that predicts F, and the settings ask for .* eps"):
        run(settings(f"init={first}", "predicts=eps"))
    with pytest.raises(SettingsError, match=r"init=.* cannot be used: .*"):
        run(settings(f"init={first}", network="dncnn"))
    run(settings(f"init={first}"))
    assert len(load_natural(folder / "out" / "prior.safetensors").card["init_sha256"]) == 64


def test_validation_is_the_psnr_of_a_known_denoiser():
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = validate.denoising_psnr(as_prior(lambda x, sigma: x), images, batch=2)
    expected = {f"psnr {level}": -20 * np.log10(level / 255) for level in validate.LEVELS}
    assert kept == pytest.approx(expected, abs=0.2)
    assert kept == validate.denoising_psnr(as_prior(lambda x, sigma: x), images, batch=3)


def test_bands_hold_every_noise_level():
    sigma = torch.tensor([0.002, 0.02, 0.05, 0.2, 0.5, 2.0, 50.0])
    assert validate.bands_of(sigma).tolist() == list(range(7))
    assert len(validate.band_names()) == 7


def test_sheets_hold_every_image(folder, settings):
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 4, 6) / 5
    sheet = sheets.tile(images, 2)
    assert sheet.shape == (1, 3 * 6 - 2, 2 * 8 - 2)
    for n, value in enumerate((0.0, 0.2, 0.4, 0.6, 0.8)):
        top, left = n // 2 * 6, n % 2 * 8
        torch.testing.assert_close(sheet[:, top : top + 4, left : left + 6], torch.full((1, 4, 6), value))
    assert bool((sheet[:, 4:6] == 1).all())
    run(settings("sheets=2", "steps=2", "decay=1"))
    denoised, generated = (
        Image.open(folder / "out" / "sheets" / f"{k}_0000002.png") for k in ("denoised", "generated")
    )
    assert denoised.size == (7 * 18 - 2, 2 * 18 - 2)
    assert generated.size == (2 * 18 - 2, 16)
    terms = [provenance.read(image.filename).source for image in (denoised, generated)]
    assert terms == ["compositeSynthetic", "trainedAlgorithmicMedia"]


def test_muon_makes_matrices_nearly_orthogonal():
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 40), (40, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_a_muon_step_has_the_length_of_an_adam_step():
    weight = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1).step()
    # A matrix of 16 orthonormal rows of 72 has the mean square 1 / 72, and 0.2 sqrt(72) of its root is 0.2.
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.2)
    assert float((weight.detach() * weight.grad).sum()) < 0
