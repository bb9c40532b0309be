"""Several backbones in one fleet; and a backbone whose weights are replaced. Real processes, started by `fmplex up`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from fmplex import AsyncClient, Client
from fmplex_broker.errors import Conflict, StaleVersion
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.embedded import free_port
from fmplex_broker.streams.producer import Producer
from fmplex_broker.streams.queue_client import QueueClient
from tests.integration.shell import FMPLEX, Shell, clean_environment
from tests.support import tiny, tiny_lm
from tests.support.fleets import MODEL, spawn, worker_ids, write_fleet
from tests.support.outputs import difference
from tests.support.packages import write_package
from tests.support.waiting import until, wait_until

TEXT = "the cat sat on the mat"
BACKBONES = ("minilm", "llama", "modernbert")


@dataclass(frozen=True)
class Up:
    """What `fmplex up` runs from a folder."""

    folder: Path
    process: subprocess.Popen[bytes]
    state: dict[str, Any]

    @property
    def log(self) -> str:
        return (self.folder / "up.log").read_text()

    def client(self) -> Client:
        return Client(self.state["gateway"])

    def ready(self) -> httpx.Response:
        return httpx.get(f"{self.state['gateway']}/readyz", timeout=10, verify=False)

    def workers(self, backbone: str) -> list[psutil.Process]:
        """Its worker processes of a backbone."""
        children = psutil.Process(self.process.pid).children()
        return [c for c in children if "fmplex_worker" in c.cmdline() and backbone in c.cmdline()]


@contextmanager
def up(folder: Path, config: Path, *options: str) -> Iterator[Up]:
    """Run `fmplex up` from a folder until it serves."""
    folder.mkdir(exist_ok=True)
    log = folder / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [FMPLEX, "up", "--config", config, *options], cwd=folder, env=clean_environment(), stdout=out, stderr=out
        )
    try:
        wait_until(lambda: process.poll() is not None or "Ctrl-C stops" in log.read_text(), "the fleet serves", 180)
        assert process.poll() is None, log.read_text()
        yield Up(folder, process, json.loads((folder / ".fmplex/up.json").read_text()))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)


# --- three backbones --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module")
def zoo(place: Path) -> Iterator[Up]:
    """The real MiniLM, a tiny Llama and a tiny ModernBERT, each with a vFM from the fleet file."""
    models = {
        "llama": tiny_lm.save_model("llama", place / "llama"),
        "modernbert": tiny.save_model("modernbert", place / "mb"),
    }
    embedding = {"kind": "embedding"}
    config = write_fleet(
        place / "fleet.toml",
        {"name": "minilm", "model": MODEL, "max_tokens": 256},
        {"name": "llama", "model": str(models["llama"]), "pass_units": 64, "worker": {"kv_bytes": 32 << 20}},
        {"name": "modernbert", "model": str(models["modernbert"]), "workers": 2},
        worker={"threads": 1, "lease_ms": 1000},
        vfms=[
            {"name": "mini", "backbone": "minilm", "head": embedding},
            {"name": "chat", "backbone": "llama", "head": {"kind": "generation", "max_tokens": 8}},
            {"name": "tiny", "backbone": "modernbert", "head": embedding},
        ],
    )
    with up(place, config, "--port", "0") as running:
        yield running


@pytest.fixture
def fmplex(zoo: Up) -> Shell:
    return Shell(zoo.folder, zoo.state["gateway"])


def test_every_backbone_comes_up_with_its_workers(zoo: Up) -> None:
    answer = zoo.ready()
    assert (answer.status_code, answer.json()["workers"]) == (200, {"minilm": 1, "llama": 1, "modernbert": 2})
    assert len(zoo.workers("modernbert")) == 2


def test_each_takes_vfms_and_answers_for_its_own(zoo: Up, place: Path) -> None:
    with zoo.client() as client:
        assert {v.name: v.backbone for v in client.vfms.list()} == {
            "mini": "minilm",
            "chat": "llama",
            "tiny": "modernbert",
        }
        wide = client.infer("mini", TEXT).output["embedding"].shape
        narrow = client.infer("tiny", TEXT).output["embedding"].shape
        assert (tuple(wide), tuple(narrow)) == ((384,), (tiny.HIDDEN,))
        assert client.infer("chat", TEXT, temperature=0).output["completion_tokens"] > 0
        package = write_package(place / "vfms/own", {"kind": "embedding", "pooling": "cls"}, backbone="modernbert")
        assert client.vfms.deploy(package).backbone == "modernbert"
        assert client.infer("own", TEXT).output["embedding"].shape == narrow
        client.vfms.remove("own")


def test_the_commands_know_them(zoo: Up, fmplex: Shell, place: Path) -> None:
    listed = fmplex("vfms")
    told = json.loads(fmplex("top", "--broker", zoo.state["broker"], "--json"))
    for backbone in BACKBONES:
        assert backbone in listed
        assert backbone in {worker["backbone"] for worker in told["workers"]}
    metrics = httpx.get(f"{zoo.state['gateway']}/metrics").text
    assert all(f'backbone="{backbone}"' in metrics for backbone in BACKBONES)
    data = place / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"{w} {i}", "label": w}) + "\n" for i in range(12) for w in ("cat", "dog"))
    )
    said = fmplex.fails("fit", data, "--head", "classification", "--config", "fleet.toml", "--json")
    assert "say which: minilm, llama, modernbert" in said
    fmplex(
        "fit", data, "--head", "classification", "--config", "fleet.toml", "--backbone", "modernbert", "--epochs", "1"
    )
    fmplex("deploy", "vfms/data")
    assert json.loads(fmplex("vfms", "show", "data"))["backbone"] == "modernbert"
    fmplex("vfms", "remove", "data")


async def test_who_loses_its_worker_is_named_and_the_others_answer_as_before(zoo: Up) -> None:
    """`fmplex up` starts it again; meanwhile jobs for it wait, and nobody else's do."""
    (llama,) = zoo.workers("llama")
    async with AsyncClient(zoo.state["gateway"], retries=0) as client:
        alone = [await seconds(client, "mini") for _ in range(30)]
        llama.send_signal(signal.SIGKILL)
        waiting = asyncio.create_task(client.infer("chat", TEXT, max_tokens=4))
        beside = [await seconds(client, "mini") for _ in range(30)]
        await asyncio.gather(*(client.infer("tiny", TEXT) for _ in range(8)))
        named = await until(lambda: refused(zoo), "the gateway has noticed")
        assert named["error"]["code"] == "no_worker"
        assert "llama" in named["error"]["message"]
        assert "minilm" not in named["error"]["message"]
        assert named["workers"]["minilm"] == 1
        await waiting
    # A job that had waited for the other backbone would have taken a lease, a second, and more.
    assert max(beside) < max(0.8, 10 * max(alone))
    await until(lambda: zoo.ready().status_code == 200, "it is back")


