"""Folders of diffusers: the denoiser is the one that diffusers' own scheduler computes, and odd folders are refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.priors import load
from invdiff.priors.diffusers_adapter import scheduled_alphas_bar

diffusers = pytest.importorskip("diffusers", reason="the package diffusers is not installed")

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def saved(folder: Path, schedule: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    """A random network and its scheduler, written as a pipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(**SMALL | changes)
    scheduler = diffusers.DDPMScheduler(clip_sample=False, **schedule)
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return unet.eval(), scheduler


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    {"trained_betas": [0.01 * (k + 1) for k in range(40)], "num_train_timesteps": 40},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_denoiser_is_the_schedulers(tmp_path: Path, prediction: str, schedule: dict[str, Any]) -> None:
    unet, scheduler = saved(tmp_path / "cats", schedule | {"prediction_type": prediction})
    prior = load(f"diffusers:{tmp_path / 'cats'}", precision="float32", self_test=False)
    assert prior.name == "diffusers:cats"
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = len(scheduler.betas)
    for t in (0, steps // 4, steps // 2):
        kept = scheduler.alphas_cumprod[t].double()
        sigma = float(((1 - kept) / kept).sqrt())
        x = image + sigma / 2 * torch.randn(image.shape, generator=torch.Generator().manual_seed(t))
        with torch.no_grad():
            x_t = (kept.sqrt() * (2 * x - 1)).float()
            output = unet(x_t, t).sample
            expected = scheduler.step(output, t, x_t).pred_original_sample
        level = min(max(sigma / 2, prior.sigma_range[0]), prior.sigma_range[1])
        torch.testing.assert_close(2 * prior(x, level) - 1, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [*SCHEDULES, {"rescale_betas_zero_snr": True}])
def test_the_table_is_that_of_diffusers(schedule: dict[str, Any]) -> None:
    scheduler = diffusers.DDIMScheduler(**schedule)
    found = scheduled_alphas_bar(dict(scheduler.config))
    torch.testing.assert_close(found.float(), scheduler.alphas_cumprod[: len(found)], rtol=2e-4, atol=1e-6)
    assert len(scheduler.alphas_cumprod) - len(found) == (1 if "rescale_betas_zero_snr" in schedule else 0)


def test_a_flat_folder_of_any_image_size_and_a_learned_variance(tmp_path: Path) -> None:
    saved(tmp_path / "pipe", {}, in_channels=1, out_channels=2)
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "pipe" / "unet", flat)
    shutil.copy(tmp_path / "pipe" / "scheduler" / "scheduler_config.json", flat)
    prior = load(f"diffusers:{flat}", self_test=False)
    assert prior.channels == 1
    assert prior(torch.rand(1, 1, 11, 14), 0.2).shape == (1, 1, 11, 14)


def test_loading_leaves_the_random_state_and_an_untrained_network_is_noticed(
    tmp_path: Path, global_random_state_is_untouched: None
) -> None:
    saved(tmp_path / "cats", {})
    with pytest.warns(UserWarning, match="diffusers:cats does not denoise a test image"):
        load(f"diffusers:{tmp_path / 'cats'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("diffusers") / "cats"
    saved(path, {})
    return path


def changed(folder: Path, tmp_path: Path, file: str, **settings: Any) -> Path:
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    config = json.loads((copied / file).read_text())
    (copied / file).write_text(json.dumps(config | settings))
    return copied


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "settings", "sentence"),
    [
        (UNET, {"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel: expected a UNet2DModel"),
        (UNET, {"time_embedding_type": "fourier"}, "is told its noise level .time_embedding_type fourier. and not a"),
        (UNET, {"num_class_embeds": 10}, "wants class labels"),
        (UNET, {"out_channels": 5}, "takes 3 and returns 5 channels"),
        (UNET, {"layers_per_block": 2}, r"safetensors does not fit UNet2DModel: it lacks 'down_blocks"),
        (UNET, {"add_attention": False}, r"does not fit UNet2DModel: it has unexpected 'mid_block"),
        (UNET, {"block_out_channels": [8, 20]}, r"does not fit UNet2DModel: .* has shape"),
        (SCHEDULER, {"prediction_type": "flow"}, "prediction_type of .* is 'flow': expected one of epsilon, sample"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "beta_schedule of .* is 'sigmoid': expected linear"),
    ],
)
def test_settings_that_do_not_serve(
    folder: Path, tmp_path: Path, file: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load(f"diffusers:{changed(folder, tmp_path, file, **settings)}", self_test=False)


def test_files_that_are_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The folder .*nowhere does not exist"):
        load(f"diffusers:{tmp_path / 'nowhere'}")
    copied = changed(folder, tmp_path, SCHEDULER)
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match=r"safetensors has the SHA-256 .* and not the expected 12ab"):
        load(f"diffusers:{copied}", sha256="12ab")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"not a complete safetensors file .*; fetch it again"):
        load(f"diffusers:{copied}")
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(FileNotFoundError, match=r"holds pickled weights \(\.bin\) only, .* save_pretrained"):
        load(f"diffusers:{copied}")
    weights.with_name("diffusion_pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.safetensors does not exist"):
        load(f"diffusers:{copied}")
    (copied / SCHEDULER).write_text("{")
    with pytest.raises(ValueError, match=r"scheduler_config\.json is no JSON"):
        load(f"diffusers:{copied}")
    (copied / SCHEDULER).write_text("[]")
    with pytest.raises(ValueError, match=r"scheduler_config\.json holds list and not named settings"):
        load(f"diffusers:{copied}")
    (copied / SCHEDULER).unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json does not exist"):
        load(f"diffusers:{copied}")
    (copied / "vqvae").mkdir()
    with pytest.raises(ValueError, match=r"is a latent diffusion model \(vqvae\)"):
        load(f"diffusers:{copied}")


def test_the_weights_that_were_hashed_are_the_ones_that_run(folder: Path, tmp_path: Path) -> None:
    import safetensors.torch

    copied = changed(folder, tmp_path, SCHEDULER)
    unet = copied / "unet"
    expected = load(f"diffusers:{copied}", self_test=False, precision="float32")
    state = safetensors.torch.load_file(unet / "diffusion_pytorch_model.safetensors")
    safetensors.torch.save_file({k: v + 1 for k, v in state.items()}, unet / "other.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, "other.safetensors")}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    # Older files name the layers of attention otherwise.
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    older = {}
    for key, value in state.items():
        for new, old in names.items():
            key = key.replace(new, old)
        older[key] = value
    assert older.keys() != state.keys()
    safetensors.torch.save_file(older, unet / "diffusion_pytorch_model.safetensors")
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(f"diffusers:{copied}", self_test=False, precision="float32")(x, 0.3), expected(x, 0.3))


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_schedulers_without_betas_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"names no betas .*; use invdiff\.priors\.from_network"):
        scheduled_alphas_bar(dict(getattr(diffusers, name)().config))


def test_a_schedule_without_betas() -> None:
    with pytest.raises(ValueError, match=r"names no betas \(KarrasVeScheduler\); use invdiff\.priors\.from_network"):
        scheduled_alphas_bar({"_class_name": "KarrasVeScheduler"})


def test_without_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs the package diffusers: pip install invdiff\[diffusers\]"):
        load(f"diffusers:{folder}")
