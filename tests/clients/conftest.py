"""A real fleet for programs that are written with client packages of others, and the environment that has those packages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from tests.support import chat_lm, tiny_lm
from tests.support.decoders import save_model
from tests.support.fleets import write_fleet
from tests.support.packages import write_package

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-clients"
KEY = "a-key-for-clients"
GENERATION = {"kind": "generation", "max_tokens": 12}
# name -> backbone, head, operating values
VFMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "long": ("long", GENERATION, {}),
    "short": ("short", GENERATION, {}),
    "talker": ("chat", GENERATION | {"max_tokens": 40}, {}),
    "rationed": ("long", GENERATION, {"limits": {"rate": 0.001}}),  # the second call of a day is one too many
    "vectors": ("long", {"kind": "embedding", "pooling": "last"}, {}),
    "short-vectors": ("short", {"kind": "embedding", "pooling": "last"}, {}),
}


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the environment with the packages. It is `make test-all` that makes it."""
    if not (ENVIRONMENT / ".installed").exists():
        missing = f"{ENVIRONMENT} is not there; `make test-all` makes it"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return ENVIRONMENT / "bin" / "python"


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two decoders with random weights: `long` takes 20,000 tokens, `short` 200; and one that has learnt a talk, whose turns end
    as only its tokenizer says. The gateway asks for a key."""
    folder = tmp_path_factory.mktemp("clients")
    hosted = [
        {"name": "long", "model": str(save_model(folder / "long"))},
        {"name": "chat", "model": str(chat_lm.save_chat_model(folder / "chat"))},
        {"name": "short", "model": str(tiny_lm.save_model("llama", folder / "short"))},
    ]
    worker = {"threads": 1, "kv_bytes": 32 << 20}
    config = write_fleet(folder / "fleet.toml", *hosted, worker=worker, gateway={"api_keys": [KEY]})
    with LocalFleet(config, port=0, data=folder / "data") as running:
        with Client(running.gateway_url, api_key=KEY) as client:
            for name, (backbone, head, operating) in VFMS.items():
                client.vfms.deploy(write_package(folder / "vfms" / name, head, backbone=backbone, **operating))
        yield running
        assert running.dead() == [], "a role died during the tests"