@pytest.mark.long
async def test_who_dies_again_soon_after_its_start_is_started_again_too(zoo: Up) -> None:
    async with AsyncClient(zoo.state["gateway"], retries=8) as client:
        for _ in range(3):
            (llama,) = zoo.workers("llama")
            llama.send_signal(signal.SIGKILL)
            await until(lambda dead=llama.pid: successor(zoo, dead), "it is started again")  # type: ignore[misc]
            assert (await client.infer("chat", TEXT, max_tokens=4)).output
    assert zoo.process.poll() is None
    said = zoo.log
    assert "was killed by SIGKILL; it starts again now" in said
    assert "was killed by SIGKILL; it starts again in 0.5 s" in said


def successor(zoo: Up, dead: int) -> bool:
    """Tell whether another process than the dead one hosts the language model."""
    try:
        return any(worker.pid != dead for worker in zoo.workers("llama"))
    except psutil.Error:  # it has ended while we looked
        return False


async def seconds(client: AsyncClient, vfm: str) -> float:
    begun = time.monotonic()
    await client.infer(vfm, TEXT)
    return time.monotonic() - begun


def refused(zoo: Up) -> dict[str, Any] | None:
    answer = zoo.ready()
    return answer.json() if answer.status_code == 503 else None


def test_a_worker_must_say_which_backbone(zoo: Up, place: Path) -> None:
    for options, said in (((), "say which: minilm, llama, modernbert"), (("--backbone", "bert"), "no backbone 'bert'")):
        process = spawn("fmplex_worker", place / "fleet.toml", zoo.state["broker"], place / "one.log", *options)
        assert process.wait(60) == 2
        assert said in (place / "one.log").read_text()


