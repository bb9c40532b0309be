"""Tuning jobs, as a gateway is asked for them."""

from __future__ import annotations

import json
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from fmplex.batches.calls import BatchCalls
from fmplex.call import vfm_path
from fmplex.connection import JSON, Connection
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.schema import Spec, invalid
from fmplex_broker.specs.vfm_info import VfmInfo

S = TypeVar("S", bound=Spec)
_JOBS = "/v1/fine_tuning/jobs"


class TuneCalls:
    """What a gateway, at the other end of `connection`, does with tuning jobs. Methods raise `Unavailable` and the typed errors
    that it answers with."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ready(self) -> None:
        """Raise `Unavailable` if the client is closed."""
        self._connection.check_open()

    async def upload(self, file: BinaryIO, name: str) -> str:
        """Send a file to be learnt from; return its id. `file`: seekable, sent from its beginning."""
        return await BatchCalls(self._connection).upload(file, name, "fine-tune")

    async def create(self, body: dict[str, Any]) -> TuneInfo:
        """Order a tuning job."""
        return self._read(TuneInfo, await self._json("POST", _JOBS, body))

    async def show(self, job: str) -> TuneInfo:
        """Return a tuning job as it is now."""
        return self._read(TuneInfo, await self._json("GET", _path(job)))

    async def ask(self, job: str, wish: str) -> TuneInfo:
        """Cancel, pause or resume a tuning job; return it."""
        return self._read(TuneInfo, await self._json("POST", f"{_path(job)}/{wish}"))

    async def page(self, limit: int, after: str | None) -> tuple[list[TuneInfo], bool]:
        """List up to `limit` tuning jobs, newest first, from the one that follows `after`; and tell whether there are more."""
        return await self._page(TuneInfo, _JOBS, limit, after)

    async def events(self, job: str, limit: int, after: str | None) -> tuple[list[TuneEventInfo], bool]:
        """List up to `limit` events of a tuning job, oldest first; and tell whether there are more."""
        return await self._page(TuneEventInfo, f"{_path(job)}/events", limit, after, order="asc")

    async def checkpoints(self, job: str, limit: int, after: str | None) -> tuple[list[TuneCheckpointInfo], bool]:
        """List up to `limit` checkpoints of a tuning job, newest first; and tell whether there are more."""
        return await self._page(TuneCheckpointInfo, f"{_path(job)}/checkpoints", limit, after)

    async def deploy(self, checkpoint: str, name: str, *, update: bool) -> VfmInfo:
        """Deploy a checkpoint as the vFM called `name`, or offer it as that one's next version. Not to be repeated."""
        path = vfm_path(name, "/versions") if update else "/v1/vfms"
        answer = await self._json("POST", path, {"checkpoint": checkpoint, "name": name})
        return self._read(VfmInfo, answer)

    async def _page(self, kind: type[S], path: str, limit: int, after: str | None, **more: str) -> tuple[list[S], bool]:
        query = urlencode({"limit": limit, **({"after": after} if after else {}), **more})
        answer = await self._json("GET", f"{path}?{query}")
        try:
            return [self._read(kind, one) for one in answer["data"]], bool(answer["has_more"])
        except (KeyError, TypeError) as e:
            raise self._connection.not_a_gateway(e) from e

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            content = None if body is None else json.dumps(body).encode()
        except (TypeError, ValueError) as e:
            raise InvalidInput(f"what is ordered cannot be sent: {e}", field="options") from None
        return await self._connection.request(method, path, content, headers={"Content-Type": JSON, "Accept": JSON})

    def _read(self, kind: type[S], answer: Any) -> S:
        try:
            return kind.model_validate(answer, extra="ignore")
        except ValidationError as e:
            raise self._connection.not_a_gateway(invalid(e)) from e


def _path(job: str) -> str:
    if not isinstance(job, str) or not job:
        raise InvalidInput(f"a tuning job's id is a text like ftjob-…, not {job!r}", field="id")
    return f"{_JOBS}/{quote(job, safe='')}"
