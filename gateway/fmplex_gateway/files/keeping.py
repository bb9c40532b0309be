"""The files of a gateway: their list and their bytes, and what goes when its time has come."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TypeAlias

from fmplex_broker.errors import FmplexError, UnknownFile
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.batches import is_batch_id
from fmplex_broker.specs.files import is_file_id
from fmplex_broker.streams.file_list import FileList
from fmplex_gateway.files.off_loop import StoreCalls

log = logging.getLogger(__name__)
Ids: TypeAlias = list[str]  # within the class `list` is another
_EVERY_S = 3_600.0
_ORPHAN_S = 86_400.0  # bytes that are in no list: their upload may be about to end, or its broker away


@dataclass(frozen=True, slots=True)
class Files:
    """The files: their bytes in the `store`, their records in the `list`. Methods raise what these raise."""

    store: FileStore
    list: FileList

    async def remove(self, file: str, owner: str) -> None:
        """Delete a file. Its bytes go later if an open batch reads them, or if the store does not answer. Raises
        `UnknownFile`."""
        await self.list.remove(file, owner)
        try:
            await self._delete_unless_held(file)
        except FmplexError as e:
            log.warning("the bytes of %s stay for now: %s", file, e)

    async def expire(self) -> Ids:
        """Delete the files that have expired, but for those that an open batch reads, bytes that could not be deleted before, and
        parts of batches that are over, a day old; return the ids of all."""
        await self.list.prune(time.time())
        gone = [file for file in await self.list.going() if await self._delete_unless_held(file)]
        return gone + await self._delete_parts()

    async def prune(self) -> Ids:
        """Delete what `expire` does, and bytes that are in no list, a day old; return the ids of all."""
        gone, calls = await self.expire(), StoreCalls()
        await calls(self.store.sweep)
        there = [name for name in await calls(self.store.names) if is_file_id(name)]
        known = await self.list.known(there)
        orphans = [file for file in there if file not in known and await calls(self._is_old, file)]
        return gone + [file for file in orphans if await self._delete_unless_held(file)]

    def _is_old(self, file: str) -> bool:
        try:
            return self.store.age_s(file) > _ORPHAN_S
        except UnknownFile:  # another gateway prunes too
            return False

    async def _delete_parts(self) -> Ids:
        """Delete the parts of batches that are over: a gateway that stood still meanwhile has put them there afterwards."""
        calls = StoreCalls()
        folders = [name for name in await calls(self.store.folders) if is_batch_id(name)]
        over = [batch for batch in await self.list.over(folders) if await calls(self._are_old, batch)]
        for batch in over:
            await calls(self.store.delete, batch)
        return over

    def _are_old(self, batch: str) -> bool:
        return all(map(self._is_old, self.store.names(batch)))

    async def _delete_unless_held(self, file: str) -> bool:
        if await self.list.held(file):
            return False
        await StoreCalls()(self.store.delete, file)
        await self.list.gone(file)
        return True


async def expiring(files: Files, every_s: float = _EVERY_S) -> None:
    """Delete expired files from time to time, for ever."""
    while True:
        await asyncio.sleep(every_s)
        try:
            if gone := await files.expire():
                log.info("%d files have expired", len(gone))
        except FmplexError as e:
            log.warning("expired files stay for now: %s", e)
