"""A small run and what its report holds, for the tests of the page and of the browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from invdiff import Likelihood, Posterior
from invdiff.contents import Contents
from invdiff.html import write_report
from invdiff.noise import GaussianNoise
from invdiff.operators import Mask, random_mask
from invdiff.record import describe

SHAPE = (3, 16, 20)
SIGMA = 0.1


def run(draws: int = 24, shape: tuple[int, int, int] = SHAPE, **record: Any) -> tuple[Posterior, Contents]:
    """Draws about a smooth truth that was seen through a mask, and what belongs to them; nothing is sampled."""
    generator = torch.Generator().manual_seed(0)
    truth = 0.2 + 0.6 * torch.linspace(0, 1, shape[-1]).expand(shape).contiguous()
    operator = Mask(random_mask(shape, 0.5, seed=0), shape)
    y = operator(truth[None])[0] + SIGMA * torch.randn(shape, generator=generator) * operator.singular.float()
    around = truth + 0.1 * torch.randn(shape, generator=generator)
    values = around + 0.1 * torch.randn(draws, *shape, generator=generator)
    likelihood = Likelihood(y, operator, GaussianNoise(SIGMA))
    described = {
        "solver": {"name": "KPS", "steps": 30},
        "prior": {"name": "DiffusionPrior", "prior": "natural"},
        "operator": describe(operator),
        "noise": describe(likelihood.noise),
        "seed": 0,
        "draws": draws,
        "measurements": 1,
        "batched": False,
        "failed": [],
    }
    return Posterior(values, described | record), Contents(y, truth, operator, likelihood.noise)


def page(folder: Path, posterior: Posterior, **given: Any) -> str:
    """The page of a posterior, written to a folder."""
    return write_report(folder / "report.html", posterior, overwrite=True, **given).read_text(encoding="utf-8")


def known(contents: Contents) -> dict[str, Any]:
    """What a report is given of what is known."""
    return {"measurement": contents.measurement, "truth": contents.truth, "operator": contents.operator}


def data_of(written: str | Path) -> dict[str, Any]:
    """What the script of a page reads."""
    text = written if isinstance(written, str) else written.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def pixels(uri: str) -> np.ndarray:
    """The pixels of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
