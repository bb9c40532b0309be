"""A vFM as the API and the SDK show it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.heads import Classification, Embedding, Features
from fmplex_broker.specs.vfm import Limits, Slo, VfmSpec
from fmplex_broker.specs.vfm_info import PastVersion, Refusal, VfmInfo

SINGLE = VfmSpec(name="v", backbone="b", head=Classification(labels=("no", "yes")), weight=2.5, slo=Slo(latency_ms=40))
SEVERAL = VfmSpec(name="v", backbone="b", heads={"one": Embedding(), "two": Features()}, limits=Limits(rate=1e6))
ERROR = {"code": "package_rejected", "message": "no such layer", "field": "adapter"}


def status(**parts: Any) -> VfmStatus:
    return VfmStatus(**{"name": "v", "backbone": "b", "status": "serving", "version": "1", "generation": 7} | parts)


STATUSES = {
    "serves": status(serving=SINGLE, past=(PastVersion(version="0", until_ms=1234),)),
    "serves, another on offer": status(serving=SINGLE, candidate=("2", SEVERAL)),
    "several heads": status(serving=SEVERAL),
    "serves, another was refused": status(serving=SINGLE, error=ERROR),
    "on offer, none serves": status(status="validating", version="", candidate=("2", SEVERAL)),
    "none was accepted": status(status="rejected", version="", error={"code": "internal", "message": "broken"}),
}


@pytest.mark.parametrize("which", STATUSES)
def test_it_survives_the_way(which: str) -> None:
    shown = STATUSES[which].describe()
    assert VfmInfo.read(json.loads(json.dumps(shown.plain()))) == shown


def test_what_it_tells() -> None:
    shown = STATUSES["serves"].describe()
    assert (shown.name, shown.backbone, shown.status, shown.version, shown.generation) == ("v", "b", "serving", "1", 7)
    assert (shown.head, shown.heads, shown.input) == (SINGLE.head, {}, SINGLE.input)
    assert (shown.weight, shown.limits, shown.slo) == (2.5, Limits(), Slo(latency_ms=40))
    assert shown.past == (PastVersion(version="0", until_ms=1234),)
    assert (shown.candidate, shown.error) == (None, None)


def test_what_serves_is_shown_before_what_is_on_offer() -> None:
    both, offered = STATUSES["serves, another on offer"].describe(), STATUSES["on offer, none serves"].describe()
    assert (both.head, both.candidate) == (SINGLE.head, "2")
    assert (offered.heads, offered.version, offered.candidate) == (SEVERAL.heads, None, "2")


def test_why_a_version_was_refused() -> None:
    assert STATUSES["serves, another was refused"].describe().error == Refusal(**ERROR)
    nothing = STATUSES["none was accepted"].describe()
    assert (nothing.head, nothing.heads, nothing.weight, nothing.limits, nothing.slo) == (None,) * 5
    assert nothing.plain()["error"] == {"code": "internal", "message": "broken"}, "no field, no key"


def test_a_newer_gateway_may_tell_more() -> None:
    shown = STATUSES["serves, another was refused"].describe()
    wire = shown.plain() | {"colour": "red"}
    for part in ("head", "limits", "slo", "input", "error"):
        wire[part] |= {"newer": 1}
    assert VfmInfo.read(wire) == shown


@pytest.mark.parametrize("wire", [None, [], {"name": "v"}, {"name": "v", "backbone": "b", "status": 3}])
def test_what_is_no_vfm_is_told(wire: object) -> None:
    with pytest.raises(ValidationError):
        VfmInfo.read(wire)


def test_it_never_changes() -> None:
    with pytest.raises(ValidationError):
        STATUSES["serves"].describe().weight = 3.0
