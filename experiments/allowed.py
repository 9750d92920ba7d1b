"""What a configuration may call, by the module and the qualified name that the object itself states.

A name here is a promise: called with any plain values, the object reads at most the files that it is given, runs no
code out of them, and writes nothing.
"""

from __future__ import annotations

__all__ = ["ALLOWED", "GUARDED", "HYDRA", "LOGGING", "SHELL", "STREAMS"]

ALLOWED = frozenset(
    {
        "invdiff.distributed:Dask",
        "invdiff.experiments.sources:Folder",
        "invdiff.experiments.sources:Named",
        "invdiff.experiments.sources:Skimage",
        "invdiff.experiments.sources:load_matrix",
        "invdiff.noise:GaussianNoise",
        "invdiff.noise:PoissonNoise",
        "invdiff.operators.blur:Blur",
        "invdiff.operators.color:Grayscale",
        "invdiff.operators.downsample:Downsample",
        "invdiff.operators.identity:Identity",
        "invdiff.operators.mask:Mask",
        "invdiff.operators.mask:bayer_mask",
        "invdiff.operators.mask:box_mask",
        "invdiff.operators.mask:half_mask",
        "invdiff.operators.mask:random_mask",
        "invdiff.operators.mask:text_mask",
        "invdiff.operators.matrix:Matrix",
        "invdiff.operators.psf:disk_psf",
        "invdiff.operators.psf:gaussian_psf",
        "invdiff.operators.psf:load_psf",
        "invdiff.operators.psf:motion_psf",
        "invdiff.operators.psf:uniform_psf",
        "invdiff.priors.adapters:load_deepinv",
        "invdiff.priors.adm:load_adm",
        "invdiff.priors.bm3d:BM3D",
        "invdiff.priors.cnn:DRUNet.from_file",
        "invdiff.priors.cnn:DnCNN.from_file",
        "invdiff.priors.cnn:FFDNet.from_file",
        "invdiff.priors.diffusers_adapter:from_diffusers",
        "invdiff.priors.diffusion:load_natural",
        "invdiff.priors.nlm:NonLocalMeans",
        "invdiff.priors.smooth:Bilateral",
        "invdiff.priors.smooth:GaussianBlur",
        "invdiff.priors.smooth:Median",
        "invdiff.priors.tv:TV",
        "invdiff.priors.wavelet:Wavelet",
        "invdiff.solvers.daps:DAPS",
        "invdiff.solvers.ddim:DDIM",
        "invdiff.solvers.ddnm:DDNM",
        "invdiff.solvers.ddpm:DDPM",
        "invdiff.solvers.ddrm:DDRM",
        "invdiff.solvers.diffpir:DiffPIR",
        "invdiff.solvers.dpmpp_2m:DPMpp2M",
        "invdiff.solvers.dpmpp_sde:DPMppSDE",
        "invdiff.solvers.dps:DPS",
        "invdiff.solvers.fps_smc:FPSSMC",
        "invdiff.solvers.heun:Heun",
        "invdiff.solvers.kps:KPS",
        "invdiff.solvers.kps_cloud:KPSCloud",
        "invdiff.solvers.mcgdiff:MCGDiff",
        "invdiff.solvers.mmps:MMPS",
        "invdiff.solvers.pf_ode:PFODE",
        "invdiff.solvers.pigdm:PiGDM",
        "invdiff.solvers.pnp_admm:PnPADMM",
        "invdiff.solvers.pnp_hqs:PnPHQS",
        "invdiff.solvers.pnp_pgd:PnPPGD",
        "invdiff.solvers.pnpdm:PnPDM",
        "invdiff.solvers.red_admm:REDADMM",
        "invdiff.solvers.red_fp:REDFP",
        "invdiff.solvers.red_gd:REDGD",
        "invdiff.solvers.reddiff:REDDiff",
        "invdiff.solvers.tds:TDS",
        "invdiff.solvers.tmpd:TMPD",
    }
)

# Settings of the above that are allowed by name alone, in what they would do.
GUARDED = {"invdiff.distributed:Dask.address": "which connects to another machine, whose answers are unpickled"}

# What Hydra itself may build: it runs the jobs one after another, or hands them to SLURM.
HYDRA = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher:BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper:BasicSweeper",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher:LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher:SlurmLauncher",
    }
)

# What Hydra's logging may be made of.
LOGGING = frozenset(
    {
        "colorlog.formatter:ColoredFormatter",
        "logging:FileHandler",
        "logging:Formatter",
        "logging:NullHandler",
        "logging:StreamHandler",
    }
)
STREAMS = frozenset({"ext://sys.stdout", "ext://sys.stderr"})

# Settings that a shell or another process would run, or be started with.
SHELL = (
    "hydra.job.env_set",
    "hydra.launcher.additional_parameters",
    "hydra.launcher.python",
    "hydra.launcher.setup",
    "hydra.launcher.srun_args",
)
