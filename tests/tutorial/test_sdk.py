"""README, "From Python", and docs/protocol.md, "Tensors in msgpack": their programs, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from fmplex_broker.wire.messages import packb, unpackb
from fmplex_broker.wire.tensors import Tensor
from tests.support.packages import write_package
from tests.tutorial.documents import Document

README, PROTOCOL, TENSORS = Document("../README.md"), Document("protocol.md"), "Tensors in msgpack"


@pytest.fixture(scope="module", autouse=True)
def vfms(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The vFMs that the programs speak of."""
    head = {"kind": "classification", "labels": ("ham", "spam")}
    with Client(fleet.gateway_url) as fm:
        for name in ("spam", "sentiment"):
            fm.vfms.deploy(write_package(tmp_path_factory.mktemp("vfms") / name, head, name=name))
        fm.vfms.deploy({"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}})


def test_the_example_goes_on_past_a_blank_line(
    fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "mails.txt").write_text("you have won\n\nshall we meet\n")
    (program,) = (block for block in README.blocks("Serve your own tasks") if "fm.map(" in block)
    program = program.replace("http://127.0.0.1:8080", fleet.gateway_url).replace("open(", "opened(")
    with (folder / "mails.txt").open() as mails:
        exec(program, {"opened": lambda name: mails})
    printed = capsys.readouterr().out
    assert len(re.findall(r"(?m)^(ham|spam)\s*$", printed)) == 2
    assert "the text is empty" in printed


def test_the_bytes_of_the_example_are_a_tensor() -> None:
    (shown,) = re.findall(r"`((?:[0-9a-f]{2} )+[0-9a-f]{2})`", PROTOCOL.section(TENSORS))
    tensor = Tensor.of(np.array([[1.0, 0.5]], dtype="float32"))
    assert unpackb(bytes.fromhex(shown)) == tensor
    assert packb(tensor) == bytes.fromhex(shown)


def test_a_program_without_the_sdk_sends_and_reads_tensors(
    fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = PROTOCOL.run(TENSORS, fleet, folder, monkeypatch)
    with Client(fleet.gateway_url) as fm:
        wanted = fm.infer("embed", [{"input_ids": [101, 7592, 102]}, "a text"])
    for vector, result in zip((found["first"], found["second"]), wanted, strict=True):
        np.testing.assert_allclose(vector, result.output["embedding"], atol=1e-5)
