"""Whatever the server answers, in a pipeline too, every call to the broker ends with an error of ours that says what to do."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

import fmplex_broker.streams
from fmplex_broker.errors import BrokerFault, BrokerMisconfigured, BrokerUnavailable, FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.batches import Order, new_batch_id
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.files import FileRecord, new_file_id
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.tune_records import TuneRecord
from fmplex_broker.specs.tuning import Publish, TuneSpec, new_tune_id
from fmplex_broker.specs.vfm import VfmChange, VfmSpec
from fmplex_broker.streams.batch_list import BatchList, Lost, Progress
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.fleet import publish, read_fleet
from fmplex_broker.streams.payloads import fetch_payloads
from fmplex_broker.streams.producer import Producer, StoredReply
from fmplex_broker.streams.queue_client import Pending, QueueClient, cancel_all
from fmplex_broker.streams.refusals import as_ours
from fmplex_broker.streams.registry import Registry
from fmplex_broker.streams.tracing import Tracer
from fmplex_broker.streams.tune_owner import HeldTune, TuneLost, TuneOwner
from fmplex_broker.streams.tune_records import read_tunes, tidy
from fmplex_broker.streams.tunes import Tunes
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_broker.wire.passes import PassPart, PassRecord
from fmplex_broker.wire.stats import WorkerStats
from tests.contract.harness import BACKBONE, Bench, answer, job
from tests.support.hosting import HOSTED
from tests.support.loops import on_both_loops
from tests.support.troubled_proxy import TroubledProxy
from tests.support.tunes import HERE

PASSING = [
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "UNKILLABLE Sorry the script already executed write commands against the dataset.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "CLUSTERDOWN Hash slot not served",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "ERR max number of clients reached",
    "ERR max number of clients + cluster connections reached",
    "NEVERHEARDOF before",
    "no upstream host",
]
LASTING = [
    "NOPERM User fmplex has no permissions to run the 'evalsha' command",
    "NOPERM No permissions to access a key",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "DENIED Redis is running in protected mode because no password is set for the default user.",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "ERR Script attempted to access a non local key in a cluster node",
    "ERR ACL failure in script: User poor has no permissions to run the 'xadd' command",
    "ERR unknown command 'EVALSHA', with args beginning with: ",
    "ERR invalid DB index",
    "ERR DB index is out of range",
    "ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'",
]
OURS = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "NOGROUP No such key 'q' or consumer group 'w'",
    "BUSYGROUP Consumer Group name already exists",
    "ERR user_script:7: attempt to perform arithmetic on a nil value script: 5d41402a, on @user_script:7.",
    "ERR value is not an integer or out of range",
]
KINDS = dict.fromkeys(PASSING, BrokerUnavailable) | dict.fromkeys(LASTING, BrokerMisconfigured)
KINDS |= dict.fromkeys(OURS, BrokerFault)  # type: ignore[dict-item]

SPEC = VfmSpec(name="a", backbone=BACKBONE, head=Embedding())
HELD = Claimed(Flow("a", INTERACTIVE), "1-1", "j1", "in", "v", 1, 10**13, b"", 1)
STATS = WorkerStats("w1", BACKBONE, "cpu", 1, "host")
RAN = PassRecord("w1", BACKBONE, 1, "interactive", 1e3, 0.1, 0.1, 30, 100, 2, [PassPart("a", 3, 30, 0.1, 5.0, 2.0)])

FILE = FileRecord(id=new_file_id(), owner="a", bytes=1, created_at=1, expires_at=2, filename="x.jsonl", purpose="batch")
ORDER = Order(id=new_batch_id(), owner="a", endpoint="/v1/embeddings", input_file_id=FILE.id)
PUBLISH = Publish(how="as", vfm="new")
TUNE = TuneRecord(
    spec=TuneSpec(
        id=new_tune_id(), owner="a", backbone=BACKBONE, model=BACKBONE, training_file=FILE.id, publish=PUBLISH
    ),
    status="running",
    created_at=1,
)
STORED = StoredReply(BACKBONE, "j1", "j1")


class Hands:
    """One of everything that speaks to the broker, on one connection pool."""

    def __init__(self, url: str, folder: Path) -> None:
        self.redis = open_redis(url)
        scripts = Scripts(self.redis)
        self.consumer = Consumer(self.redis, scripts, BACKBONE, "w1", lease_ms=3000)
        self.producer = Producer(self.redis, scripts, BACKBONE, "in")
        self.registry = Registry(self.redis, scripts)
        self.deployer = Deployer(self.registry, ArtifactStore(str(folder)))
        self.tracer = Tracer(self.redis, [BACKBONE])
        self.queue = QueueClient(self.redis, scripts=scripts)
        self.files = FileList(self.redis)
        self.batches = BatchList(self.redis, scripts)
        self.tunes = Tunes(self.redis, scripts)
        self.owner = TuneOwner(self.redis, scripts, BACKBONE, "w1")
        self.channel = self.queue._channel(BACKBONE)

    def pending(self) -> Pending:
        future = self.channel.inbox.expect("j1")
        return Pending("j1", HELD.flow, "j1", self.channel, None, future, 0.0)

    async def late(self) -> Any:
        """Ask for a result whose deadline has passed long ago."""
        pending = self.pending()
        pending.until -= 1000.0
        return await pending.result()


Call = Callable[[Hands], Awaitable[Any]]
CALLS: dict[str, Call] = {
    "Consumer.join": lambda h: h.consumer.join(HOSTED),
    "Consumer.beat": lambda h: h.consumer.beat(),
    "Consumer.reap": lambda h: h.consumer.reap(0, max_attempts=3),
    "Consumer.leave": lambda h: h.consumer.leave(),
    "Consumer.claim": lambda h: h.consumer.claim({INTERACTIVE: 1}),
    "Consumer.announce_resident": lambda h: h.consumer.announce_resident(["a"], ["b"]),
    "Consumer.mark": lambda h: h.consumer.mark([HELD]),
    "Consumer.loading": lambda h: h.consumer.loading("a", "v1", "begin"),
    "Consumer.settle": lambda h: h.consumer.settle([(HELD, answer())]),
    "Consumer.send_chunks": lambda h: h.consumer.send_chunks([(HELD, b"chunk")]),
    "Consumer.release": lambda h: h.consumer.release([HELD]),
    "Consumer.recover": lambda h: h.consumer.recover([HELD]),
    "Consumer.listen": lambda h: h.consumer.listen(),
    "Producer.enqueue": lambda h: h.producer.enqueue([job()]),
    "Producer.cancel": lambda h: h.producer.cancel([(HELD.flow, "j1", "j1")]),
    "Producer.results": lambda h: h.producer.results(["j1"]),
    "Catalog.backbones": lambda h: h.registry.backbones(),
    "Catalog.find": lambda h: h.registry.find("a"),
    "Catalog.show": lambda h: h.registry.show("a"),
    "Catalog.states": lambda h: h.registry.states(BACKBONE, ["a"]),
    "Catalog.hosted": lambda h: h.registry.hosted(BACKBONE),
    "Catalog.deployed": lambda h: h.registry.deployed(BACKBONE, ["a"]),
    "Catalog.offers": lambda h: h.registry.offers(BACKBONE),
    "Catalog.page": lambda h: h.registry.page(),
    "Catalog.every": lambda h: h.registry.every(),
    "Catalog.artifacts": lambda h: h.registry.artifacts(),
    "Catalog.live_workers": lambda h: h.registry.live_workers(BACKBONE),
    "Registry.register_backbone": lambda h: h.registry.register_backbone(
        BackboneInfo(name=BACKBONE, model="m", hidden=4, max_tokens=64)
    ),
    "Registry.deploy": lambda h: h.registry.deploy(SPEC, "artifact"),
    "Registry.change": lambda h: h.registry.change("a", VfmChange(weight=2.0)),
    "Registry.offer": lambda h: h.registry.offer("a", SPEC, "artifact"),
    "Registry.remove": lambda h: h.registry.remove("a"),
    "Registry.vote": lambda h: h.registry.vote(BACKBONE, "a", "v1", "w1"),
    "Deployer.deploy": lambda h: h.deployer.deploy(bare(SPEC)),
    "Deployer.update": lambda h: h.deployer.update("a", bare(SPEC)),
    "Deployer.roll_back": lambda h: h.deployer.roll_back("a"),
    "Deployer.prune": lambda h: h.deployer.prune(),
    "Tracer.now_ms": lambda h: h.tracer.now_ms(),
    "Tracer.read": lambda h: h.tracer.read(),
    "publish": lambda h: publish(h.redis, STATS, [RAN]),
    "read_fleet": lambda h: read_fleet(h.redis, h.registry),
    "QueueClient.vfm": lambda h: h.queue.vfm("a"),
    "QueueClient.submit": lambda h: h.queue.submit("a", ["text"]),
    "fetch_payloads": lambda h: fetch_payloads(h.redis, h.producer.keys, [HELD]),
    "BackboneChannel.enqueue": lambda h: h.channel.enqueue([job()]),
    "Inbox.look_up": lambda h: h.channel.inbox.look_up(["j1"]),
    "Pending.cancel": lambda h: h.pending().cancel(),
    "cancel_all": lambda h: cancel_all([h.pending()]),
    "VfmCache.get": lambda h: h.queue._vfms.get("a"),
    "FileList.add": lambda h: h.files.add(FILE),
    "FileList.find": lambda h: h.files.find(FILE.id, "a"),
    "FileList.page": lambda h: h.files.page("a"),
    "FileList.remove": lambda h: h.files.remove(FILE.id, "a"),
    "FileList.hold": lambda h: h.files.hold(FILE.id, "b"),
    "FileList.release": lambda h: h.files.release(FILE.id, "b"),
    "FileList.held": lambda h: h.files.held(FILE.id),
    "FileList.prune": lambda h: h.files.prune(1e12),
    "FileList.going": lambda h: h.files.going(),
    "FileList.gone": lambda h: h.files.gone(FILE.id),
    "FileList.known": lambda h: h.files.known([FILE.id]),
    "FileList.over": lambda h: h.files.over([ORDER.id]),
    "Producer.forget": lambda h: h.producer.forget([STORED]),
    "QueueClient.forget_results": lambda h: h.queue.forget_results([STORED]),
    "BatchList.create": lambda h: h.batches.create(ORDER),
    "BatchList.find": lambda h: h.batches.find(ORDER.id, "a"),
    "BatchList.page": lambda h: h.batches.page("a"),
    "BatchList.cancel": lambda h: h.batches.cancel(ORDER.id, "a"),
    "BatchList.take": lambda h: h.batches.take(1),
    "BatchList.renew": lambda h: h.batches.renew({ORDER.id: "h"}),
    "BatchList.record": lambda h: h.batches.record(ORDER.id, "h", Progress(b"", 0, 0, []), 0, ["p"]),
    "BatchList.move": lambda h: h.batches.move(ORDER.id, "h", "in_progress"),
    "BatchList.give_back": lambda h: h.batches.give_back({ORDER.id: "h"}),
    "BatchList.count_open": lambda h: h.batches.count_open(),
    "BatchList.count_waiting": lambda h: h.batches.count_waiting(0.0),
    "Catalog.tuning": lambda h: h.registry.tuning([TUNE.spec.id]),
    "Tunes.add": lambda h: h.tunes.add(TUNE.spec),
    "Tunes.find": lambda h: h.tunes.find(TUNE.spec.id, "a"),
    "Tunes.page": lambda h: h.tunes.page("a"),
    "Tunes.ask": lambda h: h.tunes.ask(TUNE.spec.id, "a", "cancel"),
    "Tunes.events": lambda h: h.tunes.events(TUNE.spec.id, "a"),
    "Tunes.checkpoints": lambda h: h.tunes.checkpoints(TUNE.spec.id, "a"),
    "Tunes.take_unchecked": lambda h: h.tunes.take_unchecked(1),
    "Tunes.checked": lambda h: h.tunes.checked(TUNE),
    "TuneOwner.claim": lambda h: h.owner.claim(HERE, idle=True, max_attempts=3),
    "TuneOwner.save": lambda h: h.owner.save(HeldTune(TUNE, 1, ())),
    "TuneOwner.release": lambda h: h.owner.release(HeldTune(TUNE, 1, ())),
    "TuneOwner.finish": lambda h: h.owner.finish(HeldTune(TUNE, 1, ()), "cancelled"),
    "read_tunes": lambda h: read_tunes(h.redis, [(TUNE.spec.id, BACKBONE)]),
    "tidy": lambda h: tidy(h.redis, BACKBONE),
    "Scripts.__call__": lambda h: h.queue.scripts("beat", "{b}:vfms", ["w1", 3000]),
}
# What asks the broker nothing by itself, or whose failure at the end of things tells nobody anything.
SILENT = {"BackboneChannel.close", "Inbox.close", "QueueClient.close", "Pending.result", "Pending.reply", "Pending.stream",
          "StreamBuffer.next", "gather_replies", "broker_errors", "send_all"}  # fmt: skip


def asynchronous() -> set[str]:
    """All that is public and asynchronous in the package."""
    found = {"Scripts.__call__"}
    for module in pkgutil.iter_modules(fmplex_broker.streams.__path__, "fmplex_broker.streams."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module.name:
                continue
            methods = vars(thing).items() if inspect.isclass(thing) else ()
            found |= {f"{name}.{m}" for m, f in methods if not m.startswith("_") and _waits(f)}
            found |= {name} if _waits(thing) else set()
    return found


def _waits(thing: Any) -> bool:
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(thing)


def test_no_call_is_missing_here() -> None:
    assert asynchronous() == CALLS.keys() | SILENT


@pytest.fixture
async def refusing() -> AsyncIterator[TroubledProxy]:
    async with TroubledProxy() as server:
        yield server


@pytest.mark.parametrize("line", KINDS, ids=lambda line: line[:24])
async def test_every_call_ends_with_an_error_of_ours(refusing: TroubledProxy, tmp_path: Path, line: str) -> None:
    refusing.refuse(line)
    hands = Hands(refusing.url, tmp_path)
    for name, call in CALLS.items():
        with pytest.raises(FmplexError) as caught:
            await call(hands)
        assert type(caught.value) is KINDS[line], f"{name}: {caught.value!r}"
        words = line.partition(" ")[2] if line.startswith("OOM") else line
        assert line.startswith("OOM") or words[:40] in caught.value.message, f"{name} does not say {line}"
        assert "pipeline" not in caught.value.message, f"{name} speaks of pipelines"
        assert len(caught.value.message) < 600
    await hands.queue.close()


@pytest.mark.parametrize("trouble", ["close", "reset"])
async def test_connections_that_are_accepted_and_closed(tmp_path: Path, trouble: Any) -> None:
    async with TroubledProxy() as server:
        server.trouble = trouble
        hands = Hands(server.url, tmp_path)
        for name, call in CALLS.items():
            with pytest.raises(FmplexError) as caught:
                await call(hands)
            assert type(caught.value) is BrokerUnavailable, name
        await hands.queue.close()


async def test_a_server_that_does_not_speak_redis_is_named() -> None:
    async def http(reader: Any, writer: Any) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(http, "127.0.0.1", 0) as server:
        redis = open_redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(BrokerMisconfigured, match="does not speak the Redis protocol"):
            await Bench(redis, Scripts(redis)).enqueue(job())
        await redis.aclose()


@pytest.mark.parametrize("line", KINDS, ids=lambda line: line[:24])
@pytest.mark.parametrize("wording", ["{0}", "Command # 2 (XADD a b {{c}}) of pipeline caused error: {0}"])
def test_however_redis_py_words_it(line: str, wording: str) -> None:
    error = BaseParser.parse_error(line)
    error.args = (wording.format(error.args[0]), *error.args[1:])
    ours = as_ours(error)
    assert type(ours) is KINDS[line]
    assert "pipeline" not in ours.message


@pytest.mark.parametrize(
    "error",
    [
        OSError(9, "Bad file descriptor"),
        ConnectionResetError(104, "reset"),
        EOFError(),
        TimeoutError(),
        redis_errors.ConnectionError(),
        redis_errors.MaxConnectionsError("Too many connections"),
        redis_errors.TimeoutError("Timeout connecting to server"),
    ],
    ids=repr,
)
def test_silence_is_said_to_be_silence(error: Exception) -> None:
    ours = as_ours(error)
    assert type(ours) is BrokerUnavailable
    assert ours.message.startswith("the broker does not answer (")
    assert "()" not in ours.message


def test_long_words_of_a_server_are_cut() -> None:
    assert len(as_ours(redis_errors.ResponseError("MISCONF " + "x" * 100_000)).message) < 600


# --- on the real server ---


async def test_a_pipeline_that_is_refused_for_now(crashable: tuple[EmbeddedServer, Bench]) -> None:
    _, bench = crashable
    await bench.redis.config_set("min-replicas-to-write", 1)
    with pytest.raises(BrokerUnavailable, match="NOREPLICAS"):
        await publish(bench.redis, STATS, [RAN])
    await bench.redis.config_set("min-replicas-to-write", 0)
    assert await publish(bench.redis, STATS, [RAN]) is False


@pytest.mark.parametrize(
    "rights",
    ["-evalsha", "-eval -evalsha", "-@scripting", "-xreadgroup", "-xgroup", "-zadd", "-time", "resetkeys ~other:*"],
)
async def test_a_user_with_too_few_rights_loses_no_job(crashable: tuple[EmbeddedServer, Bench], rights: str) -> None:
    server, bench = crashable
    await bench.serve("a")
    await bench.enqueue(job(), job())
    await (await bench.worker("before")).leave()
    await bench.redis.execute_command("ACL", "SETUSER", "poor", "on", ">word", "~*", "+@all", *rights.split())
    redis = open_redis(f"redis://poor:word@127.0.0.1:{server.port}")
    poor = Bench(redis, Scripts(redis))
    consumer = Consumer(redis, poor.scripts, BACKBONE, "poor", lease_ms=60_000)

    async def work() -> None:
        await consumer.join(HOSTED)
        await consumer.claim({INTERACTIVE: 10})
        await poor.enqueue(job())

    with pytest.raises(BrokerMisconfigured, match="forbids it"):
        await work()
    await bench.redis.execute_command("ACL", "SETUSER", "poor", "+@all", "~*")
    with suppress(FmplexError):
        await consumer.join(HOSTED)
    await consumer.recover([])
    got = [held.job for _ in range(3) for held in (await consumer.claim({INTERACTIVE: 10})).jobs]
    assert len(got) == 2, "what could not be read is still there"
    await redis.aclose()


async def test_a_user_needs_neither_admin_nor_dangerous_commands(
    crashable: tuple[EmbeddedServer, Bench], tmp_path: Path
) -> None:
    """What docs/protocol.md says that the user of a fleet needs."""
    server, bench = crashable
    rights = ["~*", "+@all", "-@admin", "-@dangerous"]
    await bench.redis.execute_command("ACL", "SETUSER", "fmplex", "on", ">word", *rights)
    hands = Hands(f"redis://fmplex:word@127.0.0.1:{server.port}", tmp_path)
    mine = Bench(hands.redis, hands.queue.scripts)
    assert (await hands.consumer.join(HOSTED)).alive
    refused: dict[str, str] = {}
    await mine.serve("a")
    for name, call in CALLS.items():
        try:
            async with asyncio.timeout(1):
                await call(hands)
        except (TimeoutError, Lost, TuneLost):
            pass  # of those that wait for a worker's vote, or hold a batch or a tuning job
        except FmplexError as e:
            refused[name] = type(e).__name__
    assert {name for name, kind in refused.items() if kind.startswith("Broker")} == set(), refused
    await hands.queue.close()


@on_both_loops
async def test_a_server_that_takes_no_more_clients() -> None:
    """It accepts the connection, says so, and closes it; what is noticed first is chance."""
    with EmbeddedServer() as server:
        mine, other = open_redis(server.url), open_redis(server.url)
        await mine.config_set("maxclients", 1)
        for _ in range(30):
            with pytest.raises(BrokerUnavailable, match=r"takes no more connections|does not answer"):
                await Bench(other, Scripts(other)).enqueue(job())
        await mine.config_set("maxclients", 100)
        assert await Bench(other, Scripts(other)).enqueue(job()) == ["unknown"]
        for redis in (mine, other):
            await redis.aclose()


async def test_a_wrong_password_is_named(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    await bench.redis.execute_command("ACL", "SETUSER", "someone", "on", ">word", "~*", "+@all")
    redis = open_redis(f"redis://someone:wrong@127.0.0.1:{server.port}")
    with pytest.raises(BrokerMisconfigured, match="WRONGPASS") as caught:
        await Bench(redis, Scripts(redis)).enqueue(job())
    assert "wrong@" not in caught.value.message
    await redis.aclose()
