"""Training vFM packages: processes of the worker's package do the work, this side starts them and reads their progress."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from pydantic import TypeAdapter

from fmplex.construct.building import PACKAGES
from fmplex.trainer import Trainer, fit_error
from fmplex_broker.errors import InvalidInput, JobFailed
from fmplex_broker.specs.fitting import FitDone, FitEvent, FitFailed, FitHead, FitSpec, LoraSpec
from fmplex_broker.specs.fleet import load_fleet, locate_model
from fmplex_broker.specs.schema import parse

DEFAULT_FLEET = Path("configs/minilm.toml")
_EVENT: TypeAdapter[FitEvent] = TypeAdapter(FitEvent)


def fit(
    data: str | Path | Iterable[Any],
    *,
    name: str | None = None,
    head: FitHead = "classification",
    backbone: str | None = None,
    model: str | None = None,
    config: str | Path = DEFAULT_FLEET,
    out: str | Path | None = None,
    lora: LoraSpec | Mapping[str, Any] | None = None,
    on_event: Callable[[FitEvent], None] | None = None,
    **options: object,
) -> FitDone:
    """Train one vFM package, with a head and, if `lora` is given, a LoRA adapter; return where it is and its scores.

    `data`: a file (JSON lines, a JSON array, CSV or TSV), or examples in memory: mappings as its lines would be, or tuples (text,
    label) or (text, text_pair, label). `head`: its kind. `backbone` (its name) and `model` (its weights) default to what the
    fleet file `config` says, and with them revision, dtype and max_tokens, `name` to the file's, `out` to `vfms/NAME`.
    `on_event` is called with each event of the training. `options`: the other fields of `FitSpec` (hidden, epochs, seed,
    shuffle, …).

    Raises `InvalidInput` naming the bad lines of the data (examples in memory are counted from 1), or what else was wrong;
    `Unavailable` where the worker's packages are not installed; `JobFailed` or `NonFiniteOutput` if the training fails.
    """
    hosted: dict[str, object] = {}
    if backbone is None or model is None:
        backbone, model, hosted = backbone_of(Path(config), backbone, model)
    with as_file(data, head) as (path, memory):
        if name is None and memory:
            raise InvalidInput("name: examples in memory have no file name; give name=", field="name")
        _check_path(path)
        named = name if name is not None else name_of(path)
        spec = parse(
            FitSpec,
            {"data": path, "name": named, "backbone": backbone, "model": locate_model(model, Path.cwd()), "head": head,
             "out": PACKAGES / named if out is None else Path(out), "lora": lora, **hosted, **options},
        )  # fmt: skip
        return _run(spec, on_event, str(path) if memory else "")


def _run(spec: FitSpec, on_event: Callable[[FitEvent], None] | None, scratch: str) -> FitDone:
    """Run one fit. `scratch`: the path of a temporary data file, which error messages call `data`; empty: there is none."""
    done: FitDone | None = None
    for event in fit_all([spec]):
        if isinstance(event, FitFailed):
            message = event.message.replace(scratch, "data") if scratch else event.message
            event = event.model_copy(update={"message": message})
        if on_event is not None:
            on_event(event)
        if isinstance(event, FitFailed):
            raise fit_error(event)
        if isinstance(event, FitDone):
            done = event
    if done is None:
        raise JobFailed("the trainer ended without a word")
    return done


def backbone_of(config: Path, backbone: str | None, model: str | None) -> tuple[str, str, dict[str, object]]:
    """Return name and weights of the backbone to train for, from the fleet file where not given, and how the fleet hosts those
    weights. Raises `InvalidInput`."""
    if not config.is_file():
        raise InvalidInput(
            f"{config}: no such fleet file; give as config the one that the fleet was started with, or backbone and model",
            field="config",
        )
    fleet = load_fleet(config)
    if model is not None:
        return backbone or fleet.find(None).name, model, {}
    found = fleet.find(backbone)
    return found.name, found.model, {"revision": found.revision, "dtype": found.dtype, "max_tokens": found.max_tokens}


def name_of(path: Path) -> str:
    """Make the name of a vFM from that of a file: without accents, other signs than `._-` as `-`. Letters that no name may have
    are a checksum at its end, so that two files have two names."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", path.stem) if not unicodedata.combining(c))
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:100]
    if any(c.isalnum() and not c.isascii() for c in plain) or not kept:
        return f"{kept or 'data'}-{zlib.crc32(os.fsencode(path.stem)):08x}"
    return kept


def _check_path(path: Path) -> None:
    """Raise `InvalidInput` for a path that is not UTF-8: the trainer could not be told of it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it", field="data") from None


@contextmanager
def as_file(data: str | Path | Iterable[Any], head: str) -> Iterator[tuple[Path, bool]]:
    """Give the data as a JSONL file, and whether it is a temporary one."""
    if isinstance(data, str | Path):
        yield Path(data), False
        return
    with tempfile.TemporaryDirectory(prefix="fmplex-fit-") as folder:
        path = Path(folder) / "data.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number, example in enumerate(data, 1):
                file.write(_line(example, head, number) + "\n")
        yield path, True


def _line(example: Any, head: str, number: int) -> str:
    """Write an example, the `number`th, as a line of JSON. Raises `InvalidInput`."""
    if isinstance(example, tuple | list) and len(example) in (2, 3):
        *texts, answer = example
        row = dict(zip(("text", "text_pair"), texts, strict=False))
        several = isinstance(answer, list | tuple | set | frozenset)
        key = "value" if head == "regression" else "spans" if head == "tagging" else "labels" if several else "label"
        row[key] = sorted(answer) if isinstance(answer, set | frozenset) else answer
    elif isinstance(example, Mapping):
        row = dict(example)
    else:
        raise InvalidInput(
            f"data: example {number} is a {type(example).__name__}; give mappings, or tuples (text, label)",
            field="data",
        )
    try:
        return json.dumps(row, default=_to_plain)
    except (TypeError, ValueError) as e:
        raise InvalidInput(f"data: example {number} cannot be written as JSON ({e})", field="data") from None


def _to_plain(value: Any) -> Any:
    """Convert numpy's numbers and arrays to plain values."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} is neither text nor number")
    return value.tolist()


def fit_all(specs: Sequence[FitSpec], processes: int = 1) -> Iterator[FitEvent]:
    """Train several packages, yielding events as they come. Each process loads the backbone once and takes every n-th spec;
    more than one pays off where there are more cores than one training uses (set `FitSpec.threads`). Raises `Unavailable` where
    the worker's packages are not installed, and `JobFailed` if a process dies."""
    events: Queue[FitEvent | Exception | None] = Queue()
    trainers = [_TrainerThread(specs[i::processes], events) for i in range(min(processes, len(specs)))]
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


class _TrainerThread:
    """A training process of `specs` and the thread that puts its events into `events`; None says that it has ended."""

    def __init__(self, specs: Sequence[FitSpec], events: Queue[FitEvent | Exception | None]) -> None:
        self._events = events
        self._trainer = Trainer("fmplex_worker.tuning", specs, _EVENT)
        self._thread = threading.Thread(target=self._read, name="fmplex-fit", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._trainer.events():
                self._events.put(event)
            self._events.put(None)
        except Exception as e:
            self._events.put(e)

    def stop(self) -> None:
        """Kill the process and wait for the thread to end."""
        self._trainer.stop()
        self._thread.join()
