"""Training vFM packages: `fit` in this process, `python -m fmplex_worker.tuning` as one that serves a stream of specs."""

from fmplex_worker.tuning.trainer import fit

__all__ = ["fit"]
