"""A budget of bytes and what is kept within it: the least recently used goes first, what is pinned stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    nbytes: int
    pins: int = 0


class LruBytes:
    """Bookkeeping only, within `budget` bytes: it names what has to go, and the owner lets it go. Keys are digests."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.pinned_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def put(self, key: str, nbytes: int) -> None:
        """Add an entry, or correct its size; it becomes the most recently used."""
        entry = self._entries.setdefault(key, _Entry(0))
        self.nbytes += nbytes - entry.nbytes
        self.pinned_bytes += nbytes - entry.nbytes if entry.pins else 0
        entry.nbytes = nbytes
        self._entries.move_to_end(key)

    def touch(self, key: str) -> None:
        """Make an entry the most recently used."""
        self._entries.move_to_end(key)

    def pin(self, key: str, times: int = 1) -> None:
        """Pin an entry that is in use: it stays until as many `unpin`s."""
        entry = self._entries[key]
        self.pinned_bytes += entry.nbytes if times and not entry.pins else 0
        entry.pins += times
        self._entries.move_to_end(key)

    def unpin(self, key: str) -> bool:
        """Undo one `pin`; True when nobody uses the entry any more."""
        entry = self._entries[key]
        if entry.pins:
            entry.pins -= 1
            self.pinned_bytes -= 0 if entry.pins else entry.nbytes
        return not entry.pins

    def unpin_all(self) -> None:
        """Undo every `pin`."""
        for entry in self._entries.values():
            entry.pins = 0
        self.pinned_bytes = 0

    def pinned(self, key: str) -> bool:
        """Tell whether an entry is in use."""
        return self._entries[key].pins > 0

    def remove(self, key: str) -> None:
        """Remove an entry, pinned or not, if it is here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.nbytes -= entry.nbytes
            self.pinned_bytes -= entry.nbytes if entry.pins else 0

    def victims(self, need: int) -> list[str]:
        """Choose what to remove so that `need` more bytes fit; fewer than that when the rest is pinned."""
        over, out = self.nbytes + need - self.budget, []
        for key, entry in self._entries.items():
            if over <= 0:
                break
            if not entry.pins:
                out.append(key)
                over -= entry.nbytes
        return out
