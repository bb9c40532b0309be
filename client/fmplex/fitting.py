"""Training vFM packages: a process of the worker's package does the work, this side starts it and reads its progress."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import Queue

from pydantic import TypeAdapter

from fmplex_broker.errors import FmplexError, JobFailed, Unavailable, from_wire
from fmplex_broker.fitting import FitDone, FitEvent, FitFailed, FitHead, FitSpec, LoraSpec
from fmplex_broker.schema import parse
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
    spec = parse(
        FitSpec,
        {"data": Path(data), "name": name, "backbone": backbone, "model": locate_model(model, Path.cwd()), "head": head,
         "out": Path(out), "lora": lora, **options},
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


def fit_all(specs: Sequence[FitSpec], processes: int = 1) -> Iterator[FitEvent]:
    """Train several packages, yielding events as they come. Each process loads the backbone once and takes every n-th spec;
    more than one pays off where there are more cores than one training uses (set `FitSpec.threads`)."""
    if find_spec("fmplex_worker") is None or find_spec("torch") is None:
        raise Unavailable("training needs the worker's packages: pip install 'fmplex[worker]'")
    events: Queue[FitEvent | Exception | None] = Queue()
    trainers = [_Trainer(specs[i::processes], events) for i in range(min(processes, len(specs)))]
    try:
        left = len(trainers)
        while left:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for trainer in trainers:
            trainer.stop()


class _Trainer:
    """One training process and the thread that reads its words into `events`; None says that it ended."""

    def __init__(self, specs: Sequence[FitSpec], events: Queue[FitEvent | Exception | None]) -> None:
        self._events = events
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fmplex_worker.tuning"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines = "".join(spec.model_dump_json() + "\n" for spec in specs)
        self._thread = threading.Thread(target=self._read, name="fmplex-fit", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin:
                process.stdin.write(self._lines)
            with process.stdout:
                for line in process.stdout:
                    self._events.put(_EVENT.validate_json(line))
            if process.wait() not in (0, 1):  # 1: some spec failed, which its event has said
                raise JobFailed(f"the trainer died with exit code {process.returncode}; see its messages above")
            self._events.put(None)
        except Exception as e:
            self._events.put(e)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


def failure(event: FitFailed) -> FmplexError:
    return from_wire({"code": event.code, "message": event.message, "field": event.field})
