"""Fingerprints of backbones: what decides the hidden states that a model computes. Pure; `fmplex_worker.backbones` takes them."""

from __future__ import annotations

import hashlib
import json

from fmplex_broker.errors import Conflict
from fmplex_broker.specs.schema import Name, Spec

_PARTS = ("config", "weights", "tokenizer", "dtype", "revision")


class Fingerprint(Spec):
    """What a worker hosts under a backbone's name.

    `config`, `weights` and `tokenizer`: digests of the files; `dtype`: as resolved on the worker's device; `revision`: the commit
    of a model from a hub, empty for a folder. `model` (as the fleet file names it) and `device` are for people: they are not part
    of the `digest`.
    """

    model: str
    config: str
    weights: str
    tokenizer: str
    dtype: str
    revision: str = ""
    device: str = "cpu"

    @property
    def digest(self) -> str:
        """Digest of all that decides outputs: 12 hex digits."""
        parts = json.dumps([getattr(self, part) for part in _PARTS])
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    def differences(self, other: Fingerprint) -> list[str]:
        """List the parts in which two fingerprints differ."""
        return [part for part in _PARTS if getattr(self, part) != getattr(other, part)]

    def __str__(self) -> str:
        parts = [self.model, self.dtype, f"weights {self.weights}", f"on {self.device}"]
        return f"{self.digest} ({', '.join(parts)})"


def refusal(backbone: Name, mine: Fingerprint, live: Fingerprint) -> Conflict:
    """Return the error of a worker that may not join: live workers host something else under the same name."""
    differing = mine.differences(live)
    advice = (
        "set dtype in the fleet file, so that it is the same on every device"
        if differing == ["dtype"]
        else "give this backbone another name, or stop the others first (their vFMs are then to be deployed again)"
    )
    return Conflict(
        f"backbone {backbone!r}: this worker hosts {mine}, live workers host {live}; they differ in {', '.join(differing)}: "
        f"{advice}",
        field="backbone.model",
    )
