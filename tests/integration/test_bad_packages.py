"""Packages that cannot be served: refused where they are read, by the gateway, or by the worker; nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import save_file

from fmplex import AsyncClient, FmplexError
from tests.integration.archives import upload
from tests.integration.conftest import TEXTS
from tests.integration.sending import refused, send
from tests.integration.vandals import CLASSES, FILES, FOLDERS, MISFITS, Kind
from tests.support.packages import head_weights, write_package

pytestmark = pytest.mark.usefixtures("neighbours")


def spoil(folder: Path, what: str, name: str = "bad", table: Kind = FOLDERS | FILES | MISFITS) -> Path:
    """A package with something wrong with it."""
    (folder / "elsewhere").mkdir(parents=True)
    package = write_package(folder / name, CLASSES, rank=4)
    table[what][2](package, folder / "elsewhere")
    return package


def code_of(field: str | None) -> str:
    return "invalid_input" if field in ("colour", "backbone", None) else "package_rejected"


@pytest.mark.parametrize("what", FOLDERS | FILES | MISFITS)
async def test_a_bad_package_is_refused_at_deployment(client: AsyncClient, tmp_path: Path, what: str) -> None:
    field, says, _ = (FOLDERS | FILES | MISFITS)[what]
    package = spoil(tmp_path / "in", what)
    with pytest.raises(FmplexError) as caught:
        await client.vfms.deploy(package)
    assert (caught.value.status, caught.value.code, caught.value.field) == (422, code_of(field), field)
    assert says in caught.value.message
    with pytest.raises(FmplexError) as caught:
        await client.infer("bad", "x")
    assert caught.value.status in (404, 503)


@pytest.mark.parametrize("what", FILES)
def test_a_gateway_does_not_trust_that_the_package_was_checked(http: httpx.Client, tmp_path: Path, what: str) -> None:
    field, says, _ = FILES[what]
    refused(upload(http, spoil(tmp_path / "in", what)), 422, "package_rejected", field, says)
    assert http.get("/v1/vfms/bad").status_code in (200, 404)
    assert send(http, "/v1/vfms/bad/infer", {"inputs": ["x"]}).status_code in (404, 503)


@pytest.mark.parametrize("what", ["a truncated adapter", "an adapter for a deeper backbone"])
async def test_a_bad_new_version_never_serves_and_its_error_is_shown(
    client: AsyncClient, tmp_path: Path, new_vfm: Callable[..., str], what: str
) -> None:
    """A worker's refusal is shown; what the gateway or the client refuses has never been offered."""
    field, says, _ = (FILES | MISFITS)[what]
    name = new_vfm(CLASSES, rank=2)
    before = await client.infer(name, TEXTS[0])
    with pytest.raises(FmplexError) as caught:
        await client.vfms.update(name, package=spoil(tmp_path / "in", what, name))
    assert (caught.value.code, caught.value.field) == ("package_rejected", field)
    after = await client.infer(name, TEXTS[0])
    assert after.version == before.version
    shown = await client.vfms.show(name)
    assert (shown.status, shown.version, shown.candidate) == ("serving", before.version, None)
    assert shown.past == (), "what never served cannot be rolled back to"
    if what in MISFITS:
        assert says in shown.error.message
        await client.vfms.update(name, package=write_package(tmp_path / name, CLASSES, seed=9))
        assert (await client.vfms.show(name)).error is None, "mended"


async def test_a_refused_package_can_be_mended_and_deployed_again(client: AsyncClient, tmp_path: Path) -> None:
    package = spoil(tmp_path / "in", "a head for another backbone", "mended")
    with pytest.raises(FmplexError):
        await client.vfms.deploy(package)
    shown = await client.vfms.show("mended")
    assert (shown.status, shown.version) == ("rejected", None)
    assert "needed: weight (2, 384)" in shown.error.message
    save_file(head_weights(2), package / "head.safetensors")
    assert (await client.vfms.deploy(package)).status == "serving"
    assert (await client.infer("mended", "x")).output
    await client.vfms.remove("mended")


