"""Training vFM packages: a process of the worker's package does the work, this side starts it and reads its progress."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from pydantic import TypeAdapter

from fmplex_broker.errors import FmplexError, JobFailed, Unavailable, from_wire
from fmplex_broker.fitting import FitDone, FitEvent, FitFailed, FitHead, FitSpec, LoraSpec
from fmplex_broker.specs import locate_model

_EVENT: TypeAdapter[FitEvent] = TypeAdapter(FitEvent)


def fit(
    data: str | Path,
    *,
    name: str,
    backbone: str,
    model: str,
    head: FitHead,
    out: str | Path,
    lora: LoraSpec | None = None,
    on_event: Callable[[FitEvent], None] | None = None,
    **options: object,
) -> FitDone:
    """Train one vFM package from a JSONL file and return its scores. `options`: the other fields of `FitSpec` (epochs, seed, …).

    Raises `InvalidInput` naming the bad lines of the data, or what else was wrong.
    """
    spec = FitSpec.model_validate(
        {"data": Path(data), "name": name, "backbone": backbone, "model": locate_model(model, Path.cwd()), "head": head,
         "out": Path(out), "lora": lora, **options}
    )  # fmt: skip
    done: FitDone | None = None
    for event in fit_all([spec]):
        if on_event is not None:
            on_event(event)
        if isinstance(event, FitFailed):
            raise failure(event)
        if isinstance(event, FitDone):
            done = event
    if done is None:
        raise JobFailed("the trainer ended without a word")
    return done


def fit_all(specs: Iterable[FitSpec]) -> Iterator[FitEvent]:
    """Train several packages in one process (the backbone is loaded once), yielding events as they come."""
    if find_spec("fmplex_worker") is None or find_spec("torch") is None:
        raise Unavailable("training needs the worker's packages: pip install 'fmplex[worker]'")
    lines = "".join(spec.model_dump_json() + "\n" for spec in specs)
    process = subprocess.Popen(
        [sys.executable, "-m", "fmplex_worker.tuning"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(lines)
        process.stdin.close()
        for line in process.stdout:
            yield _EVENT.validate_json(line)
        if process.wait() not in (0, 1):  # 1: some spec failed, which its event has said
            raise JobFailed(f"the trainer died with exit code {process.returncode}; see its messages above")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def failure(event: FitFailed) -> FmplexError:
    return from_wire({"code": event.code, "message": event.message, "field": event.field})
