"""What is uploaded: hostile archives, too large ones, other content, half of one; the store keeps only what was checked."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fmplex import AsyncClient, Client, PackageRejected, TooLarge
from fmplex.local import LocalFleet
from fmplex_broker.packages.archive import MEDIA_TYPE, pack, unpack
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.versions import artifact_of
from tests.integration.archives import GOOD, HOSTILE, SPEC, folder_archive, upload
from tests.integration.conftest import MAX_PACKAGE, TEXTS
from tests.integration.sending import refused, send
from tests.integration.vandals import CLASSES
from tests.support.outputs import difference
from tests.support.packages import LINEARS, write_package
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("neighbours")


def stored(fleet: LocalFleet) -> set[str]:
    """Everything in the artifact store, unfinished files too."""
    return {path.name for path in Path(fleet.artifacts).iterdir()}


@pytest.mark.parametrize("path", ["/v1/vfms", "/v1/vfms/embed/versions"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_by_name(fleet: LocalFleet, http: httpx.Client, what: str, path: str) -> None:
    blob, field, says = HOSTILE[what]
    before = stored(fleet)
    answer = upload(http, blob, path)
    error = answer.json()["error"]
    refused(answer, 422, error["code"], field if field is not None else error.get("field"), says)
    assert error["code"] in ("package_rejected", "invalid_input")
    assert stored(fleet) == before, "what is refused is not stored"


def test_an_archive_is_read_by_its_content_type_alone(http: httpx.Client) -> None:
    for kind in (
        "application/json",
        "application/octet-stream",
        "application/gzip",
        "text/plain",
        "multipart/form-data",
    ):
        refused(upload(http, GOOD, kind=kind), 422, "invalid_input", None, "the body cannot be read")
    refused(http.post("/v1/vfms", content=GOOD), 422, "invalid_input", None, "the body cannot be read")
    refused(upload(http, gzip.compress(GOOD)), 422, "package_rejected", "package", "archive")
    answer = upload(http, GOOD, kind="Application/X-Tar; charset=binary")
    assert (answer.status_code, answer.json()["name"]) == (201, SPEC["name"])
    assert http.delete(f"/v1/vfms/{SPEC['name']}").status_code == 200


def test_too_large_an_archive_is_refused_before_it_is_taken(fleet: LocalFleet, http: httpx.Client) -> None:
    before = stored(fleet)
    for path in ("/v1/vfms", "/v1/vfms/embed/versions"):
        refused(upload(http, bytes(MAX_PACKAGE + 1), path), 413, "too_large", None, f"at most {MAX_PACKAGE}")

        def parts() -> object:
            for _ in range(MAX_PACKAGE // 65536 + 2):
                yield bytes(65536)

        chunked = http.post(path, content=parts(), headers={"Content-Type": MEDIA_TYPE})
        refused(chunked, 413, "too_large", None, f"more than {MAX_PACKAGE} bytes")
    url = urlsplit(fleet.gateway_url)
    with socket.create_connection((url.hostname, url.port), timeout=30) as s:
        s.sendall(
            b"POST /v1/vfms HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-tar\r\ncontent-length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in s.recv(64), "told by its header alone"
    assert stored(fleet) == before
    # A body of another kind has its own, smaller limit.
    spec = json.dumps({"spec": SPEC, "x": "x" * 4_194_304}).encode()
    refused(http.post("/v1/vfms", content=spec), 413, "too_large", None, "at most 4194304")


async def test_a_package_larger_than_the_gateway_takes_says_so_to_the_sdk(fleet: LocalFleet, tmp_path: Path) -> None:
    large = write_package(tmp_path / "large", CLASSES, rank=112, targets=tuple(LINEARS))
    assert len(pack(read_package(large))) > MAX_PACKAGE
    async with AsyncClient(fleet.gateway_url, retries=0) as client:
        with pytest.raises(TooLarge, match=str(MAX_PACKAGE)):
            await client.vfms.deploy(large)


def test_an_upload_cut_off_leaves_nothing(fleet: LocalFleet, http: httpx.Client, tmp_path: Path) -> None:
    blob = folder_archive(write_package(tmp_path / "cut", CLASSES, rank=4))
    before = stored(fleet)
    url = urlsplit(fleet.gateway_url)
    for cut in (0, 700, len(blob) - 1):
        with socket.create_connection((url.hostname, url.port), timeout=30) as s:
            s.sendall(b"POST /v1/vfms HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-tar\r\n")
            s.sendall(b"content-length: %d\r\n\r\n" % len(blob) + blob[:cut])
    assert http.get("/healthz").status_code == 200
    assert http.get("/v1/vfms/cut").status_code == 404
    assert stored(fleet) == before


def test_what_is_stored_is_what_serves(fleet: LocalFleet, http: httpx.Client, tmp_path: Path) -> None:
    """By its digest, once, whatever its name; an archive by hand gives the same version as the SDK's."""
    package = write_package(tmp_path / "kept", CLASSES, rank=2, seed=77)
    deployed = upload(http, package).json()
    artifact = artifact_of(deployed["version"])
    file = Path(fleet.artifacts) / f"{artifact}.fmplex"
    assert unpack(file.read_bytes()).digest == artifact == read_package(package).digest
    before = stored(fleet)
    with Client(fleet.gateway_url) as client:
        (package / "vfm.toml").write_text((package / "vfm.toml").read_text().replace('"kept"', '"kept-too"'))
        again = client.vfms.deploy(package)
        assert again.version == deployed["version"]
        assert stored(fleet) == before
        outputs = [client.infer(name, TEXTS[0]).output for name in ("kept", "kept-too")]
        assert difference(*outputs) <= 1e-5
        for name in ("kept", "kept-too"):
            client.vfms.remove(name)


