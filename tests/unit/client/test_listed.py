"""What a fleet file lists is brought about, and what that changes is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmplex.listed import apply_listed
from fmplex_broker.errors import UnknownVfm
from fmplex_broker.packages.package import Package, bare
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.versions import version_of
from fmplex_broker.specs.vfm import VfmSpec
from tests.support.hosting import on_hosted


class FakeVfms:
    """The vFMs of a fleet in a dict; `calls`: what was asked for."""

    def __init__(self) -> None:
        self.there: dict[str, VfmStatus] = {}
        self.calls: list[tuple[Any, ...]] = []

    def show(self, name: str) -> Any:
        if name not in self.there:
            raise UnknownVfm(name)
        return self.there[name].describe()

    def deploy(self, package: Package) -> None:
        self.calls.append(("deploy", package.spec.name))

    def update(self, name: str, package: Package | None = None, **change: Any) -> None:
        self.calls.append(("update", name, package.digest if package else None, change))


class FakeClient:
    def __init__(self) -> None:
        self.vfms = FakeVfms()


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def vfm(**values: Any) -> VfmSpec:
    return parse(VfmSpec, {"name": "v", "backbone": "m", "head": {"kind": "embedding"}, **values})


def stands(client: FakeClient, spec: VfmSpec, status: str = "serving", version: str | None = None) -> None:
    digest = bare(spec).digest
    client.vfms.there["v"] = VfmStatus(
        name="v",
        backbone=spec.backbone,
        status=status,
        version=version or on_hosted(digest),
        generation=2,
        serving=spec,
    )


def applied(client: FakeClient, *listed: VfmSpec | Path) -> list[str]:
    return list(apply_listed(client, listed))  # type: ignore[arg-type]


def test_what_is_missing_is_deployed(client: FakeClient) -> None:
    assert applied(client, vfm(), vfm(name="w")) == []
    assert client.vfms.calls == [("deploy", "v"), ("deploy", "w")]


def test_what_is_as_listed_is_left_alone(client: FakeClient) -> None:
    stands(client, vfm(weight=2, limits={"max_pending": 5}))
    assert applied(client, vfm(weight=2, limits={"max_pending": 5})) == []
    assert applied(client, vfm()) == [], "what the file does not say stays as it was set"
    assert client.vfms.calls == []


def test_an_edited_vfm_gets_a_new_version(client: FakeClient) -> None:
    stands(client, vfm())
    edited = vfm(input={"template": "query: {text}"})
    assert applied(client, edited) == ["v: has changed; a new version serves"]
    assert client.vfms.calls == [("update", "v", bare(edited).digest, {})]


def test_edited_operating_values_are_applied_and_said(client: FakeClient) -> None:
    stands(client, vfm(weight=4, limits={"max_pending": 5, "rate": 10}, slo={"latency_ms": 70}))
    edited = vfm(weight=1.5, limits={"max_pending": 6}, slo={"latency_ms": 70})
    assert applied(client, edited) == ["v: as the fleet file says: weight 1.5, max_pending 6"]
    assert client.vfms.calls == [("update", "v", None, {"weight": 1.5, "limits": {"max_pending": 6}})]


def test_a_stale_vfm_is_deployed_again(client: FakeClient) -> None:
    stands(client, vfm(), "stale", version_of(bare(vfm()).digest, "0" * 12))
    assert applied(client, vfm()) == ["v: made for other weights; deployed again"]
    assert client.vfms.calls == [("update", "v", bare(vfm()).digest, {})]


def test_a_rejected_vfm_is_tried_again(client: FakeClient) -> None:
    stands(client, vfm(), "rejected")
    assert applied(client, vfm()) == ["v: was rejected before; deployed again"]
    assert client.vfms.calls == [("deploy", "v")]


@pytest.mark.parametrize(
    ("status", "backbone", "said"), [("validating", "m", "being checked"), ("serving", "other", "lives on m")]
)
def test_what_cannot_be_brought_about_is_named_and_left(
    client: FakeClient, status: str, backbone: str, said: str
) -> None:
    stands(client, vfm(), status)
    (line,) = applied(client, vfm(backbone=backbone))
    assert said in line
    assert client.vfms.calls == []
