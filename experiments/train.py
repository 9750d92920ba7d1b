"""Train a diffusion prior on a folder of images: `python -m experiments.train data=DIR`.

The loss is the denoising loss of EDM (Karras et al. 2022, eq. 8: unit weight on the network output F). Every step draws
its crops and its noise from a stream of (seed, step), so a run that was stopped goes on from its last checkpoint with
the numbers it would have seen. Raising or lowering `steps` between two runs moves the start of the decay and nothing
before it, because the learning rate is constant between warm-up and decay.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import time
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from invdiff.priors.diffusion import edm_scalings
from invdiff.priors.unet import UNet
from invdiff.priors.weights import read_prior, save_prior

from .muon import Muon

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def source_of(name: str) -> str:
    """The photograph a file was cut from: tiles `SOURCE__photo__size_nn` share one, other files stand alone."""
    parts = name.rsplit(".", 1)[0].split("__")
    return "__".join(parts[:2]) if len(parts) == 3 else name


def hold_out(names: list[str], count: int) -> list[str]:
    """At least `count` files, whole photographs at a time, in the order of the SHA-256 of the photograph's name."""
    sources: dict[str, list[str]] = {}
    for name in sorted(names):
        sources.setdefault(source_of(name), []).append(name)
    held: list[str] = []
    for source in sorted(sources, key=lambda s: hashlib.sha256(s.encode()).hexdigest()):
        if len(held) >= count:
            break
        held += sources[source]
    return sorted(held)


class Crops:
    """Random flipped and rotated square crops of images that are decoded once."""

    def __init__(self, folder: Path, exclude: set[str], crop: int) -> None:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name not in exclude)
        if not paths:
            raise SystemExit(f"No images in {folder}: expected files ending in {', '.join(sorted(SUFFIXES))}.")
        self.sources = sorted({p.name.split("__")[0] for p in paths if "__" in p.name})
        self.images = [np.asarray(Image.open(p).convert("RGB")) for p in paths]
        self.images = [i for i in self.images if min(i.shape[:2]) >= crop]
        area = np.array([i.shape[0] * i.shape[1] for i in self.images], dtype=float)
        self.weights = area / area.sum()
        self.crop = crop

    def batch(self, size: int, random: np.random.Generator) -> Tensor:
        """(size, 3, crop, crop) in [0, 1]."""
        out = np.empty((size, self.crop, self.crop, 3), dtype=np.uint8)
        for n, index in enumerate(random.choice(len(self.images), size, p=self.weights)):
            image = self.images[index]
            top = random.integers(image.shape[0] - self.crop + 1)
            left = random.integers(image.shape[1] - self.crop + 1)
            tile = np.rot90(image[top : top + self.crop, left : left + self.crop], random.integers(4))
            out[n] = tile[:, ::-1] if random.integers(2) else tile
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def draw_sigma(size: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Noise levels: four in five log-normal around 0.16 (where detail is decided), one in five log-uniform."""
    narrow = (-1.8 + 1.2 * torch.randn(size, generator=generator)).exp()
    wide = (math.log(low) + (math.log(high) - math.log(low)) * torch.rand(size, generator=generator)).exp()
    pick = torch.rand(size, generator=generator) < 0.2
    return torch.where(pick, wide, narrow).clamp(low, high)


def learning_rate(step: int, cfg: DictConfig) -> float:
    """Warm-up, constant, linear decay to zero."""
    return cfg.lr * min(1.0, (step + 1) / cfg.warmup, max(0.0, (cfg.steps - step) / cfg.decay))


def optimizers(net: torch.nn.Module, name: str, lr: float) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the inner convolutions and AdamW for the rest."""
    inner = [
        value
        for key, value in net.named_parameters()
        if name == "muon" and value.ndim == 4 and not key.startswith(("head", "tail"))
    ]
    chosen = {id(value) for value in inner}
    rest = [value for value in net.parameters() if id(value) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.995), weight_decay=1e-4)
    return [Muon(inner, lr), adamw] if inner else [adamw]


def save_atomically(state: object, path: Path) -> None:
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(cfg: DictConfig) -> None:
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    heldout = set(Path(cfg.heldout).read_text().split())
    crops = Crops(Path(cfg.data), heldout, cfg.crop)
    net = UNet(**OmegaConf.to_container(cfg.network)).to(cfg.device, memory_format=torch.channels_last)  # type: ignore[call-overload,arg-type]
    if cfg.init is not None:
        net.load_state_dict({k: v.float() for k, v in read_prior(cfg.init)[0].items()})
    average = {k: v.detach().clone() for k, v in net.named_parameters()}
    steppers = optimizers(net, cfg.optimizer, cfg.lr)
    run = torch.compile(net) if cfg.compile else net
    start, checkpoint = 0, out / "last.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=cfg.device, weights_only=True)
        net.load_state_dict(state["net"])
        for stepper, held in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(held)
        average, start = state["average"], state["step"]
        print(f"resumed at step {start}", flush=True)
    running, clock = 0.0, time.monotonic()
    for step in range(start, cfg.steps):
        numbers = np.random.default_rng([cfg.seed, step])
        generator = torch.Generator().manual_seed(int(numbers.integers(2**62)))
        x0 = crops.batch(cfg.batch, numbers)
        sigma = draw_sigma(cfg.batch, cfg.sigma_range[0], cfg.sigma_range[1], generator)
        noise = torch.randn(x0.shape, generator=generator)
        x0, sigma, noise = (t.to(cfg.device) for t in (x0, sigma, noise))
        s = sigma[:, None, None, None]
        c_skip, c_out, c_in, c_noise = edm_scalings(s, cfg.sigma_data)
        noisy = x0 - 0.5 + s * noise
        target = (x0 - 0.5 - c_skip * noisy) / c_out
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = learning_rate(step, cfg)
        with torch.autocast(str(cfg.device).split(":")[0], torch.bfloat16):
            output = run((c_in * noisy).to(memory_format=torch.channels_last), c_noise.flatten())
        loss = (output.float() - target).square().mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"The loss is {loss.item()} at step {step}: the last good checkpoint is {checkpoint}.")
        net.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.clip)
        for stepper in steppers:
            stepper.step()
        keep = min(cfg.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in net.named_parameters():
                average[key].lerp_(value, 1 - keep)
        running += loss.item()
        done = step + 1
        if done % cfg.checkpoint_every == 0 or done == cfg.steps:
            span, rate = (done - start - 1) % cfg.checkpoint_every + 1, time.monotonic() - clock
            row = {"step": done, "loss": running / span, "lr": learning_rate(step, cfg), "s_per_step": rate / span}
            with (out / "log.csv").open("a", newline="") as handle:
                writer = csv.DictWriter(handle, row.keys())
                if handle.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
            print(json.dumps(row), flush=True)
            held = [stepper.state_dict() for stepper in steppers]
            state = {"net": net.state_dict(), "optimizers": held, "average": average, "step": done}
            save_atomically(state, checkpoint)
            running, clock = 0.0, time.monotonic()
    recipe = OmegaConf.to_container(cfg)
    assert isinstance(recipe, dict)
    card = {
        "sources": crops.sources,
        "sigma_data": cfg.sigma_data,
        "sigma_range": list(cfg.sigma_range),
        # What changes the weights, and no place of the machine that trained them.
        "config": {k: v for k, v in recipe.items() if k not in ("data", "out", "heldout", "device")},
        "images": len(crops.images),
    }
    save_prior(out / "natural.safetensors", average, net.config, card)


@hydra.main(version_base=None, config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    train(cfg)


if __name__ == "__main__":
    main()
