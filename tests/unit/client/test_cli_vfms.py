"""What `fmplex vfms update` asks for."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from fmplex.cli import vfms
from fmplex.cli.app import app
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.specs.vfm_info import VfmInfo


class _Fleet:
    """Stands in for a client; keeps what it is asked to change."""

    def __init__(self) -> None:
        self.vfms = self
        self.change: dict[str, Any] = {}

    def __enter__(self) -> _Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, name: str, package: Any, **change: Any) -> VfmInfo:
        self.change = change
        return VfmInfo(name=name, backbone="minilm", status="serving", version="0" * 16, weight=1.0)


@pytest.mark.parametrize("option", ["deadline-ms", "latency-ms", "ttft-ms", "inter-token-ms"])
def test_zero_means_what_holds_if_nothing_is_said(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    fleet = _Fleet()
    monkeypatch.setattr(vfms, "open_client", lambda *_: fleet)
    assert CliRunner().invoke(app, ["vfms", "update", "acme", f"--{option}", "0"]).exit_code == 0
    assert fleet.change == {"slo": {option.replace("-", "_"): None}}
    assert parse(VfmChange, fleet.change).slo is not None
    CliRunner().invoke(app, ["vfms", "update", "acme", f"--{option}", "700"])
    assert fleet.change == {"slo": {option.replace("-", "_"): 700}}