async def test_many_uploads_of_one_package_store_it_once(
    fleet: LocalFleet, client: AsyncClient, tmp_path: Path
) -> None:
    folders = [write_package(tmp_path / f"twin-{i}", CLASSES, rank=4, seed=123) for i in range(8)]
    deployed = await asyncio.gather(*(client.vfms.deploy(folder) for folder in folders))
    (version,) = {vfm.version for vfm in deployed}
    assert f"{artifact_of(version)}.fmplex" in stored(fleet)
    assert [name for name in stored(fleet) if not name.endswith(".fmplex")] == [], "nothing unfinished is left"
    await asyncio.gather(*(client.vfms.remove(folder.name) for folder in folders))


def test_prune_keeps_what_can_serve(
    fleet: LocalFleet, http: httpx.Client, tmp_path: Path, new_vfm: Callable[..., str], age: Callable[[str], None]
) -> None:
    name = new_vfm(CLASSES, seed=201)
    first = artifact_of(http.get(f"/v1/vfms/{name}").json()["version"])
    with Client(fleet.gateway_url) as client:
        second = artifact_of(
            client.vfms.update(name, package=write_package(tmp_path / name, CLASSES, seed=202)).version
        )
        young = artifact_of(client.vfms.deploy(write_package(tmp_path / "young", CLASSES, seed=203)).version)
        gone = artifact_of(client.vfms.deploy(write_package(tmp_path / "gone", CLASSES, seed=204)).version)
        for other in ("young", "gone"):
            client.vfms.remove(other)
        for artifact in (first, second, gone):
            age(artifact)
        pruned = client.vfms.prune()
        assert gone in pruned
        assert not {first, second, young} & set(pruned), "what serves, could be rolled back to, or is new stays"
        assert f"{gone}.fmplex" not in stored(fleet)
        assert artifact_of(client.vfms.roll_back(name).version) == first
        assert artifact_of(client.infer(name, "x").version) == first
        # What went is stored anew when it is deployed again.
        assert artifact_of(client.vfms.deploy(tmp_path / "gone").version) == gone
        assert f"{gone}.fmplex" in stored(fleet)
        client.vfms.remove("gone")


def test_an_artifact_that_was_tampered_with_is_not_rolled_back_to(
    fleet: LocalFleet, http: httpx.Client, tmp_path: Path, new_vfm: Callable[..., str]
) -> None:
    name = new_vfm(CLASSES, seed=211)
    with Client(fleet.gateway_url) as client:
        first = client.vfms.show(name).version
        second = client.vfms.update(name, package=write_package(tmp_path / name, CLASSES, seed=212)).version
        artifacts = [artifact_of(version) for version in (first, second)]
        files = [Path(fleet.artifacts) / f"{artifact}.fmplex" for artifact in artifacts]
        file, genuine = files[0], files[0].read_bytes()
        file.write_bytes(files[1].read_bytes())
        with pytest.raises(PackageRejected, match=f"artifact {artifacts[0]} is another one; deploy it again"):
            client.vfms.roll_back(name)
        file.unlink()
        with pytest.raises(PackageRejected, match=f"artifact {artifacts[0]} is not in the artifact store"):
            client.vfms.roll_back(name)
        assert client.infer(name, "x").version == second
        file.write_bytes(genuine)
        assert client.vfms.roll_back(name).version == first
    assert send(http, f"/v1/vfms/{name}/infer", {"inputs": ["x"]}).json()["version"] == first
    wait_until(lambda: http.get("/readyz").status_code == 200, "the worker lives")
