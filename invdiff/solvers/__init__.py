"""Solvers: one method, one file, one frozen dataclass that yields iterates; `invdiff.sample` runs them.

Restoration takes a likelihood; `PriorSampler`s draw from the prior alone, and take none.

>>> [isinstance(load(name), PriorSampler) for name in ("ddrm", "dps", "heun", "dpmpp_2m")]
[False, False, True, True]
>>> load("ddrm", steps=10).steps
10
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Collection
from typing import Any

from .base import CapabilityError, Solver
from .daps import DAPS
from .ddim import DDIM
from .ddnm import DDNM
from .ddpm import DDPM
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dpmpp_2m import DPMpp2M
from .dpmpp_sde import DPMppSDE
from .dps import DPS
from .fps_smc import FPSSMC
from .heun import Heun
from .kps import KPS
from .kps_cloud import KPSCloud
from .mcgdiff import MCGDiff
from .mmps import MMPS
from .pf_ode import PFODE
from .pigdm import PiGDM
from .pnp_admm import PnPADMM
from .pnp_hqs import PnPHQS
from .pnp_pgd import PnPPGD
from .pnpdm import PnPDM
from .prior_sampler import PriorSampler
from .red_admm import REDADMM
from .red_fp import REDFP
from .red_gd import REDGD
from .reddiff import REDDiff
from .tds import TDS
from .tmpd import TMPD

__all__ = [
    "DAPS",
    "DDIM",
    "DDNM",
    "DDPM",
    "DDRM",
    "DPS",
    "FPSSMC",
    "KPS",
    "MMPS",
    "PFODE",
    "REDADMM",
    "REDFP",
    "REDGD",
    "TDS",
    "TMPD",
    "CapabilityError",
    "DPMpp2M",
    "DPMppSDE",
    "DiffPIR",
    "Heun",
    "KPSCloud",
    "MCGDiff",
    "PiGDM",
    "PnPADMM",
    "PnPDM",
    "PnPHQS",
    "PnPPGD",
    "PriorSampler",
    "REDDiff",
    "Solver",
    "load",
    "names",
]

_CLASSES: tuple[type, ...] = (
    *(PnPPGD, PnPADMM, PnPHQS, REDGD, REDFP, REDADMM, DPS, DDRM),
    *(DDNM, PiGDM, DiffPIR, MMPS, TMPD),
    *(DAPS, PnPDM, REDDiff),
    *(TDS, FPSSMC, MCGDiff),
    *(KPS, KPSCloud),
    *(DDPM, DDIM, Heun, DPMpp2M, DPMppSDE, PFODE),
)
_SOLVERS = {cls.__module__.rsplit(".", 1)[-1]: cls for cls in _CLASSES}


def names() -> dict[str, str]:
    """Every solver by the name of its file, with one line each."""
    docs = {name: sys.modules[cls.__module__].__doc__ or "" for name, cls in _SOLVERS.items()}
    return {name: doc.splitlines()[0].rstrip(".") for name, doc in docs.items()}


def load(name: str, **settings: Any) -> Solver:
    """The solver of that name with the given settings.

    Raises:
        ValueError: for an unknown name or setting; the sentence suggests the nearest.
    """
    key = name.lower()
    if key not in _SOLVERS:
        raise ValueError(f"There is no solver {name!r}{_nearest(key, list(_SOLVERS))}.")
    cls = _SOLVERS[key]
    check_settings(cls, settings)
    return cls(**settings)


def check_settings(cls: type, settings: Collection[str]) -> None:
    """Refuse settings that a class does not take, with the ones that it does.

    Raises:
        ValueError: for the first of them; the sentence suggests the nearest.
    """
    if not settings:
        return
    parameters = inspect.signature(cls).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for setting in settings:
        if setting not in known:
            names = _nearest(setting, known) if known else ", nor any other"
            raise ValueError(f"{cls.__name__} has no setting {setting!r}{names}.")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean {close[0]!r}? Known are {', '.join(known)}" if close else f": known are {', '.join(known)}"