def test_a_second_fleet_on_a_taken_port_changes_nothing(zoo: Up, tmp_path: Path) -> None:
    before = (zoo.folder / ".fmplex/up.json").read_text(), zoo.ready().json()
    config = write_fleet(
        tmp_path / "fleet.toml",
        {"name": "minilm", "model": MODEL},
        vfms=[{"name": "intruder", "backbone": "minilm", "head": {"kind": "embedding"}}],
    )
    port = zoo.state["gateway"].rpartition(":")[2]
    second = subprocess.run(
        [FMPLEX, "up", "--config", config, "--port", port], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert second.returncode == 1
    assert f"port {port}" in second.stderr
    assert "in use" in second.stderr
    with zoo.client() as client:
        assert "intruder" not in {v.name for v in client.vfms.list()}
    assert ((zoo.folder / ".fmplex/up.json").read_text(), zoo.ready().json()) == before


# --- other weights ----------------------------------------------------------------------------------------------------


def perturb(model: Path) -> None:
    """Turn the embeddings of words round, as if another model had been saved under the name."""
    tensors = load_file(model / "model.safetensors")
    name = next(n for n in tensors if "embed" in n and tensors[n].ndim == 2)
    save_file({**tensors, name: torch.flip(tensors[name], [0])}, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A fleet file of a tiny BERT with two vFMs, one of them from a package; and the model beside it."""
    model = tiny.save_model("bert", tmp_path / "model")
    write_package(tmp_path / "vfms/packed", {"kind": "embedding", "pooling": "cls"}, backbone="bert")
    return write_fleet(
        tmp_path / "fleet.toml",
        {"name": "bert", "model": str(model)},
        worker={"threads": 1, "lease_ms": 1000},
        vfms=[{"name": "listed", "backbone": "bert", "head": {"kind": "embedding"}}],
    )


@pytest.mark.long
def test_a_worker_with_other_weights_under_a_taken_name_is_refused(bert: Path, tmp_path: Path) -> None:
    with up(tmp_path, bert, "--port", "0") as running, running.client() as client:
        before = client.infer("listed", TEXT)
        other = tmp_path / "other"
        tiny.save_model("bert", other / "model")
        perturb(other / "model")
        config = write_fleet(
            other / "fleet.toml", {"name": "bert", "model": str(other / "model")}, worker={"lease_ms": 1000}
        )
        process = spawn("fmplex_worker", config, running.state["broker"], tmp_path / "other.log")
        assert process.wait(120) == 2
        said = (tmp_path / "other.log").read_text()
        assert worker_ids(said) == []
        assert all(
            part in said for part in ("bert", str(other / "model"), str(tmp_path / "model"), "differ in weights")
        )
        assert running.ready().json()["workers"] == {"bert": 1}
        after = client.infer("listed", TEXT)
        assert (after.version, difference(after.output, before.output)) == (before.version, 0.0)


async def test_a_restart_with_other_weights_never_answers_with_an_old_version(bert: Path, tmp_path: Path) -> None:
    """Not over HTTP, not straight to the streams, and not for jobs that were queued before."""
    with up(tmp_path, bert, "--port", "0") as running:
        async with AsyncClient(running.state["gateway"]) as client:
            await client.vfms.deploy(tmp_path / "vfms/packed")
            before = await client.infer("packed", TEXT)
        (worker,) = running.workers("bert")
        worker.suspend()
        queue = QueueClient.connect(running.state["broker"])
        queued = await queue.submit("packed", [TEXT] * 3, timeout_ms=600_000)
        worker.send_signal(signal.SIGKILL)  # `fmplex up` is killed too: the broker's file is all that stays
        kill_all(running.process)
    perturb(tmp_path / "model")
    with up(tmp_path, bert, "--port", "0") as running:
        assert "listed: made for other weights; deployed again" in running.log
        for url in (running.state["gateway"], running.state["broker"]):
            async with AsyncClient(url, artifacts=running.state["artifacts"]) as client:
                with pytest.raises(
                    StaleVersion, match=r"'packed' was made for weights \w+, the fleet hosts \w+; deploy it again"
                ):
                    await client.infer("packed", TEXT)
                status = await client.vfms.show("packed")
                assert (status.status, status.version) == ("stale", before.version)
                for call in (client.vfms.update("packed", weight=2), client.vfms.roll_back("packed")):
                    with pytest.raises(Conflict, match="packed"):
                        await call
                assert (await client.infer("listed", TEXT)).version != before.version
        shown = Shell(tmp_path, running.state["gateway"])("vfms")
        assert "stale" in shown
        await queue.close()
        again = QueueClient.connect(running.state["broker"])
        results = await until(lambda: stored(again, [p.job for p in queued]), "the queued jobs are answered")
        assert {type(reply.error) for reply in results} == {StaleVersion}
        await again.close()
        async with AsyncClient(running.state["gateway"]) as client:
            status = await client.vfms.deploy(tmp_path / "vfms/packed")
            assert status.version != before.version
            assert artifact_of(status.version) == artifact_of(before.version)
            after = await client.infer("packed", TEXT)
        assert after.version == status.version
        assert difference(after.output, before.output) > 1e-3


async def stored(queue: QueueClient, jobs: list[str]) -> list[Any] | None:
    """Read the stored replies of jobs of the tiny BERT; None while one is missing."""
    found = await Producer(queue.redis, queue.scripts, "bert").results(jobs)
    return found if all(found) else None


def kill_all(process: subprocess.Popen[bytes]) -> None:
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.kill()
    process.wait(30)


@pytest.mark.long
def test_edits_of_the_fleet_file_are_applied_at_the_next_start(bert: Path, tmp_path: Path) -> None:
    port = str(free_port())
    with up(tmp_path, bert, "--port", port) as running, running.client() as client:
        before = client.vfms.show("listed")
    text = bert.read_text()
    bert.write_text(text.replace('name = "listed"', 'name = "listed", weight = 3, input = { template = "a: {text}" }'))
    with up(tmp_path, bert, "--port", port) as running, running.client() as client:
        after = client.vfms.show("listed")
        assert "listed: has changed; a new version serves" in running.log
        assert "listed: as the fleet file says: weight 3" in running.log
    assert (after.weight, after.input.template) == (3, "a: {text}")
    assert after.version != before.version
    assert [p.version for p in after.past] == [before.version]


@pytest.mark.long
def test_two_fleets_of_one_machine_prune_their_own_artifacts(bert: Path, tmp_path: Path) -> None:
    bert.write_text("\n".join(line for line in bert.read_text().splitlines() if not line.startswith("artifacts")))
    with up(tmp_path / "one", bert, "--port", "0") as one, up(tmp_path / "two", bert, "--port", "0") as two:
        assert one.state["artifacts"] != two.state["artifacts"]
        stores = [Path(running.state["artifacts"]) for running in (one, two)]
        for store in stores:
            for file in store.iterdir():
                os.utime(file, (0, 0))
        kept = sorted(path.name for path in stores[1].iterdir())
        with one.client() as client:
            client.vfms.remove("listed")
            assert client.vfms.prune()
        assert sorted(path.name for path in stores[1].iterdir()) == kept != []
