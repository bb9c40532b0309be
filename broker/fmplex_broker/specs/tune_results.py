"""The figures of a tuning job: what its metrics events hold, as a table. Pure.

A metrics event has in its data, as far as they are known, `step`, `total_steps`, `train_loss`, `valid_loss`, `valid_score`,
`tokens` (learnt from so far), `tokens_s` and `share` (of the device).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = ("step", "train_loss", "valid_loss", "valid_score", "tokens", "tokens_s", "share")


def results_csv(figures: Iterable[Mapping[str, Any]]) -> bytes:
    """Write figures (the data of metrics events) as CSV, as OpenAI's result files are: a line a step, of which the last one
    that was said counts; empty cells where there is none. Data without a step are left out."""
    by_step: dict[int, Mapping[str, Any]] = {}
    for data in figures:
        step = data.get("step")
        if isinstance(step, int):
            by_step[step] = {**by_step.get(step, {}), **data}
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(by_step[step] for step in sorted(by_step))
    return file.getvalue().encode()
