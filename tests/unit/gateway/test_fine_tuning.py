"""Fine-tuning through the API: what is taken, what is refused and how, and what becomes of a job; a hand plays the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import StoreUnavailable
from fmplex_broker.packages.archive import pack
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.tune_records import TuneError
from fmplex_broker.specs.tuning import checkpoint_id
from fmplex_broker.streams import connection
from tests.support.tunes import Hand, at, checkpoint
from tests.support.tuning_data import CHATS, LABELLED, jsonl
from tests.support.waiting import until
from tests.unit.gateway.site import BACKBONE, Site, site, spec

JOBS = "/v1/fine_tuning/jobs"
NO_FILE = "file-0123456789abcdef01234567"
NO_JOB = "ftjob-0123456789abcdef01234567"
SIMILARITY = {"head": {"kind": "similarity"}}
TALKS = {"kind": "generation", "system": "Be brief.", "chat_template": "{{ messages }}", "max_tokens": 9}
PAIRS = jsonl(*({"text": "a", "text_pair": f"b{n}", "label": (n // 2 + n) % 2} for n in range(12)))


class Office:
    """A gateway whose backbone has a worker that tunes, and what tests do with it."""

    def __init__(self, place: Site, hand: Hand, worker: str = "") -> None:
        self.place = place
        self.hand = hand
        self.worker = worker

    async def upload(
        self, content: bytes, purpose: str = "fine-tune", key: str | None = None, name: str = "a.jsonl"
    ) -> str:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = await self.place.http.post(
            f"/v1/files?purpose={purpose}&filename={name}", content=content, headers=headers
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def post(self, content: bytes = jsonl(*LABELLED), key: str | None = None, **more: Any) -> Any:
        """Order a job over these lines; `more`: what else is in the body."""
        body = {"model": BACKBONE, "training_file": await self.upload(content, key=key), **more}
        return await self.place.ask("POST", JOBS, key, body)

    async def order(self, content: bytes = jsonl(*LABELLED), **more: Any) -> str:
        answer = await self.post(content, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self.place.ask("GET", f"{JOBS}/{path}")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def reaches(self, job: str, *statuses: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            shown = await self.get(job)
            return shown if shown["status"] in statuses else None

        shown: dict[str, Any] = await until(look, f"the job is {' or '.join(statuses)}", 30)
        return shown


@asynccontextmanager
async def opened(folder: Path, **gateway: Any) -> AsyncIterator[Office]:
    async with site(folder, gateway) as place:
        await place.serve(
            spec("alike", **SIMILARITY), spec("features", head={"kind": "features"}),
            spec("talks", head=TALKS), spec("mails", **SIMILARITY, input={"template": "mail: {text}"}),
            spec("two", heads={"a": {"kind": "features"}, "b": {"kind": "features"}}),
        )  # fmt: skip
        consumer = await place.worker("w2")
        hand = Hand(place.queue.redis, place.queue.scripts, BACKBONE, consumer.worker)
        assert await hand.take() is None
        yield Office(place, hand, consumer.worker)


@pytest.fixture
async def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    async with opened(tmp_path) as office:
        yield office


def error_of(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# --- the life of a job ------------------------------------------------------------------------------------------------


async def test_a_job_from_its_file_to_its_end(office: Office) -> None:
    hyperparameters = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    job = await office.order(
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}, suffix="mine", seed=7,
        metadata={"who": "me"}, fit={"lora": {"r": 4}}, weight=2,
    )  # fmt: skip
    shown = await office.reaches(job, "queued")
    assert (shown["object"], shown["model"], shown["seed"], shown["metadata"], shown["examples"]) == (
        "fine_tuning.job", BACKBONE, 7, {"who": "me"}, 12,
    )  # fmt: skip
    assert (shown["hyperparameters"], shown["error"], shown["fine_tuned_model"]) == (hyperparameters, None, None)
    held = await office.hand.took()
    ordered = held.record.spec
    assert (ordered.fit.head, ordered.publish.how, ordered.publish.vfm, ordered.weight) == (
        "classification",
        "as",
        "mine",
        2,
    )
    assert ordered.fit.lora is not None
    held.say("Step 10/100: training loss 0.5", data={"step": 10, "train_loss": 0.5})
    await office.hand.save(held, at(10, loss=0.5), checkpoint(10, best=True))
    shown = await office.reaches(job, "running")
    assert (shown["progress"]["step"], shown["progress"]["loss"]) == (10, 0.5)
    await office.hand.finish(held, "succeeded", progress=at(100), published=("mine", "v1"))
    shown = await office.reaches(job, "succeeded")
    assert (shown["fine_tuned_model"], shown["version"], shown["trained_tokens"]) == ("mine", "v1", 1000)
    assert shown["finished_at"] is not None
    (one,) = (await office.get(f"{job}/checkpoints"))["data"]
    assert (one["id"], one["fine_tuned_model_checkpoint"]) == (checkpoint_id(job, 10), f"mine@{checkpoint_id(job, 10)}")
    events = (await office.get(f"{job}/events?limit=100"))["data"]
    assert {"step": 10, "train_loss": 0.5} in [event["data"] for event in events if event["type"] == "metrics"]
    assert [e["id"] for e in (await office.get(f"{job}/events?limit=100&order=asc"))["data"]] == [
        e["id"] for e in events
    ][::-1]


async def test_pages_of_events_are_exact(office: Office) -> None:
    job = await office.order()
    await office.reaches(job, "queued")
    held = await office.hand.took()
    for n in range(9):
        held.say(f"number {n}")
    await office.hand.save(held)
    seen, after = [], ""
    while True:
        page = await office.get(f"{job}/events?limit=4&after={after}")
        seen += [event["message"] for event in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen[:9] == [f"number {n}" for n in reversed(range(9))]
    assert len(seen) == len(set(seen))


async def test_pause_resume_and_cancel(office: Office) -> None:
    job = await office.order()
    await office.reaches(job, "queued")

    async def ask(what: str) -> Any:
        return await office.place.ask("POST", f"{JOBS}/{job}/{what}")

    assert error_of(await ask("resume")) == (409, "conflict", "status")
    assert (await ask("pause")).json()["status"] == "paused"
    assert await office.hand.take() is None, "what is paused is not taken"
    assert (await ask("resume")).json()["status"] == "queued"
    assert (await ask("cancel")).json()["status"] == "cancelled"
    assert (await ask("cancel")).json()["status"] == "cancelled", "twice"
    assert error_of(await ask("pause")) == (409, "conflict", "status")
    assert error_of(await ask("resume")) == (409, "conflict", "status")


async def test_jobs_are_listed_page_by_page(office: Office) -> None:
    made = [await office.order() for _ in range(3)]
    page = (await office.place.ask("GET", f"{JOBS}?limit=2")).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (made[:0:-1], True)
    rest = (await office.place.ask("GET", f"{JOBS}?limit=2&after={page['last_id']}")).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[:1], False)


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "fit", "what"),
    [
        ([*LABELLED, {"text": "x"}], {}, "1 bad line(s)\nline 13: key 'label' is missing"),
        (["{"] * 14, {}, "(and 4 more)"),
        (LABELLED[:3], {}, "too few examples"),
        (LABELLED, {"head": "regression"}, "key 'value' is missing"),
        ([{"text": "a", "label": "x"}] * 9, {"shuffle": True}, "only 1 label(s)"),
        ([*CHATS, {"messages": CHATS[0]["messages"][:1]}], {}, "line 7: "),
        ([*CHATS, {"messages": CHATS[0]["messages"][::-1]}], {}, "line 7: nothing to learn"),
        (["[1, 2"], {}, "begins like a JSON array"),
        ([{"messages": "a\0b"}, "\0"], {}, "binary"),
    ],
)
async def test_a_bad_file_fails_the_job_before_a_worker_has_it(
    office: Office, lines: list[Any], fit: dict[str, Any], what: str
) -> None:
    shown = await office.reaches(await office.order(jsonl(*lines), fit=fit), "queued", "failed")
    error = shown["error"]
    assert (shown["status"], error["code"], error["param"]) == ("failed", "invalid_training_file", "training_file")
    assert "a.jsonl" in error["message"]
    assert what in error["message"]
    assert await office.hand.take() is None


async def test_a_bad_validation_file_is_named(office: Office) -> None:
    validation = await office.upload(jsonl({"text": "x"}))
    shown = await office.reaches(await office.order(validation_file=validation), "queued", "failed")
    assert (shown["error"]["code"], shown["error"]["param"]) == ("invalid_validation_file", "validation_file")


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
async def test_tables_and_arrays_are_taken(office: Office, name: str) -> None:
    table = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in LABELLED)
    content = table.encode() if name == "a.csv" else b"[" + b",".join(jsonl(row) for row in LABELLED) + b"]"
    file = await office.upload(content, name=name)
    answer = await office.place.ask("POST", JOBS, body={"model": BACKBONE, "training_file": file})
    assert (await office.reaches(answer.json()["id"], "queued", "failed"))["examples"] == 12


async def test_chats_are_for_generation(office: Office) -> None:
    job = await office.order(jsonl(*CHATS))
    await office.reaches(job, "queued")
    assert (await office.hand.took()).record.spec.fit.head == "generation"


async def test_a_store_that_is_away_is_waited_for(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    store = office.place.app.state.files.store
    opening, away = type(store).open, [True]

    def opened(self: Any, name: str) -> Any:
        if away:
            raise StoreUnavailable("it is away")
        return opening(self, name)

    monkeypatch.setattr("fmplex_gateway.fine_tuning.checker._EVERY_S", 0.05)
    monkeypatch.setattr(type(store), "open", opened)
    answer = await office.post(fit={"head": "classification"})
    job = answer.json()["id"]
    assert (await office.get(job))["status"] == "validating_files"
    away.clear()
    await office.reaches(job, "queued")


async def test_a_file_that_is_deleted_meanwhile_is_named(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = office.place.app.state.checker
    await checker.close()
    job = await office.order()
    file = (await office.get(job))["training_file"]
    assert (await office.place.ask("DELETE", f"/v1/files/{file}")).status_code == 200
    tunes = office.place.app.state.tunes
    (record,) = await tunes.take_unchecked(1)
    await checker._check(record)
    error = (await office.reaches(job, "failed"))["error"]
    assert (error["code"], error["param"]) == ("unknown_file", "training_file")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"training_file": NO_FILE}, 404, "unknown_file", "training_file"),
        ({"training_file": "no file"}, 404, "unknown_file", "training_file"),
        ({"validation_file": NO_FILE}, 404, "unknown_file", "validation_file"),
        ({"training_file": None}, 400, "invalid_value", "training_file"),
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"model": "alike@0123456789abcdef-0123456789ab"}, 400, "invalid_value", "model"),
        ({"model": f"alike@{checkpoint_id(NO_JOB, 3)}"}, 404, "unknown_tune", "model"),
        ({"model": f"{BACKBONE}@v1"}, 400, "invalid_value", "model"),
        ({"model": "nobody@v1"}, 404, "model_not_found", "model"),
        ({"model": "features"}, 400, "invalid_value", "model"),
        ({"model": "two"}, 400, "invalid_value", "model"),
        ({"model": ""}, 400, "invalid_value", "model"),
        ({"method": {"type": "dpo"}}, 400, "invalid_value", "method.type"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, 400, "invalid_value", "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "invalid_value", "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": "many"}}, 400, "invalid_value", "hyperparameters.batch_size"),
        ({"hyperparameters": {"batch_size": 1.5}}, 400, "invalid_value", "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, 400, "invalid_value", "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"n_epoch": 1}}, 400, "invalid_value", "hyperparameters.n_epoch"),
        ({"suffix": "no name"}, 400, "invalid_value", "suffix"),
        ({"suffix": "alike"}, 409, "conflict", "suffix"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "invalid_value", "metadata"),
        ({"integrations": [{"type": "wandb"}]}, 400, "invalid_value", "integrations"),
        ({"fit": {"head": "features"}}, 400, "invalid_value", "fit.head"),
        ({"fit": {"head": "poetry"}}, 400, "invalid_value", "fit.head"),
        ({"fit": {"max_tokens": 65}}, 400, "invalid_value", "fit.max_tokens"),
        ({"fit": {"input": {"max_tokens": 65}}}, 400, "invalid_value", "fit.input.max_tokens"),
        ({"fit": {"head": "embedding"}}, 400, "invalid_value", "fit.lora"),
        ({"fit": {"lora": {"r": 0}}}, 400, "invalid_value", "fit.lora.r"),
        ({"fit": {"lora": {"alpha": 1e31}}}, 400, "invalid_value", "fit.lora.alpha"),
        ({"fit": {"learning_rate": 1e38}}, 400, "invalid_value", "fit.learning_rate"),
        ({"fit": {"lora": {}, "ia3": {}}}, 400, "invalid_value", "fit"),
        ({"fit": {"head": "similarity", "lora": {}, "hidden": [8]}}, 400, "invalid_value", "fit.hidden"),
        ({"fit": {"system": "Be brief."}}, 400, "invalid_value", "fit.system"),
        ({"fit": {"head": "generation", "pooling": "cls"}}, 400, "invalid_value", "fit.pooling"),
        ({"fit": {"head": "generation", "input": {"template": "x {text}"}}}, 400, "invalid_value", "fit.input"),
        ({"model": "alike", "fit": {"head": "regression"}}, 400, "invalid_value", "fit.head"),
        ({"publish": {"how": "as", "vfm": "alike"}}, 409, "conflict", "publish.vfm"),
        ({"publish": {"how": "update", "vfm": "nobody"}}, 404, "model_not_found", "publish.vfm"),
        ({"publish": {"how": "update", "vfm": "alike", "generation": 99}}, 409, "conflict", "publish.vfm"),
        ({"publish": {"how": "as", "vfm": "new"}, "suffix": "other"}, 400, "invalid_value", "suffix"),
        ({"publish": {"how": "as"}}, 400, "invalid_value", "publish"),
        ({"color": "red"}, 400, "invalid_value", "color"),
        ({"weight": 0}, 400, "invalid_value", "weight"),
    ],
)  # fmt: skip
async def test_what_is_refused_at_once(office: Office, body: Any, status: int, code: str, param: str) -> None:
    answer = await office.post(**body)
    assert error_of(answer) == (status, code, param), answer.text
    if param == "method.type":
        assert "supervised only" in answer.text
    assert "Value error" not in answer.text
    assert (await office.place.ask("GET", JOBS)).json()["data"] == []


async def test_an_encoder_generates_nothing(office: Office) -> None:
    encoder = BackboneInfo(name=BACKBONE, model="m", hidden=4, max_tokens=64)
    await office.place.queue.registry.register_backbone(encoder)
    for content, fit in ((jsonl(*CHATS), {}), (jsonl(*LABELLED), {"head": "generation"})):
        answer = await office.post(content, fit=fit)
        assert error_of(answer) == (400, "invalid_value", "model")
        assert "generates no text" in answer.text
    assert (await office.post()).status_code == 200


async def test_files_of_another_purpose_or_without_bytes(office: Office) -> None:
    for content, purpose, words in ((jsonl(*LABELLED), "batch", "has purpose 'batch'"), (b"", "fine-tune", "is empty")):
        file = await office.upload(content, purpose)
        answer = await office.place.ask("POST", JOBS, body={"model": BACKBONE, "training_file": file})
        assert error_of(answer) == (400, "invalid_value", "training_file")
        assert words in answer.text


async def test_a_file_whose_bytes_are_lost(office: Office) -> None:
    file = await office.upload(jsonl(*LABELLED))
    office.place.app.state.files.store.delete(file)
    answer = await office.place.ask("POST", JOBS, body={"model": BACKBONE, "training_file": file})
    assert error_of(answer) == (404, "unknown_file", "training_file")


async def test_no_worker_that_tunes(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await place.worker("w1")
        answer = await Office(place, None).post()  # type: ignore[arg-type]
        assert error_of(answer) == (409, "conflict", "model")
        assert "[worker.tuning]" in answer.text


@pytest.mark.parametrize("what", ["", "/cancel", "/pause", "/resume", "/events", "/checkpoints"])
async def test_a_job_that_is_not_there(office: Office, what: str) -> None:
    method = "GET" if what in ("", "/events", "/checkpoints") else "POST"
    answer = await office.place.ask(method, f"{JOBS}/{NO_JOB}{what}")
    assert error_of(answer)[:2] == (404, "unknown_tune")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=me"])
async def test_wrong_pages(office: Office, query: str) -> None:
    job = await office.order()
    for path in (JOBS, f"{JOBS}/{job}/events", f"{JOBS}/{job}/checkpoints"):
        assert error_of(await office.place.ask("GET", f"{path}?{query}")) == (
            400,
            "invalid_value",
            query.partition("=")[0],
        )


# --- what training goes on from, and who may --------------------------------------------------------------------------


async def test_a_vfm_is_gone_on_with_and_becomes_its_next_version(office: Office) -> None:
    now = await office.place.queue.registry.show("alike")
    await office.reaches(await office.order(PAIRS, model="alike"), "queued")
    ordered = (await office.hand.took()).record.spec
    assert ordered.base is not None
    assert (ordered.base.vfm, ordered.base.version, ordered.base.checkpoint) == ("alike", now.version, None)
    assert (ordered.publish.how, ordered.publish.vfm, ordered.publish.generation) == (
        "update",
        "alike",
        now.generation,
    )
    assert ordered.fit.head == "similarity"


async def test_a_checkpoint_is_gone_on_with_as_another_vfm(office: Office) -> None:
    await office.reaches(first := await office.order(PAIRS, model="alike"), "queued")
    held = await office.hand.took()
    await office.hand.finish(held, "succeeded", checkpoint=checkpoint(5, best=True), published=("alike", "v2"))
    at_step = checkpoint_id(first, 5)
    await office.reaches(await office.order(PAIRS, model=f"alike@{at_step}", suffix="next"), "queued")
    ordered = (await office.hand.took()).record.spec
    assert ordered.base is not None
    assert (ordered.base.checkpoint, ordered.publish.how, ordered.publish.vfm) == (at_step, "as", "next")
    gone = await office.post(model=f"alike@{checkpoint_id(first, 6)}")
    assert error_of(gone) == (400, "invalid_value", "model")


async def test_a_checkpoint_is_deployed_by_its_id(office: Office) -> None:
    await office.reaches(job := await office.order(), "queued")
    held = await office.hand.took()
    await office.hand.save(held, at(5), checkpoint(5, best=True, name="s5"))
    store, queue = office.place.app.state.checkpoints, office.place.queue
    store.put(job, "s5", "package", pack(bare(spec("whatever", head={"kind": "features"}))))
    voter = office.place.app.state.queue.registry
    one = checkpoint_id(job, 5)

    async def deployed(path: str, **body: Any) -> Any:
        asked = asyncio.create_task(office.place.ask("POST", path, body={"checkpoint": one, **body}))
        await until(lambda: offered(queue), "it is on offer")
        ((name, version),) = await offered(queue)
        assert await voter.vote(BACKBONE, name, version, office.worker) == "serving"
        return (await asked).json()

    made = await deployed("/v1/vfms", name="tried")
    assert (made["name"], made["status"], made["head"]["kind"]) == ("tried", "serving", "features")
    assert error_of(await office.place.ask("POST", "/v1/vfms", body={"checkpoint": one})) == (
        422,
        "invalid_input",
        "name",
    )
    for wrong, status, code in (
        ("latest", 422, "invalid_input"), (checkpoint_id(NO_JOB, 5), 404, "unknown_tune"),
        (checkpoint_id(job, 6), 404, "unknown_file"),
    ):  # fmt: skip
        answer = await office.place.ask("POST", "/v1/vfms", body={"checkpoint": wrong, "name": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    nothing = await office.place.ask("POST", "/v1/vfms", body={})
    assert nothing.status_code == 422
    store.delete(job, "s5")
    lost = await office.place.ask("POST", "/v1/vfms/alike/versions", body={"checkpoint": one})
    assert (lost.status_code, lost.json()["error"]["param"]) == (404, "checkpoint")


async def offered(queue: Any) -> list[tuple[str, str]]:
    """What is on offer: names and versions."""
    names = await queue.registry.offers(BACKBONE)
    states = await queue.registry.states(BACKBONE, names)
    return [(state.name, state.candidate[0]) for state in states if state is not None and state.candidate]


async def test_a_vfm_is_gone_on_with_as_it_was_trained(office: Office) -> None:
    first = await office.order(jsonl(*CHATS), model="talks", fit={"max_tokens": 5})
    await office.reaches(first, "queued")
    fit = (await office.hand.took()).record.spec.fit
    assert (fit.head, fit.system, fit.chat_template, fit.max_tokens) == ("generation", "Be brief.", "{{ messages }}", 5)
    await office.reaches(await office.order(PAIRS, model="mails", fit={"pooling": "cls"}), "queued")
    fit = (await office.hand.took(first)).record.spec.fit
    assert (fit.head, fit.input.template, fit.pooling) == ("similarity", "mail: {text}", "cls")


async def test_without_a_name_a_vfm_is_called_after_its_job(office: Office) -> None:
    await office.reaches(job := await office.order(), "queued")
    assert (await office.hand.took()).record.spec.publish.vfm == f"{BACKBONE}-{job[-8:]}"


async def test_why_a_worker_failed_it_is_shown(office: Office) -> None:
    await office.reaches(job := await office.order(), "queued")
    held = await office.hand.took()
    await office.hand.finish(
        held, "failed", error=TuneError(code="too_large", message="more than tuning.bytes", param="fit")
    )
    shown = await office.reaches(job, "failed")
    assert shown["error"] == {"code": "too_large", "message": "more than tuning.bytes", "param": "fit"}


async def test_jobs_belong_to_keys_which_may_name_their_own_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    keys = [
        {"name": name, "key": f"key-of-{name}", "scopes": ["deploy"], "models": [f"{name}-*", "alike"]}
        for name in ("anna", "bert")
    ]
    async with opened(tmp_path, keys=keys) as office:
        mine = await office.post(key="key-of-anna", suffix="anna-new")
        assert mine.status_code == 200, mine.text
        job, ask = mine.json()["id"], office.place.ask
        assert (await ask("GET", f"{JOBS}/{job}", "key-of-anna")).status_code == 200
        assert (await ask("GET", f"{JOBS}/{job}", "key-of-bert")).status_code == 404
        assert (await ask("POST", f"{JOBS}/{job}/cancel", "key-of-bert")).status_code == 404
        assert (await ask("GET", JOBS, "key-of-bert")).json()["data"] == []
        assert error_of(await office.post(key="key-of-anna", suffix="bert-new")) == (403, "forbidden", "suffix")
        assert error_of(await office.post(key="key-of-anna")) == (403, "forbidden", "suffix"), (
            "the name of the job itself"
        )
        assert error_of(await office.post(key="key-of-anna", model="features")) == (404, "model_not_found", "model")
        theirs = {"model": BACKBONE, "training_file": mine.json()["training_file"], "suffix": "bert-x"}
        assert error_of(await ask("POST", JOBS, "key-of-bert", theirs)) == (404, "unknown_file", "training_file")
