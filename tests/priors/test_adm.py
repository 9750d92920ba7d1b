"""The U-Net of guided diffusion: published names and shapes, the output of deepinv's, and denoising once trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff.priors import load
from invdiff.priors.adm import ADM, PUBLISHED, _Attention, _ResBlock, adm_settings, load_adm

TINY: dict[str, Any] = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_channels": 32}


def from_deepinv(reference: nn.Module) -> dict[str, Tensor]:
    """The weights of deepinv's network without its tables of the schedule."""
    return {key: value for key, value in reference.state_dict().items() if "alphas_cumprod" not in key}


def randomised(network: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """Random weights everywhere, as the zeros that blocks start with would hide what comes before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def tiny(**options: Any) -> ADM:
    with torch.random.fork_rng(devices=[]):
        network = ADM(**TINY | options)
    randomised(network)
    return network


@pytest.mark.parametrize(
    ("name", "large", "millions"), [("ffhq_10m", False, 93.56), ("256x256_diffusion_uncond", True, 552.8)]
)
def test_names_and_shapes_are_the_published_ones(name: str, large: bool, millions: float) -> None:
    from deepinv.models import DiffUNet

    with torch.device("meta"):
        ours = ADM(**PUBLISHED[name])
        reference = from_deepinv(DiffUNet(large_model=large, pretrained=None))
    assert {key: value.shape for key, value in ours.state_dict().items()} == {k: v.shape for k, v in reference.items()}
    # The size that Dhariwal and Nichol 2021 state for the large network is 553 million.
    assert sum(value.numel() for value in reference.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    found = adm_settings(reference, name)
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert (found["channels"], found["scale_shift"], found["resblock_updown"], found["classes"]) == (
        3,
        True,
        True,
        None,
    )


@pytest.fixture(scope="module")
def faces() -> nn.Module:
    """deepinv's network of the size of ffhq_10m, at random weights."""
    from deepinv.models import DiffUNet

    with torch.device("meta"):
        reference = DiffUNet(large_model=False, pretrained=None)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in reference.state_dict().items():
        fan = value[0].numel() if value.ndim > 1 else 25
        state[key] = torch.randn(value.shape, generator=generator) * fan**-0.5 + (value.ndim == 1)
    betas = torch.linspace(1e-4, 0.02, 1000)
    state["sqrt_alphas_cumprod"] = (1 - betas).cumprod(0).sqrt()
    state["sqrt_1m_alphas_cumprod"] = (1 - (1 - betas).cumprod(0)).sqrt()
    reference.load_state_dict(state, assign=True)
    return reference.eval()


def test_the_forward_pass_is_that_of_deepinv(faces: nn.Module) -> None:
    with torch.device("meta"):
        ours = ADM(**PUBLISHED["ffhq_10m"])
    ours.load_state_dict(from_deepinv(faces), assign=True)
    x = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        expected = faces.forward_diffusion(x, time)  # type: ignore[operator]
        found = ours.eval()(x, time)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_prior_is_deepinvs_denoiser_at_its_time_steps(faces: nn.Module, tmp_path: Path) -> None:
    torch.save(from_deepinv(faces), tmp_path / "faces.pt")
    prior = load(f"adm:{tmp_path / 'faces.pt'}", precision="float32", self_test=False)
    assert prior.name == "adm:faces"
    x = 0.5 + 0.01 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ratio = faces.sqrt_1m_alphas_cumprod[40] / faces.sqrt_alphas_cumprod[40]  # type: ignore[index]
    with torch.no_grad():
        expected = faces(x, ratio / 2)
        found = prior(x, float(ratio) / 2)
    assert float((expected - x).std()) > 0.01
    # deepinv clamps its estimate to [0, 1].
    torch.testing.assert_close(found.clamp(0, 1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("new_order", [False, True])
def test_both_layouts_of_attention(new_order: bool) -> None:
    from deepinv.models.diffunet import AttentionBlock

    ours = randomised(_Attention(64, 2, new_order))
    reference = AttentionBlock(64, num_head_channels=32, use_new_attention_order=new_order)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 64, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_residual_blocks_with_either_modulation(scale_shift: bool) -> None:
    from deepinv.models.diffunet import ResBlock

    ours = randomised(_ResBlock(32, 64, 16, scale_shift=scale_shift))
    reference = ResBlock(32, 16, 0.0, out_channels=64, use_scale_shift_norm=scale_shift).eval()
    reference.load_state_dict(ours.state_dict())
    x, embedding = (torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in ((2, 32, 6, 5), (2, 16)))
    torch.testing.assert_close(ours(x, embedding), reference(x, embedding), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resblock_updown": False},
        {"scale_shift": False, "attention": ()},
        {"multipliers": (0.5, 1, 2), "width": 64, "blocks": 2, "attention": (1, 4)},
        {"multipliers": (1,), "attention": (1,), "blocks": 3},
        {"channels": 1, "returned": 2, "classes": 7},
    ],
)
def test_settings_are_read_off_the_file(options: dict[str, Any]) -> None:
    given = {k: v for k, v in (TINY | options).items() if k != "head_channels"}
    network = tiny(**options)
    found = adm_settings(network.state_dict(), "w.pt")
    assert {key: found[key] for key in given} == given
    rebuilt = ADM(**found, head_channels=32)
    rebuilt.load_state_dict(network.state_dict())
    x = torch.randn(1, found["channels"], 8, 12, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([3]) if found["classes"] else None
    assert network(x, torch.tensor([5.0]), label).shape == (1, found["returned"], 8, 12)
    assert torch.equal(rebuilt(x, torch.tensor([5.0]), label), network(x, torch.tensor([5.0]), label))


def test_a_labelled_network(tmp_path: Path) -> None:
    network = tiny(classes=7)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    x = torch.rand(2, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"head_channels": 32, "self_test": False, "precision": "float32"}
    three, four = (load_adm(tmp_path / "w.pt", label=k, **options)(x, 0.3) for k in (3, 4))
    assert three.shape == x.shape
    assert not torch.allclose(three, four)
    for label in (None, 7, -1):
        with pytest.raises(ValueError, match=rf"label is {label} and the network of .* wants a label from 0 to 6"):
            load_adm(tmp_path / "w.pt", label=label, **options)
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"label is 3 and .* takes no label"):
        load_adm(tmp_path / "w.pt", label=3, **options)


def test_the_record_tells_what_the_file_does_not(tmp_path: Path) -> None:
    from invdiff.record import describe

    torch.save(tiny(classes=8).state_dict(), tmp_path / "w.pt")
    common: dict[str, Any] = {"label": 0, "head_channels": 32, "self_test": False}
    changes: list[dict[str, Any]] = [{}, {"label": 7}, {"head_channels": 64}, {"new_order": True}]
    found = [describe(load_adm(tmp_path / "w.pt", **common | change)) for change in changes]
    assert found[0] == describe(load_adm(tmp_path / "w.pt", **common))
    assert all(other["settings"] != found[0]["settings"] for other in found[1:])
    assert found[1]["settings"]["label"] == 7


def test_learned_variances_are_left_out(tmp_path: Path) -> None:
    network = tiny(returned=6)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    options: dict[str, Any] = {"head_channels": 32, "self_test": False, "precision": "float32"}
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = load_adm(tmp_path / "w.pt", **options)(x, 0.3)
    with torch.no_grad():
        network.out[2].weight[3:] += 1  # type: ignore[index, operator]
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert torch.equal(load_adm(tmp_path / "w.pt", **options)(x, 0.3), before)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    state = tiny().state_dict()
    path = tmp_path / "w.pt"

    def saved(changed: dict[str, Tensor]) -> Path:
        torch.save(changed, path)
        return path

    with pytest.raises(
        ValueError, match=r"w\.pt does not fit ADM: it lacks 'time_embed\.0\.weight'; is it another arch"
    ):
        load_adm(saved({"model.0.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match="its blocks do not form a U-Net"):
        load_adm(saved({k: v for k, v in state.items() if "input_blocks.3" not in k}))
    with pytest.raises(ValueError, match=r"it lacks 'middle_block\.0\.in_layers\.0\.weight' and 25 more"):
        load_adm(saved({k: v for k, v in state.items() if "middle" not in k}), head_channels=32)
    with pytest.raises(ValueError, match="it has unexpected 'extra'"):
        load_adm(saved(dict(state) | {"extra": torch.ones(1)}), head_channels=32)
    wide = {k: torch.ones(5, *v.shape[1:]) if k == "out.2.weight" else v for k, v in state.items()}
    with pytest.raises(
        ValueError, match=r"'out\.2\.bias' has shape \(3,\) and not \(5,\); check the number of channels"
    ):
        load_adm(saved(wide), head_channels=32)
    with pytest.raises(ValueError, match=r"64 channels of attention do not divide into heads of 60 channels"):
        load_adm(saved(dict(state)), head_channels=60)
    with pytest.raises(ValueError, match=r"w\.pt has the SHA-256 [0-9a-f]{64} and not the expected 00ff"):
        load_adm(path, sha256="00FF")
