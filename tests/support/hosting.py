"""What workers of tests say that they host."""

from __future__ import annotations

from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.versions import version_of

HOSTED = Fingerprint(model="none", config="c0", weights="w0", tokenizer="t0", dtype="float32")
OTHER = HOSTED.model_copy(update={"weights": "w1"})


def on_hosted(artifact: str) -> str:
    """Return the version of an artifact on what the workers of tests host."""
    return version_of(artifact, HOSTED.digest)
