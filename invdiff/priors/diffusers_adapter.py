"""Folders of the package diffusers (`UNet2DModel` and the configuration of a scheduler) in the prior slot.

Everything is read from the folder, the weights from safetensors only; nothing is downloaded and no code of the folder
runs. The betas come from the scheduler's configuration by the formulas below, so that no scheduler takes part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.priors.base import Prior
from invdiff.priors.network import from_network
from invdiff.priors.weights import fill, load_state_dict

__all__ = ["from_diffusers", "scheduled_alphas_bar"]

_PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def from_diffusers(
    folder: str | Path, *, sha256: str | None = None, precision: str = "auto", self_test: bool = True
) -> Prior:
    """The unconditional diffusion model in a folder that `save_pretrained` of diffusers wrote, as a prior.

    The folder is that of a pipeline (with `unet/` and `scheduler/`), or holds `config.json`, `scheduler_config.json`
    and `diffusion_pytorch_model.safetensors` itself. What the network predicts (epsilon, sample or v_prediction) and
    its betas are read from the scheduler's configuration; images are in [-1, 1], as everywhere in diffusers.

    Args:
        folder: the folder; nothing is ever downloaded.
        sha256: the SHA-256 that the file of weights must have.
        precision: "auto", "float32" or "bfloat16".
        self_test: denoise a built-in image and warn if the settings look wrong.

    Raises:
        ImportError: the package diffusers is not installed.
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the folder holds another kind of model or schedule, or weights that do not fit.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist; give a folder that save_pretrained wrote.")
    for latent in ("vae", "vqvae", "vq_model"):
        if (folder / latent).is_dir():
            raise ValueError(f"{folder} is a latent diffusion model ({latent}): its network sees codes and not images.")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    settings = _read(unet / "config.json")
    schedule = _read(scheduler / "scheduler_config.json")
    kind = settings.get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{unet} holds a {kind}: expected a UNet2DModel, which draws images without a condition.")
    if settings.get("class_embed_type") is not None or settings.get("num_class_embeds") is not None:
        raise ValueError(f"The network in {unet} wants class labels; give it one and use invdiff.priors.from_network.")
    if settings.get("time_embedding_type") == "fourier":
        raise ValueError(
            f"The network in {unet} is told its noise level (time_embedding_type fourier) and not a step; use "
            f"invdiff.priors.from_network with the schedule and time of its training."
        )
    channels, returned = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if returned not in (channels, 2 * channels):
        raise ValueError(f"The network in {unet} takes {channels} and returns {returned} channels: expected as many.")
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in _PREDICTS:
        raise ValueError(
            f"prediction_type of {scheduler} is {prediction!r}: expected one of {', '.join(_PREDICTS)}; use "
            f"invdiff.priors.from_network for others."
        )
    alphas_bar = scheduled_alphas_bar(schedule, scheduler)
    prior = from_network(
        _Sample(_network(unet, settings, sha256)),
        predicts=_PREDICTS[prediction],
        alphas_bar=alphas_bar,
        time="integer" if settings.get("time_embedding_type") == "learned" else "fraction",
        channels=channels,
        learned_sigma=returned == 2 * channels,
        multiple=2 ** (len(settings.get("block_out_channels", (0,) * 4)) - 1),
        precision=precision,
        self_test=self_test,
        name=f"diffusers:{folder.name}",
    )
    prior.settings = {"config": settings, "scheduler": schedule}
    return prior


def scheduled_alphas_bar(config: Mapping[str, Any], path: str | Path = "the configuration") -> Tensor:
    """The table of alpha_bar, (T,) float64, that a scheduler's configuration stands for.

    Linear betas (Ho et al. 2020, section 4), scaled_linear (even in sqrt(beta); Rombach et al. 2022), squaredcos_cap_v2
    (Nichol and Dhariwal 2021, eq. 17, with betas cut at 0.999) or trained_betas as they stand. Betas rescaled to no
    signal at the end (Lin et al. 2024, algorithm 1) lose their last step, which has no image left.

    Args:
        config: the entries of `scheduler_config.json`.
        path: where it is from, for messages.

    Raises:
        ValueError: for another schedule.

    >>> len(scheduled_alphas_bar({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}))
    50
    """
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    form, trained = config.get("beta_schedule"), config.get("trained_betas")
    if trained is not None:
        betas = torch.as_tensor(trained, dtype=torch.float64)
    elif "beta_schedule" not in config:
        raise ValueError(f"{path} names no betas ({config.get('_class_name')}); use invdiff.priors.from_network.")
    elif form == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
    elif form == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    elif form == "squaredcos_cap_v2":
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - kept[1:] / kept[:-1]).clamp_max(0.999)
    else:
        raise ValueError(
            f"beta_schedule of {path} is {form!r}: expected linear, scaled_linear or squaredcos_cap_v2; use "
            f"invdiff.priors.from_network with the betas."
        )
    alphas_bar = (1 - betas).cumprod(0)
    if config.get("rescale_betas_zero_snr"):
        root = alphas_bar.sqrt()
        alphas_bar = (((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)[:-1]
    return alphas_bar


class _Sample(nn.Module):
    """The network as a function of x and t that returns a tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.unet(x, time, return_dict=False)[0]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a folder that save_pretrained of diffusers wrote.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); fetch it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__} and not named settings; fetch it again.")
    return found


def _network(folder: Path, settings: dict[str, Any], sha256: str | None) -> nn.Module:
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        if list(folder.glob("*.bin")):
            raise FileNotFoundError(
                f"{folder} holds pickled weights (.bin) only, which can run code; where you trust them, load them with "
                f"diffusers and write them again with save_pretrained, which makes safetensors."
            )
        raise FileNotFoundError(f"{weights} does not exist; give a folder that save_pretrained of diffusers wrote.")
    state = load_state_dict(weights, sha256=sha256)
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError(
            "Reading a diffusers folder needs the package diffusers: pip install invdiff[diffusers]."
        ) from (error)
    # Layers draw their first weights, all replaced by fill, from the global random state. The file that was read and
    # hashed above is the one that fills them: from_pretrained would prefer another where an index names one.
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = UNet2DModel.from_config(settings)
    wanted = network.state_dict()
    fill(network, {_renamed(key, wanted): tensor for key, tensor in state.items()}, weights)
    return network


def _renamed(key: str, wanted: Mapping[str, Tensor]) -> str:
    """The name of today for a layer of attention in older files of diffusers; other names as they are."""
    if key in wanted:
        return key
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".{old}.", f".{new}.")
    return key
