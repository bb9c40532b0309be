"""Fine-tuning with the `openai` package, as a program written for OpenAI would use it; a hand plays the worker."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from fmplex_broker.streams import connection
from tests.support.tuning_data import CHATS, LABELLED, jsonl
from tests.support.tuning_office import STEPS, TuningOffice, tuning_office
from tests.support.waiting import wait_until

NO_JOB = "ftjob-0123456789abcdef01234567"
PAIRS = [{"text": "a", "text_pair": f"b{n}", "label": (n // 2 + n) % 2} for n in range(12)]


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TuningOffice]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    with tuning_office(tmp_path) as office:
        yield office


@pytest.fixture
def ai(office: TuningOffice) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{office.url}/v1", api_key="anything", max_retries=0, timeout=90) as client:
        yield client


def upload(ai: openai.OpenAI, *lines: Any) -> str:
    return ai.files.create(file=("lines.jsonl", io.BytesIO(jsonl(*lines))), purpose="fine-tune").id


def checked(ai: openai.OpenAI, job: str) -> FineTuningJob:
    """The job once its files have been looked through."""

    def look() -> FineTuningJob | None:
        seen = ai.fine_tuning.jobs.retrieve(job)
        return seen if seen.status != "validating_files" else None

    found: FineTuningJob = wait_until(look, f"the files of {job} have been looked through")
    return found


def test_a_job_goes_through_its_life(ai: openai.OpenAI, office: TuningOffice) -> None:
    file, validation = upload(ai, *CHATS), upload(ai, *CHATS[:2])
    job = ai.fine_tuning.jobs.create(
        model="minilm", training_file=file, validation_file=validation, suffix="support-bot", seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        metadata={"team": "support"}, extra_body={"fit": {"lora": {"r": 8}}},
    )  # fmt: skip
    assert (job.object, job.status, job.training_file, job.seed) == ("fine_tuning.job", "validating_files", file, 3)
    assert checked(ai, job.id).status == "queued"
    held = office.take()
    assert held.record.spec.fit.head == "generation"
    office.train(held, 25, 50, best=50)
    seen = ai.fine_tuning.jobs.retrieve(job.id)
    assert (seen.status, seen.fine_tuned_model, seen.trained_tokens) == ("running", None, None)
    office.succeed(held, "support-bot")
    done = ai.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "support-bot", 10 * STEPS)
    assert done.method is not None
    assert done.method.supervised is not None
    assert done.method.supervised.hyperparameters is not None
    assert done.method.supervised.hyperparameters.n_epochs == 2
    assert (done.metadata, done.error) == ({"team": "support"}, None)
    saved = list(ai.fine_tuning.jobs.checkpoints.list(job.id))
    assert [one.step_number for one in saved] == [50, 25]
    assert saved[0].fine_tuned_model_checkpoint.startswith("support-bot@ftckpt-")
    assert [file.id for file in ai.files.list(purpose="fine-tune")] == [validation, file]


def test_events_come_page_by_page(ai: openai.OpenAI, office: TuningOffice) -> None:
    job = ai.fine_tuning.jobs.create(model="minilm", training_file=upload(ai, *LABELLED))
    checked(ai, job.id)
    office.train(office.take(), *range(1, 31))
    events = list(ai.fine_tuning.jobs.list_events(job.id, limit=7))
    told = [event.data["step"] for event in events if event.type == "metrics" and isinstance(event.data, dict)]
    assert told == list(range(30, 0, -1))
    assert len({event.id for event in events}) == len(events)


def test_pause_resume_cancel(ai: openai.OpenAI, office: TuningOffice) -> None:
    jobs = ai.fine_tuning.jobs
    job = jobs.create(model="alike", training_file=upload(ai, *PAIRS))
    checked(ai, job.id)
    assert jobs.pause(job.id).status == "paused"
    assert jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.ConflictError):
        jobs.resume(job.id)
    assert jobs.cancel(job.id).status == "cancelled"
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        jobs.pause(job.id)


def test_jobs_are_listed_page_by_page(ai: openai.OpenAI) -> None:
    file = upload(ai, *LABELLED)
    made = [ai.fine_tuning.jobs.create(model="minilm", training_file=file).id for _ in range(5)]
    assert [job.id for job in ai.fine_tuning.jobs.list(limit=2)] == made[::-1]


def test_bad_lines_are_named(ai: openai.OpenAI) -> None:
    job = ai.fine_tuning.jobs.create(model="minilm", training_file=upload(ai, *CHATS, {"messages": []}, "{"))
    done = checked(ai, job.id)
    assert done.status == "failed"
    assert done.error is not None
    assert (done.error.code, done.error.param) == ("invalid_training_file", "training_file")
    assert all(place in done.error.message for place in ("2 bad line(s)", "line 7: ", "line 8: "))


def test_what_is_refused_raises_openais_errors(ai: openai.OpenAI) -> None:
    create, file = ai.fine_tuning.jobs.create, upload(ai, *LABELLED)
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="minilm", training_file="file-0123456789abcdef01234567")
    assert unknown.value.param == "training_file"
    with pytest.raises(openai.NotFoundError) as nobody:
        create(model="nobody", training_file=file)
    assert (nobody.value.code, nobody.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="supervised only") as other:
        create(model="minilm", training_file=file, method={"type": "dpo"})
    assert other.value.param == "method.type"
    with pytest.raises(openai.ConflictError):
        create(model="minilm", training_file=file, suffix="alike")
    for ask in (ai.fine_tuning.jobs.retrieve, ai.fine_tuning.jobs.cancel, ai.fine_tuning.jobs.pause):
        with pytest.raises(openai.NotFoundError):
            ask(NO_JOB)
