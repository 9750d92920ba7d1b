"""Images drawn from a diffusion prior, looked at and measured: `python -m benchmarks.generation DIR`.

DIR is the folder of training photographs; `experiments/heldout.txt` names those that were never trained on. Drawn are
sheets of 64x64 and 128x128 images. Their 8x8 patches are compared with those of as many held-out crops by the sliced
2-Wasserstein distance, over the standard deviation of the held-out patches:

    patches     the patches as they are
    texture     each patch less its mean per channel, which leaves detail

Row "held-out" is the floor: crops of other held-out photographs in place of the draws. Row "gaussian" is a stationary
Gaussian process with the mean, the colours and the power spectrum of held-out crops: what second moments alone give.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import unfold

from benchmarks.posterior import sw2
from invdiff import priors, sample, solvers

matplotlib.use("Agg")
PATCH = 8


def crops(paths: list[Path], count: int, size: int, seed: int) -> Tensor:
    """One crop of each of `count` photographs drawn at random, shrunk never, (count, 3, size, size)."""
    random = np.random.default_rng(seed)
    out: list[np.ndarray] = []
    for index in random.permutation(len(paths)):
        image = np.asarray(Image.open(paths[index]).convert("RGB"))
        if min(image.shape[:2]) < size:
            continue
        top, left = (int(random.integers(side - size + 1)) for side in image.shape[:2])
        out.append(image[top : top + size, left : left + size])
        if len(out) == count:
            break
    if len(out) < count:
        raise SystemExit(f"Only {len(out)} held-out images of at least {size} pixels a side: expected {count}.")
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255


def split(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Two halves without a photograph in common: tiles of one stand next to each other in the sorted list."""
    sources = sorted({source(path) for path in paths})
    first = set(sources[::2])
    return [p for p in paths if source(p) in first], [p for p in paths if source(p) not in first]


def source(path: Path) -> str:
    """The photograph that a tile `SOURCE__photo__size_nn` was cut from."""
    parts = path.stem.split("__")
    return "__".join(parts[:2]) if len(parts) == 3 else path.stem


def gaussian(reference: Tensor, count: int, seed: int) -> Tensor:
    """Draws of a stationary Gaussian process with the mean and the cross-spectra of the reference crops."""
    mean = reference.mean((0, 2, 3), keepdim=True)
    window = torch.hann_window(reference.shape[-1], periodic=True)
    window = window[:, None] * window
    spectra = torch.fft.fft2((reference - mean) * window) / window.square().mean().sqrt()
    covariance = torch.einsum("nchw,ndhw->hwcd", spectra, spectra.conj()) / len(reference)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()[..., None, :]
    noise = torch.randn(count, *reference.shape[1:], generator=torch.Generator().manual_seed(seed))
    white = torch.fft.fft2(noise) / reference.shape[-1]
    return torch.fft.ifft2(torch.einsum("hwcd,ndhw->nchw", root, white)).real + mean


def patches(images: Tensor, count: int, seed: int, centred: bool) -> Tensor:
    """`count` random 8x8 patches as vectors."""
    columns = unfold(images, PATCH, stride=4).permute(0, 2, 1).reshape(-1, images.shape[1] * PATCH**2)
    pick = torch.randperm(len(columns), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = columns[pick].double()
    if centred:
        planes = chosen.reshape(len(chosen), images.shape[1], -1)
        chosen = (planes - planes.mean(2, keepdim=True)).flatten(1)
    return chosen


def distances(images: Tensor, reference: Tensor, count: int = 4000) -> dict[str, float]:
    """The sliced Wasserstein distances of the patches, over the standard deviation of the reference's."""
    out = {}
    for name, centred in (("patches", False), ("texture", True)):
        a, b = patches(images, count, 1, centred), patches(reference, count, 2, centred)
        size = min(len(a), len(b))
        spread = float((b - b.mean(0)).square().mean().sqrt())
        out[name] = sw2(a[:size], b[:size]) / spread
    return out


def sheet(images: Tensor, columns: int, path: Path) -> None:
    """The images side by side in one PNG, two pixels apart, every pixel shown as it is."""
    count, _, side, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (side + 2) - 2, columns * (side + 2) - 2, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (side + 2) * (index // columns), (side + 2) * (index % columns)
        pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        canvas[top : top + side, left : left + side] = pixels
    Image.fromarray(canvas).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw from a prior, and compare patches with held-out photographs.")
    parser.add_argument("folder", type=Path, help="the training photographs")
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--heldout", type=Path, default=Path("experiments/heldout.txt"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--count",
        type=int,
        default=128,
        help="of 64x64; a quarter as many of 128x128",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path, default=Path("docs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generation.csv")
    settings = parser.parse_args()
    prior = priors.load(settings.prior)
    held = [settings.folder / name for name in settings.heldout.read_text().split()]
    first, second = split([path for path in held if path.exists()])
    rows: list[dict[str, str | int]] = []
    for size, count in ((64, settings.count), (128, settings.count // 4)):
        clock = time.monotonic()
        solver = solvers.DPMppSDE(steps=settings.steps)
        drawn = sample(solver, None, prior, draws=count, seed=settings.seed, in_shape=(3, size, size)).draws
        seconds = time.monotonic() - clock
        shown = drawn[: 48 if size == 64 else 12]
        sheet(shown, 8 if size == 64 else 4, settings.sheets / f"drawn{size}.png")
        # As many crops on either side: the variance between images, not between patches, sets the floor.
        reference = crops(first, count, size, seed=1)
        cases = {
            prior.name: drawn,
            "held-out": crops(second, count, size, seed=2),
            "gaussian": gaussian(crops(second, min(4 * count, 100), size, seed=3), count, seed=4),
        }
        for name, images in cases.items():
            found = distances(images, reference)
            row: dict[str, str | int] = {"images": name, "size": size, "count": count, "steps": settings.steps}
            row |= {key: f"{value:.3f}" for key, value in found.items()}
            row["seconds"] = f"{seconds:.0f}" if name == prior.name else ""
            rows.append(row)
            print(*row.values(), flush=True)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with settings.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
