"""Isolation of failures: a failed pass costs the vFM that broke it, and nobody beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from fmplex_broker.errors import FmplexError, JobFailed
from fmplex_worker.packed.memory import out_of_memory

log = logging.getLogger(__name__)


_MOST_SAID = 500  # characters of an error
_REGROWTH = 32  # after running out of memory, a pass may grow again by this fraction of the budget per pass


class PassUnits:
    """Units that a pass may hold, `now`: the budget, but less for a while after the device ran out of memory."""

    def __init__(self, budget: int, device: torch.device) -> None:
        self._budget, self._device = budget, device
        self.now = budget

    def regrow(self) -> None:
        """Allow somewhat more again, up to the budget, as a pass begins."""
        self.now = min(self._budget, self.now + max(1, self._budget // _REGROWTH))

    def halve(self, units: int) -> None:
        """Allow half of `units`, which did not fit, from now on."""
        self.now = max(1, units // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class JobShare(Protocol):
    """A job in a pass, as far as isolation must know it; `protocol.Work` is one."""

    @property
    def digest(self) -> str:
        """Digest of its version: jobs of one digest fail together."""

    @property
    def tokens(self) -> int:
        """Tokens of it that are in the pass."""


J = TypeVar("J", bound=JobShare)


def run_isolated(
    jobs: Sequence[J],
    run: Callable[[Sequence[J]], list[Any]],
    on_oom: Callable[[int], None],
    half: Callable[[J], J | None] = lambda _: None,
) -> list[Any | FmplexError]:
    """Return `run(jobs)`, whatever happens in it, with one result per job.

    Out of memory: `on_oom(tokens)` is told, and each half runs by itself; of a single job its `half`, if it can wait for the
    rest. Any other exception: each vFM runs by itself, and the one that fails again gets `JobFailed`. Raises only when the device
    itself is broken ("CUDA error: ..."): then no pass can ever run here again, and another worker should take the jobs over.
    """
    try:
        return run(jobs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the panic of a library in Rust is no Exception
        no_memory, why = out_of_memory(e), f"{type(e).__name__}: {e}"[:_MOST_SAID]
        if not no_memory and "CUDA error" in str(e):
            raise
        log.warning("a pass of %d jobs failed: %s", len(jobs), why, exc_info=not no_memory)
    # Here the exception is gone, and with its frames the tensors of the failed pass.
    if no_memory:
        on_oom(sum(job.tokens for job in jobs))
        if len(jobs) == 1 and (less := half(jobs[0])) is not None:
            return run_isolated([less], run, on_oom, half)
        if len(jobs) == 1:
            return [JobFailed(f"one job of {jobs[0].tokens} tokens does not fit into the device's memory; shorten it")]
        middle = len(jobs) // 2
        return run_isolated(jobs[:middle], run, on_oom, half) + run_isolated(jobs[middle:], run, on_oom, half)
    shares: dict[str, list[int]] = {}
    for i, job in enumerate(jobs):
        shares.setdefault(job.digest, []).append(i)
    if len(shares) == 1:
        return [JobFailed(f"this vFM's adapter or head failed ({why})")] * len(jobs)
    results: list[Any] = [None] * len(jobs)
    for share in shares.values():
        for i, result in zip(share, run_isolated([jobs[i] for i in share], run, on_oom, half), strict=True):
            results[i] = result
    return results
