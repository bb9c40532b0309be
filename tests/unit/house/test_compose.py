"""docker-compose.yml: what an operator relies on, as far as it can be seen without an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmplex_broker.specs.fleet import load_fleet

REPO = Path(__file__).resolve().parents[3]
# The keys of a service that this file may use, from the Compose specification.
SERVICE_KEYS = {
    "build", "command", "depends_on", "environment", "healthcheck", "image", "ports", "restart", "stop_grace_period", "volumes",
}  # fmt: skip


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPO / "docker-compose.yml").read_text())
    return loaded


def test_top_level_and_services_use_only_keys_of_the_specification(compose: dict[str, Any]) -> None:
    assert set(compose) == {"name", "services", "volumes"}
    for service in compose["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert ("image" in service) != ("build" in service)


def test_every_service_has_a_health_check_with_a_command(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        test = service["healthcheck"]["test"]
        assert test[0] == "CMD"
        assert len(test) > 1


def test_volumes_that_services_name_are_declared(compose: dict[str, Any]) -> None:
    used = {v.split(":")[0] for service in compose["services"].values() for v in service.get("volumes", [])}
    assert used == set(compose["volumes"])


def test_the_broker_keeps_an_append_only_file_on_a_volume(compose: dict[str, Any]) -> None:
    broker = compose["services"]["broker"]
    assert broker["command"][broker["command"].index("--appendonly") + 1] == "yes"
    assert "broker-data:/data" in broker["volumes"]


def test_workers_scale_and_the_gateway_is_published_on_loopback_only(compose: dict[str, Any]) -> None:
    worker, gateway = compose["services"]["worker"], compose["services"]["gateway"]
    assert "ports" not in worker  # a published port would forbid --scale worker=N
    assert all(port.startswith("127.0.0.1:") for port in gateway["ports"])


@pytest.mark.parametrize("role", ["worker", "gateway"])
def test_each_role_runs_its_module_with_the_fleet_file_that_ships(compose: dict[str, Any], role: str) -> None:
    service = compose["services"][role]
    command = service["command"]
    assert command[:2] == ["python", "-m"]
    shown = subprocess.run(
        [sys.executable, "-m", command[2], "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(part in shown for part in command if part.startswith("--"))
    fleet = load_fleet(REPO / command[command.index("--config") + 1].removeprefix("/app/"))
    assert fleet.broker.startswith("redis://broker")
    assert (REPO / service["build"]["dockerfile"]).is_file()
    assert service["depends_on"]["broker"]["condition"] == "service_healthy"
