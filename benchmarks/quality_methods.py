"""The methods of `benchmarks.quality`, ours and the peers', each at the cost of a draw that is asked for."""

from __future__ import annotations

import importlib
import math
import time
from typing import Any

import torch

from invdiff import Likelihood, Posterior, sample, solvers
from invdiff.ensemble import Counted
from invdiff.noise import GaussianNoise
from invdiff.priors import Prior

from . import peers
from .rows import Row

REFERENCE = "invdiff kps"
# What a step costs, of a cloud for each of its particles: a forward for a call, two more for a pass back; of MMPS it
# depends on how a library solves for it.
DRAWN = {"kps": 0, "ddrm": 1, "ddnm": 1, "diffpir": 1, "reddiff": 1, "mcgdiff": 1, "fps_smc": 1, "daps": 5, "tmpd": 5}
DRAWN |= {"pigdm": 3, "dps": 3, "mmps": 3, "dps_annealed": 3, "tds": 3, "deepinv mmps": 11, "azula mmps": 5}
CLOUDS = ("tds", "fps_smc", "mcgdiff")
OURS: tuple[str, ...] = ("kps", "ddrm", "ddnm", "diffpir", "pigdm", "mmps", "tmpd", "dps", "daps", "reddiff", *CLOUDS)
OURS += ("pnp_hqs", "pnp_admm", "pnp_pgd", "red_gd", "red_fp", "red_admm")
THEIRS = {
    "deepinv": ("ddrm", "diffpir", "pigdm", "mmps", "dps", "dps_annealed", "dpir", "dpir_tuned"),
    "azula": ("diffpir", "pigdm", "mmps", "dps", "tmpd"),
}
METHODS = tuple(f"invdiff {name}" for name in OURS) + tuple(
    f"{library} {name}" for library, names in THEIRS.items() for name in names
)


def cloud(name: str, cost: int) -> dict[str, int]:
    """Particles and steps of a cloud that costs no less, and hardly more, than this."""
    share, solver = DRAWN[name], solvers.load(name)
    particles = max(2, cost // (share * solver.steps))  # type: ignore[attr-defined]
    return {"particles": particles, "steps": max(2, math.ceil(cost / (share * particles)))}


def own(name: str, likelihood: Likelihood, prior: Prior, draws: int, cost: int) -> tuple[Posterior, Row]:
    """One of our solvers at this cost of a draw: its draws, and what they took."""
    options: dict[str, Any] = {"steps": 30, "products": 3} if name == "kps" else {}
    if name in CLOUDS:
        options = cloud(name, cost)
    elif name in DRAWN and name != REFERENCE.split()[1]:
        options = {"steps": steps_for(DRAWN[name], cost)}
    solver = solvers.load(name, **options)
    # As many members at a time as leave none to be filled up.
    size = math.ceil(draws / math.ceil(draws / 16))
    wanted = draws if solver.stochastic else 1
    clock = time.process_time()
    posterior = sample(solver, likelihood, prior, draws=wanted, micro_batch=size, progress=False)
    row = {"seconds": f"{time.process_time() - clock:.5g}", "particles": str(getattr(solver, "particles", ""))}
    row["steps"] = str(getattr(solver, "steps", getattr(solver, "iterations", "")))
    return posterior, row | {key: str(posterior.record[key]) for key in ("nfe", "nfe_backward")}


def steps_for(share: int, cost: int) -> int:
    """The number of steps of which each costs `share` that together cost no less than this."""
    return max(2, math.ceil(cost / share))


def peer(
    library: str, name: str, likelihood: Likelihood, prior: Prior, draws: int, steps: int | None
) -> tuple[Posterior, Row] | None:
    """One of the peers' methods; None where it does not take the operator."""
    importlib.import_module(library)  # which takes seconds of its own
    assert isinstance(likelihood.noise, GaussianNoise)
    operator, level = likelihood.operator, float(likelihood.noise.like(likelihood.batched_y).flatten()[0])
    own_operator = peers.same(operator, name, level) if library == "deepinv" else operator
    if own_operator is None:
        return None
    slot = Counted(prior)
    torch.manual_seed(0)
    build = getattr(peers, library)
    point = name.startswith("dpir")
    clock = time.process_time()
    made = build(name, own_operator, likelihood.batched_y[0], slot, level, steps)(1 if point else draws)
    seconds = time.process_time() - clock
    each = draws if (library, name) == ("azula", "dps") else 1
    row = {"steps": str(steps or ""), "nfe": f"{slot.calls / each:.0f}", "nfe_backward": f"{slot.backward / each:.0f}"}
    row["seconds"] = f"{seconds:.5g}"
    return Posterior(made.float(), {}, "point estimate" if point else "uncalibrated spread"), row


def run(method: str, likelihood: Likelihood, prior: Prior, draws: int, cost: int) -> tuple[Posterior, Row] | None:
    """What a method gives at this cost; None where it does not take the operator."""
    library, name = method.split()
    if library == "invdiff":
        return own(name, likelihood, prior, draws, cost)
    share = DRAWN.get(method, DRAWN.get(name, 0))
    return peer(library, name, likelihood, prior, draws, steps_for(share, cost) if share else None)