SPEC = {"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}}
NEW = SPEC | {"name": "new"}
SPECS: dict[str, tuple[Any, int, str, str | None, str]] = {
    "a name that is taken": ({"spec": SPEC}, 409, "conflict", "name", "offer this as its new version, or remove it first"),
    "a name that is a path": ({"spec": SPEC | {"name": "a/b"}}, 422, "invalid_input", "spec.name", "match pattern"),
    "a name of a key": ({"spec": SPEC | {"name": "a:b"}}, 422, "invalid_input", "spec.name", "match pattern"),
    "a strange backbone": ({"spec": NEW | {"backbone": "gpt"}}, 422, "invalid_input", "backbone", "known: minilm"),
    "a head that is none": ({"spec": SPEC | {"head": {"kind": "poet"}}}, 422, "invalid_input", "spec.head", "poet"),
    "a head that needs weights": ({"spec": NEW | {"head": CLASSES}}, 422, "package_rejected", "head", "needs head.safetensors"),
    "no head": ({"spec": {"name": "new", "backbone": "minilm"}}, 422, "invalid_input", "spec", "give either head, or heads"),
    "no weight": ({"spec": SPEC | {"weight": 0}}, 422, "invalid_input", "spec.weight", "greater than"),
    "an unknown limit": ({"spec": SPEC | {"limits": {"max": 1}}}, 422, "invalid_input", "spec.limits.max", "unknown key"),
    "nothing": ({}, 422, "invalid_input", "spec", "required"),
    "a path": ({"package": "/vfms/x"}, 422, "invalid_input", "package", "unknown key"),
    "a checkpoint beside": ({"spec": NEW, "checkpoint": "c"}, 422, "invalid_input", "checkpoint", "not both"),
    "a name beside": ({"spec": NEW, "name": "other"}, 422, "invalid_input", "name", "leave this one out"),
    "a checkpoint without a name": ({"checkpoint": "c"}, 422, "invalid_input", "name", "called"),
    "no id of a checkpoint": ({"checkpoint": "c", "name": "new"}, 422, "invalid_input", "checkpoint", "begin with ftckpt-"),
    "a path beside": ({"spec": NEW, "package": "/vfms/x"}, 422, "invalid_input", "package", "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPECS)
def test_a_bad_deployment_is_refused_by_name(http: httpx.Client, what: str) -> None:
    body, *expected = SPECS[what]
    refused(send(http, "/v1/vfms", body), *expected)


def test_a_bad_change_is_refused_by_name(http: httpx.Client) -> None:
    for change, field in (
        ({"weight": -1}, "weight"),
        ({"colour": 1}, "colour"),
        ({"package": "/vfms/x"}, "package"),
        ({"limits": {"max_pending": 0}}, "limits.max_pending"),
    ):
        response = http.patch("/v1/vfms/embed", json=change)
        assert (response.status_code, response.json()["error"]["field"]) == (422, field)
    assert http.patch("/v1/vfms/nobody", json={"weight": 2}).status_code == 404
    assert http.delete("/v1/vfms/nobody").status_code == 404


def test_a_bad_page_is_refused_by_name(http: httpx.Client) -> None:
    for limit in ("0", "1001", "-1", "ten", "", "²", "٣", "9" * 5000):
        refused(http.get("/v1/vfms", params={"limit": limit}), 422, "invalid_input", "limit", "from 1 to 1000")
    for match in ("[", "[!", "*" * 200, "[z-a]", "\\", "é", "\0"):
        assert http.get("/v1/vfms", params={"match": match}).status_code == 200
    nobody = http.get("/v1/vfms", params={"match": "no-such-*"}).json()
    assert nobody == {"vfms": [], "total": 0}


def test_a_bad_roll_back_is_refused_by_name(http: httpx.Client, new_vfm: Callable[..., str]) -> None:
    name = new_vfm()
    refused(send(http, f"/v1/vfms/{name}/rollback", {}), 409, "conflict", None, "has served no other version")
    refused(send(http, f"/v1/vfms/{name}/rollback", {"to": "x"}), 422, "invalid_input", "to", "unknown key")
    refused(send(http, f"/v1/vfms/{name}/rollback", {"version": 7}), 422, "invalid_input", "version", "string")
    assert http.post(f"/v1/vfms/{name}/versions", json={"spec": NEW | {"name": name, "head": {"kind": "features"}}})
    refused(
        send(http, f"/v1/vfms/{name}/rollback", {"version": "x"}), 422, "invalid_input", "version", "rolled back to"
    )
    refused(send(http, "/v1/vfms/nobody/rollback", {}), 404, "unknown_vfm", None, "no vFM 'nobody'")
    refused(send(http, "/v1/vfms/nobody/versions", {"spec": NEW}), 404, "unknown_vfm", None, "no vFM 'nobody'")
