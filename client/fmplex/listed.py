"""Bringing a fleet to what its file lists: vFMs that are missing are deployed, those that differ are changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fmplex.sync import Client
from fmplex.vfms import as_package
from fmplex_broker.errors import UnknownVfm
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.specs.vfm_info import VfmInfo


def apply_listed(client: Client, listed: Iterable[VfmSpec | Path]) -> Iterator[str]:
    """Deploy or change vFMs so that they are as listed; yield a line about each that was not. Weight, limits and SLO are
    changed only where they are written down. Raises as `client.vfms.deploy` and `update` do."""
    for wanted in listed:
        package = as_package(wanted)
        try:
            now = client.vfms.show(package.spec.name)
        except UnknownVfm:
            client.vfms.deploy(package)
            continue
        yield from (f"{now.name}: {line}" for line in _bring(client, now, package))


def _bring(client: Client, now: VfmInfo, package: Package) -> Iterator[str]:
    """Bring a vFM that is there to its package, and say what that changed."""
    spec = package.spec
    if now.backbone != spec.backbone:
        yield (
            f"lives on {now.backbone}, and the fleet file says {spec.backbone}; left as it is: `fmplex vfms remove {now.name}` "
            "and start again"
        )
    elif now.status == "validating":
        yield "is still being checked by the workers; left as it is"
    elif now.status == "rejected":
        client.vfms.deploy(package)
        yield "was rejected before; deployed again"
    else:
        yield from _update(client, now, package)


def _update(client: Client, now: VfmInfo, package: Package) -> Iterator[str]:
    if now.status == "stale" or artifact_of(now.version or "") != package.digest:
        client.vfms.update(now.name, package)
        yield "made for other weights; deployed again" if now.status == "stale" else "has changed; a new version serves"
    change = _differing(now, package.spec)
    if change:
        client.vfms.update(now.name, **change)
        yield "as the fleet file says: " + ", ".join(_written(key, value) for key, value in change.items())


def _differing(now: VfmInfo, spec: VfmSpec) -> dict[str, Any]:
    """Return the operating values that are written down and are not those that hold."""
    change: dict[str, Any] = {}
    if "weight" in spec.model_fields_set and spec.weight != now.weight:
        change["weight"] = spec.weight
    for key in {"limits", "slo"} & spec.model_fields_set:
        part: Spec = getattr(spec, key)
        given = {name: getattr(part, name) for name in part.model_fields_set}
        if any(getattr(getattr(now, key), name) != value for name, value in given.items()):
            change[key] = given
    return change


def _written(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(_written(inner, part) for inner, part in value.items())
    return f"{key} {value}"
