"""How far a tuning job is, as its record and its events say it."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

from fmplex_broker.specs.tune_records import TuneProgress
from fmplex_worker.training import RunProgress

_WINDOW_S = 30.0  # over which rates are taken
_EVENTS = 150  # with figures, that a training says in all, about


class Figures:
    """The figures of one training on this worker: how far it is, how fast, and what its events have said. Event loop only."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int, float]] = (
            deque()
        )  # when; steps, tokens, and seconds of the device by then
        self._said = -math.inf  # step
        self._warned: tuple[str, ...] = ()

    def note(self, run: RunProgress, seconds: float) -> TuneProgress:
        """Note how far a run is that has had so many `seconds` of the device; return it for the job's record."""
        now = time.monotonic()
        self._seen.append((now, run.step, run.tokens, seconds))
        while self._seen[0][0] < now - _WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        began, step, tokens, device = self._seen[0]
        took = now - began
        steps_s = (run.step - step) / took if took > 0 else 0.0
        return TuneProgress(
            step=run.step,
            steps=run.steps,
            epoch=run.epoch,
            loss=_finite(run.loss),
            validation=_finite(run.validation_score if run.validation_loss is None else run.validation_loss),
            tokens=run.tokens,
            best_step=run.best_step or None,
            tokens_s=max(0.0, run.tokens - tokens) / took if took > 0 else None,
            share=min(1.0, (seconds - device) / took) if took > 0 else None,
            finish_at=int(time.time() + (run.steps - run.step) / steps_s) if steps_s > 0 else None,
        )

    def news(self, run: RunProgress, now: TuneProgress) -> tuple[str, dict[str, Any]] | None:
        """Return the words and the data of an event about a step at which figures were noted; None: too soon after the last."""
        if run.step == self._said or (not run.ended and run.step - self._said < run.steps / _EVENTS):
            return None
        self._said = run.step
        data = {
            "step": run.step, "total_steps": run.steps, "train_loss": _finite(run.loss),
            "valid_loss": _finite(run.validation_loss), "valid_score": _finite(run.validation_score), "tokens": run.tokens,
            "tokens_s": now.tokens_s, "share": now.share,
        }  # fmt: skip
        named = {"training loss": "train_loss", "validation loss": "valid_loss", "validation score": "valid_score"}
        parts = [f"{words} {data[key]:.4g}" for words, key in named.items() if data[key] is not None]
        words = f"Step {run.step}/{run.steps}" + (f": {', '.join(parts)}" if parts else "")
        return words, {key: value for key, value in data.items() if value is not None}

    def warnings(self, run: RunProgress) -> tuple[str, ...]:
        """Return the warnings of a run that were not returned before; it keeps the last ones only."""
        before, now = self._warned, run.warnings
        known = next(n for n in range(min(len(before), len(now)), -1, -1) if before[len(before) - n :] == now[:n])
        self._warned = now
        return now[known:]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
