"""How much memory of its device a training takes."""

from __future__ import annotations

from fmplex_broker.errors import TooLarge
from fmplex_worker.training import MemoryNeed
from fmplex_worker.tuning.activations import Activations


class Footprint:
    """Bytes of one training: `held` from its first unit to its last, and its largest micro-batch: `tokens` in texts of `longest`
    at most, of which so many layers keep their `activations`; None: nothing is learnt of the backbone."""

    def __init__(self, held: int, activations: Activations | None = None, tokens: int = 0, longest: int = 0) -> None:
        self._held = held
        self._activations = activations
        self._tokens, self._longest = tokens, longest

    def need(self, layers: int) -> MemoryNeed:
        """Return the bytes with none of so many layers keeping its activations, and with all."""
        return MemoryNeed(self.of(0), self.of(layers))

    def of(self, keep: int) -> int:
        """Return the bytes while so many layers keep theirs."""
        saved = 0 if self._activations is None else self._activations.saved(self._tokens, self._longest, keep)
        return self._held + saved

    def layers_kept(self, budget: int) -> int:
        """Return how many layers may keep their activations within `budget` bytes. Raises `TooLarge` if none is too many."""
        if self._held > budget:
            raise TooLarge(
                f"what is learnt, its moments and its best state, and what a head reads of all examples, take {self._held:,} "
                f"bytes, and there are {budget:,} in all; give a lower rank, fewer targets or fewer examples, or raise "
                "worker.tuning.bytes",
                field="worker.tuning.bytes",
            )
        if self._activations is None:
            return 0
        return self._activations.layers_kept(self._tokens, self._longest, budget - self._held)
