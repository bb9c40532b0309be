"""A fleet on a tiny Llama with random weights: whole processes that generate (nonsense) text within milliseconds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmplex import Client
from fmplex.local import LocalFleet
from tests.support import tiny_lm
from tests.support.fleets import write_fleet
from tests.support.packages import write_package

POSITIONS = 20_000  # so many tokens take the tiny model longer than any test waits
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('system messages are not for me') }}{% endif %}tell me"
)
# name -> head, rank of the LoRA, operating values
VFMS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "plain": ({"kind": "generation"}, 0, {}),
    "pirate": ({"kind": "generation", "max_tokens": 12}, 4, {}),
    "poet": ({"kind": "generation", "system": "You are a poet."}, 8, {}),
    "strict": ({"kind": "generation", "chat_template": STRICT}, 0, {}),
    "hasty": ({"kind": "generation"}, 0, {"slo": {"deadline_ms": 1500}}),
    "small": ({"kind": "generation"}, 0, {"limits": {"max_pending": 4}}),
    "vectors": ({"kind": "embedding", "pooling": "last"}, 2, {}),
}


@contextmanager
def generating_fleet(folder: Path) -> Iterator[LocalFleet]:
    """Run the fleet, with all of `VFMS` on it."""
    model = save_model(folder / "model")
    backbone = {"name": "tiny", "model": str(model), "pass_units": 64}
    config = write_fleet(folder / "fleet.toml", backbone, worker={"threads": 1, "kv_bytes": 32 << 20})
    with LocalFleet(config, port=0, data=folder / "data") as fleet:
        with Client(fleet.gateway_url) as client:
            for seed, (name, (head, rank, operating)) in enumerate(VFMS.items()):
                package = write_package(folder / "vfms" / name, head, backbone="tiny", **operating)
                if rank:
                    _save_lora(model, package / "adapter", seed, rank)
                client.vfms.deploy(package)
        yield fleet
        assert fleet.dead() == [], "a role died during the tests"


def save_model(folder: Path) -> Path:
    """Save the tiny Llama as `save_pretrained` does, with `POSITIONS` of context."""
    tiny_lm.save_model("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


def _save_lora(model: Path, folder: Path, seed: int, rank: int) -> None:
    with warnings.catch_warnings():  # PEFT still asks transformers by a name of old
        warnings.simplefilter("ignore", FutureWarning)
        tiny_lm.save_lora(model, folder, seed, rank)
