"""Starting processes of a fleet again that have ended: at once, and ever later one that keeps ending soon after its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fmplex_broker.errors import FmplexError

_STEADY_S = 30.0  # a process that lived so long may start again at once when it ends
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_QUOTED = 300  # characters of its log


class Mortal(Protocol):
    """A fleet whose processes may end."""

    def dead(self) -> list[str]:
        """List the names of processes that have ended."""
        ...

    def exit_reason(self, name: str) -> str:
        """Say how a process ended."""
        ...

    def log(self, name: str) -> str:
        """Return the end of a process's log."""
        ...

    def revive(self, name: str) -> None:
        """Start a process that has ended once more. Raises `FmplexError` or `OSError` if it does not start."""
        ...


@dataclass(slots=True)
class _Life:
    """What is known of a process: when it was started last, when it is to be started next, how often it has died early."""

    begun: float
    due: float | None = None
    early_deaths: int = 0


class Reviver:
    """Keeps the processes of a fleet alive. None is given up: the others serve meanwhile, and what made it die may pass."""

    def __init__(self, fleet: Mortal) -> None:
        self._fleet = fleet
        self._lives: dict[str, _Life] = {}

    def look(self, now: float) -> list[str]:
        """Start again whatever has ended and is due, now, in monotonic seconds; return a line to print for each death. Call it
        several times a second."""
        lines = []
        for name in self._fleet.dead():
            # The first death that is seen here is none after a revival, however soon it comes.
            life = self._lives.setdefault(name, _Life(now - _STEADY_S))
            if life.due is None:
                pause_s = self._pause(life, now)
                life.due = now + pause_s
                lines.append(self._obituary(name, pause_s))
            if now >= life.due:
                life.begun, life.due = now, None
                try:
                    self._fleet.revive(name)
                except (FmplexError, OSError) as e:
                    lines.append(f"{name} does not start: {e}")
        return lines

    def _pause(self, life: _Life, now: float) -> float:
        """Count a death; return the seconds to wait before the next start."""
        life.early_deaths = 0 if now - life.begun >= _STEADY_S else life.early_deaths + 1
        if not life.early_deaths:
            return 0.0
        return min(_FIRST_PAUSE_S * 2.0 ** min(life.early_deaths - 1, 30), _LONGEST_PAUSE_S)

    def _obituary(self, name: str, pause_s: float) -> str:
        when = f"in {pause_s:g} s" if pause_s else "now"
        last = self._fleet.log(name).rstrip().rpartition("\n")[2][-_QUOTED:]
        return f"{name} {self._fleet.exit_reason(name)}; it starts again {when}" + (
            f". Its log ends with: {last}" if last else ""
        )
