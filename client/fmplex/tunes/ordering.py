"""From what a caller says to the body that orders a tuning job, and its files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel

from fmplex.fitting import as_file
from fmplex.following import PAGE, Ask
from fmplex.tunes.calls import TuneCalls
from fmplex.tunes.records import TuneInfo
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import is_file_id

Data = str | Path | Iterable[Any]
_LONGEST_NAME = 255
# Where options belong that are no field of the API's `fit`.
_PLACES = {
    **dict.fromkeys(("batch_size", "learning_rate_multiplier"), "hyperparameters"),
    **dict.fromkeys(("seed", "weight", "publish", "metadata"), "body"),
}


class TuneOrder(NamedTuple):
    """What is ordered. `data`, `validation`: paths, ids of files, or examples; `body`: all else, as the API takes it."""

    data: Data
    validation: Data | None
    body: dict[str, Any]


def make_order(
    data: Data,
    validation: Data | None,
    body: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    fit: Mapping[str, Any],
    options: Mapping[str, Any],
) -> TuneOrder:
    """Make an order. `options`: whatever else belongs to the `body`, the `hyperparameters` or the API's `fit`; what is None is
    left out. Raises `InvalidInput`."""
    if not isinstance(body["model"], str) or not body["model"]:
        raise InvalidInput("model: give the name of a backbone, or of a vFM to go on from", field="model")
    parts: dict[str, dict[str, Any]] = {"body": dict(body), "hyperparameters": dict(hyperparameters), "fit": dict(fit)}
    for name, value in options.items():
        parts[_PLACES.get(name, "fit")][name] = value
    wanted, given, whole = (
        {name: _plain(value) for name, value in parts[part].items() if value is not None}
        for part in ("hyperparameters", "fit", "body")
    )
    if wanted:
        whole["method"] = {"type": "supervised", "supervised": {"hyperparameters": wanted}}
    return TuneOrder(data, validation, whole | ({"fit": given} if given else {}))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else value


async def begin(ask: Ask[TuneCalls], order: TuneOrder) -> TuneInfo:
    """Send the files of an order, and order it. Raises `InvalidInput` for data that cannot be read."""
    await ask(lambda calls: calls.ready())  # or refuse, before examples are drawn
    head = str(order.body.get("fit", {}).get("head", ""))
    body = order.body | {"training_file": await _sent(ask, order.data, head)}
    if order.validation is not None:
        body["validation_file"] = await _sent(ask, order.validation, head)
    known: set[str] = set()
    if body["training_file"] == order.data:
        known = await _jobs_of(ask, body["training_file"])
    tries = 0

    async def create(calls: TuneCalls) -> TuneInfo:
        nonlocal tries
        tries += 1
        if tries > 1:  # the answer to the first try may have been lost
            for info in (await calls.page(PAGE, None))[0]:
                if info.training_file == body["training_file"] and info.id not in known:
                    return info
        return await calls.create(body)

    return await ask(create)


async def _jobs_of(ask: Ask[TuneCalls], file: str) -> set[str]:
    """Return the ids of the newest tuning jobs that learn from a file."""
    found, _ = await ask(lambda calls: calls.page(PAGE, None))
    return {info.id for info in found if info.training_file == file}


async def _sent(ask: Ask[TuneCalls], data: Data, head: str) -> str:
    """Return the id of a file with this data, which is sent unless it is one already."""
    if isinstance(data, str) and is_file_id(data):
        return data
    with ExitStack() as stack:
        file, name = await asyncio.to_thread(_opened, stack, data, head)
        return await ask(lambda calls: calls.upload(file, name))


def _opened(stack: ExitStack, data: Data, head: str) -> tuple[BinaryIO, str]:
    path, _ = stack.enter_context(as_file(data, head))
    try:
        file = stack.enter_context(path.open("rb"))
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read ({e.strerror}); check the path", field="data") from e
    return file, "".join(c if c.isprintable() else "_" for c in path.name)[-_LONGEST_NAME:]
