"""DnCNN, FFDNet and DRUNet: the published figures, the published names, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff.priors import Prior, load, load_natural
from invdiff.priors.cnn import DRUNet, DRUNetwork
from invdiff.priors.weights import load_state_dict, save_prior


def stack(widths: list[int], folder: Path, name: str = "w.pth") -> Path:
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for n in range(len(widths) - 1):
        state[f"model.{2 * n}.weight"] = 0.1 * torch.randn(widths[n + 1], widths[n], 3, 3, generator=generator)
        state[f"model.{2 * n}.bias"] = 0.1 * torch.randn(widths[n + 1], generator=generator)
    torch.save(state, folder / name)
    return folder / name


def psnr_on_cbsd68(prior: Prior, data: Path) -> float:
    from skimage import io

    files = sorted((data / "test" / "CBSD68").glob("*.png"))[::8]
    total = 0.0
    for k, file in enumerate(files):
        truth = torch.from_numpy(io.imread(file) / 255.0).permute(2, 0, 1)[None].float()
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(k))
        with torch.no_grad():
            total += float(-10 * (prior(truth + 25 / 255 * noise, 25 / 255) - truth).square().mean().log10())
    return total / len(files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "file", "published"), [("dncnn", "dncnn_color_blind.pth", 31.21), ("ffdnet", "ffdnet_color.pth", 31.13)]
)
def test_the_published_psnr_on_cbsd68(data: Path, kind: str, file: str, published: float) -> None:
    prior = load(f"{kind}:{data / 'weights' / 'kair' / file}")
    assert psnr_on_cbsd68(prior, data) == pytest.approx(published, abs=0.05)


def test_ranges_of_the_kair_files(data: Path) -> None:
    kair = data / "weights" / "kair"
    assert load(f"dncnn:{kair / 'dncnn_color_blind.pth'}").sigma_range == (0.0, 55 / 255)
    gray = load(f"dncnn:{kair / 'dncnn_25.pth'}")
    assert gray.sigma_range == (25 / 255, 25 / 255)
    assert gray.channels == 1
    assert load(f"ffdnet:{kair / 'ffdnet_color.pth'}").sigma_range == (0.0, 75 / 255)


def test_gray_dncnn_denoises(data: Path) -> None:
    from skimage import data as pictures

    truth = torch.from_numpy(pictures.camera()[100:200, 180:280] / 255.0)[None, None].float()
    noisy = truth + 25 / 255 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    estimate = load(f"dncnn:{data / 'weights' / 'kair' / 'dncnn_25.pth'}")(noisy, 25 / 255)
    assert float(10 * ((noisy - truth).square().mean() / (estimate - truth).square().mean()).log10()) > 8


def test_dncnn_subtracts_what_the_stack_returns(tmp_path: Path) -> None:
    path = stack([1, 4, 1], tmp_path, "any_15.pth")
    prior = load(f"dncnn:{path}", precision="float64")
    assert prior.sigma_range == (15 / 255, 15 / 255)
    state = {key: value.double() for key, value in torch.load(path, weights_only=True).items()}
    x = torch.rand(2, 1, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conv = torch.nn.functional.conv2d
    hidden = conv(x, state["model.0.weight"], state["model.0.bias"], padding=1).relu()
    torch.testing.assert_close(
        prior(x, 0.01), x - conv(hidden, state["model.2.weight"], state["model.2.bias"], padding=1)
    )


def test_ffdnet_sees_sigma_and_every_pixel(tmp_path: Path) -> None:
    prior = load(f"ffdnet:{stack([13, 8, 12], tmp_path)}", precision="float64")
    x = torch.rand(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert prior.channels == 3
    assert not torch.allclose(prior(x, 0.1), prior(x, 0.2))
    # The odd size is padded by repeating the last row and column, nothing else.
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    torch.testing.assert_close(prior(x, 0.1), prior(padded, 0.1)[..., :9, :7])


@pytest.mark.parametrize("channels", [1, 3])
def test_drunet_has_the_published_names_and_equals_deepinv(tmp_path: Path, channels: int) -> None:
    from deepinv.models import DRUNet as Reference

    reference = Reference(in_channels=channels, out_channels=channels, pretrained=None).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=1 / parameter[0].numel() ** 0.5, generator=generator)
    torch.save(reference.state_dict(), tmp_path / "drunet.pth")
    assert {k: v.shape for k, v in DRUNetwork(channels).state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    prior = load(f"drunet:{tmp_path / 'drunet.pth'}")
    assert isinstance(prior, DRUNet)
    assert prior.channels == channels
    assert prior.sigma_range == (0.0, 50 / 255)
    x = torch.rand(2, channels, 32, 40, generator=generator)
    sigma = torch.tensor([0.1, 0.05])
    with torch.no_grad():
        expected = reference(x, sigma)
        result = prior(x, sigma)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert sum(p.numel() for p in prior.network.parameters()) == (32_640_960 if channels == 3 else 32_638_656)


def test_drunet_infers_its_size(tmp_path: Path) -> None:
    network = DRUNetwork(1, [4, 6, 8, 10], 2)
    torch.save(network.state_dict(), tmp_path / "small.pth")
    prior = DRUNet.from_file(tmp_path / "small.pth", sigma_range=(0.0, 0.1))
    x = torch.rand(1, 1, 11, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        padded = torch.nn.functional.pad(x, (0, 3, 0, 5), mode="replicate")
        expected = network(torch.cat([padded, torch.full_like(padded, 0.1)], dim=1))[..., :11, :5]
        torch.testing.assert_close(prior(x, 0.1), expected)


def test_precision_and_layout(tmp_path: Path) -> None:
    path = stack([3, 8, 8, 3], tmp_path)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = load(f"dncnn:{path}", sigma=0.1)(x, 0.1)
    last = load(f"dncnn:{path}", sigma=0.1, channels_last=True)(x, 0.1)
    torch.testing.assert_close(last, exact, rtol=0, atol=1e-5)
    coarse = load(f"dncnn:{path}", sigma=0.1, precision="bfloat16")(x, 0.1)
    assert coarse.dtype == torch.float32
    assert 0 < float((coarse - exact).abs().max()) < 0.02
    with pytest.raises(ValueError, match="precision is 'half': expected one of auto, float32, bfloat16, float64"):
        load(f"dncnn:{path}", sigma=0.1, precision="half")


def test_moving_makes_a_copy(tmp_path: Path) -> None:
    prior = load(f"dncnn:{stack([3, 8, 3], tmp_path)}", sigma=0.1)
    assert prior.to() is prior
    assert prior.to(device="cpu") is prior
    moved = prior.to(device="meta")
    assert moved is not prior
    assert next(prior.network.parameters()).device.type == "cpu"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"dncnn is on meta and the image on cpu; move it with prior\.to\(device\)"):
        moved(torch.zeros(1, 3, 4, 4), 0.1)


def test_refusals(tmp_path: Path) -> None:
    wide, same = stack([13, 8, 12], tmp_path, "wide.pth"), stack([3, 8, 3], tmp_path, "same.pth")
    broken = stack([3, 8, 3], tmp_path, "broken.pth")
    state = torch.load(broken, weights_only=True)
    torch.save({**state, "model.2.weight": torch.ones(3, 7, 3, 3)}, broken)
    norm = tmp_path / "norm.pth"
    torch.save({**state, "model.3.running_mean": torch.ones(8)}, norm)
    gap = tmp_path / "gap.pth"
    torch.save({"model.0.weight": state["model.0.weight"], "model.3.weight": state["model.2.weight"]}, gap)
    network = DRUNetwork(3, [4, 4, 4, 4], 1).state_dict()
    unet, thin = tmp_path / "unet.pth", tmp_path / "thin.pth"
    torch.save({key: value for key, value in network.items() if key != "m_up2.0.weight"}, unet)
    torch.save({**network, "m_head.weight": torch.ones(4, 3, 3, 3)}, thin)
    for name, sentence in (
        (f"dncnn:{wide}", "takes 13 and returns 12 channels.*is it a file for ffdnet"),
        (f"ffdnet:{same}", "takes 3 and returns 3 channels.*is it a file for dncnn"),
        (f"dncnn:{same}", "noise level .* cannot be told; give it as sigma=25/255"),
        (f"dncnn:{broken}", "takes 7 channels and the layer before it returns 8"),
        (f"dncnn:{norm}", r"has unexpected 'model\.3\.running_mean'"),
        (f"dncnn:{gap}", r"it lacks 'model\.2\.weight'.*batch normalisation"),
        (f"dncnn:{unet}", r"no weights named 'model\.0\.weight'"),
        (f"drunet:{same}", r"lacks 'm_head\.weight'"),
        (f"drunet:{unet}", r"lacks 'm_up2\.0\.weight'"),
        (f"drunet:{thin}", "takes 3 and returns 3 channels, and a DRUNet takes one more"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            load(name)
        assert str(caught.value).startswith(("The noise", str(tmp_path)))


def test_a_file_of_our_training_says_its_noise_levels(tmp_path: Path) -> None:
    state = load_state_dict(stack([3, 8, 3], tmp_path))
    path = tmp_path / "mine.safetensors"
    save_prior(path, state, {"kind": "dncnn"}, {"sigma_range": [0.0, 0.25]})
    assert load(f"dncnn:{path}").sigma_range == (0.0, 0.25)
    assert load(f"dncnn:{path}", sigma=0.1).sigma_range == (0.1, 0.1)
    with pytest.raises(ValueError, match=r"mine.safetensors holds a dncnn and no diffusion prior: load it with"):
        load_natural(path)
