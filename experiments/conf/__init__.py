"""The settings: a package so that Hydra finds them as pkg://invdiff.experiments.conf."""
