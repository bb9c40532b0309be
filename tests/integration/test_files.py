"""Files through a gateway of its own: the openai package, two keys, two gateways, and memory that stays flat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import NotFoundError, OpenAI

from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.streams.embedded import EmbeddedServer
from tests.support.fleets import gateway, write_fleet

BACKBONE = {"name": "m", "model": "/nowhere"}  # no worker is started
LIMIT = GatewaySpec().max_file_bytes
KEYS = [
    {"name": "team-a", "key": "key-of-team-a", "scopes": ["infer"]},
    {"name": "team-b", "key": "key-of-team-b", "scopes": ["infer"]},
]
LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "v", "input": "\xc3\xa4"}}\n'


@dataclass(frozen=True)
class Site:
    """A gateway by itself: its URL, its process id, and its place, where its store is too."""

    url: str
    pid: int
    config: Path
    broker: str

    @property
    def stored(self) -> list[str]:
        return [path.name for path in (self.config.parent / "artifacts" / "files").iterdir()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("files")
    config = write_fleet(folder / "fleet.toml", BACKBONE, gateway={"keys": KEYS})
    with EmbeddedServer(folder / "broker") as server, gateway(config, server.url, folder / "log") as (url, process):
        yield Site(url, process.pid, config, server.url)


def client(url: str, key: str = "key-of-team-a") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_the_openai_package(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "requests ü.jsonl"
    path.write_bytes(LINE * 1000)
    with client(site.url) as mine, client(site.url, "key-of-team-b") as theirs:
        made = mine.files.create(file=path, purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200})
        assert (made.bytes, made.filename, made.purpose, made.object, made.status) == (
            len(LINE) * 1000, path.name, "batch", "file", "processed",
        )  # fmt: skip
        assert made.expires_at is not None
        assert made.expires_at - made.created_at == 7200
        others = [mine.files.create(file=(f"{i}.jsonl", LINE), purpose="batch").id for i in range(4)]
        assert mine.files.retrieve(made.id) == made
        assert [file.id for file in mine.files.list(limit=2)] == [*others[::-1], made.id], "page by page"
        assert [file.id for file in mine.files.list(after=others[1], limit=1).data] == [others[0]]
        assert [file.id for file in mine.files.list(purpose="batch", order="asc")] == [made.id, *others]
        assert not mine.files.list(purpose="batch_output").data
        assert mine.files.content(made.id).content == path.read_bytes()
        part = mine.files.content(made.id, extra_headers={"Range": "bytes=10-19"})
        assert (part.response.status_code, part.content) == (206, LINE[10:20])
        with mine.files.with_streaming_response.content(made.id) as streamed:
            assert b"".join(streamed.iter_bytes()) == path.read_bytes()
        assert theirs.files.list().data == []
        for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
            with pytest.raises(NotFoundError) as caught:
                call(made.id)
            assert (caught.value.code, caught.value.param) == ("unknown_file", "id")
        for file in mine.files.list(limit=2):
            assert mine.files.delete(file.id).deleted
        assert mine.files.list().data == []


def test_a_file_is_at_every_gateway(site: Site, tmp_path: Path) -> None:
    with gateway(site.config, site.broker, tmp_path / "log") as (url, _), client(site.url) as one, client(url) as other:
        made = one.files.create(file=("x.jsonl", LINE), purpose="batch")
        assert other.files.retrieve(made.id) == made
        assert other.files.content(made.id).content == LINE
        assert other.files.delete(made.id).deleted
        assert one.files.list().data == []


def peak_bytes(process: int) -> int:
    [kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kib) * 1024


def test_memory_stays_flat(site: Site, tmp_path: Path) -> None:
    """200 MB, as a form and as the body, and read again; one byte more is refused."""
    path = tmp_path / "large.jsonl"
    with path.open("wb") as out:
        out.truncate(LIMIT)
    headers = {"Authorization": "Bearer key-of-team-a"}
    with httpx.Client(base_url=site.url, headers=headers, timeout=120) as http:
        small = http.post("/v1/files", data={"purpose": "batch"}, files={"file": LINE}).json()
        http.get(f"/v1/files/{small['id']}/content").raise_for_status()
        before = peak_bytes(site.pid)
        with path.open("rb") as content:
            form = http.post("/v1/files", data={"purpose": "batch"}, files={"file": content}).json()
        with path.open("rb") as content:
            raw = http.post("/v1/files?purpose=batch", content=content).json()
        assert (form["bytes"], raw["bytes"]) == (LIMIT, LIMIT)
        with http.stream("GET", f"/v1/files/{form['id']}/content") as response:
            assert sum(len(part) for part in response.iter_bytes()) == LIMIT
        with path.open("ab") as out:
            out.write(b"x")
        with path.open("rb") as content:
            refused = http.post("/v1/files?purpose=batch", content=content)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        assert peak_bytes(site.pid) - before <= 32 << 20
        for made in (small, form, raw):
            http.delete(f"/v1/files/{made['id']}").raise_for_status()
    assert site.stored == []
