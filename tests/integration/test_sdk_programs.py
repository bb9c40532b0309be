"""The SDK in the programs that people have, through a gateway and straight to the broker: servers that fork, one event loop after
the other, files with blank lines, windows larger than a queue, more texts than a call takes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmplex import AsyncClient, Client, InvalidInput, Result, TextTooLong, UnknownVfm
from fmplex.local import LocalFleet
from tests.support.hanging import within
from tests.support.outputs import difference

NewVfm = Callable[..., str]

FORKING = """
import os, sys, warnings
from fmplex import Client
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: a process with threads that forks
def say(*words):  # one write, buffered or not: a fork copies no half-written line, and processes cut none of each other's
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

client = Client(sys.argv[1])
vector = lambda text: client.embed("embed", [text])[0]
say(len(vector("before the fork")))
for child in range(2):
    if os.fork() == 0:
        say("child", len(vector(f"in child {child}")), len(list(client.map("embed", ["a", "b"]))))
        os._exit(0)
say(len(vector("while the children run")))
for child in range(2):
    os.wait()
say(len(vector("after the children")))
client.close()
"""


def test_a_client_made_before_a_fork_serves_both_processes(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKING, url], capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["384", "384", "384", "child 384 2", "child 384 2"]


def test_a_client_serves_one_event_loop_after_the_other(url: str) -> None:
    client = AsyncClient(url)

    async def use() -> list[int]:
        handle = await client.enqueue("embed", "a job")
        lengths = [len((await client.infer("embed", f"text {i}")).output["embedding"]) for i in range(40)]
        return [*lengths, len((await handle.result(30)).output["embedding"])]

    with within(120):
        for _ in range(3):
            assert asyncio.run(use()) == [384] * 41
        asyncio.run(client.close())


async def test_a_job_of_another_loop_says_so(url: str) -> None:
    async with AsyncClient(url) as client:
        handle = await client.enqueue("embed", "a job")

        def elsewhere() -> None:
            asyncio.run(handle.result(30))

        with pytest.raises(InvalidInput, match="the job belongs to another event loop"):
            await asyncio.to_thread(elsewhere)
        assert (await handle.result(30)).output


def test_a_file_with_blank_lines_and_a_long_one(url: str, tmp_path: Path) -> None:
    lines = [f"line {i}\n" for i in range(100)]
    lines[3], lines[70], lines[99] = "\n", "word " * 300 + "\n", "  \n"
    path = tmp_path / "mails.txt"
    path.write_text("".join(lines))
    with Client(url) as client:
        with path.open() as file:
            got = list(client.map("embed", file, on_error="return"))
        assert len(got) == 100
        wrong = {i: error for i, error in enumerate(got) if not isinstance(error, Result)}
        assert {i: type(error) for i, error in wrong.items()} == {3: InvalidInput, 70: TextTooLong, 99: InvalidInput}
        assert all(str(error.field).split(".")[:2] == ["inputs", str(i)] for i, error in wrong.items())
        for i in (0, 4, 69, 71, 98):
            assert difference(got[i].output, client.infer("embed", lines[i]).output) <= 1e-5
        with path.open() as file, pytest.raises(InvalidInput) as caught:
            list(client.map("embed", file))
        assert caught.value.field == "inputs.3"
        lines[3] = "a line\n"
        with pytest.raises(TextTooLong) as too_long:
            list(client.map("embed", lines, window=64))
        assert str(too_long.value.field).startswith("inputs.70")
        with pytest.raises(UnknownVfm):
            list(client.map("nobody", lines, on_error="return"))


@pytest.mark.parametrize("limits", [{"max_pending": 5}, {"max_pending": 50}, {"max_call_bytes": 3_000}])
def test_a_window_larger_than_the_queue(url: str, new_vfm: NewVfm, limits: dict[str, Any]) -> None:
    name = new_vfm(limits=limits)
    texts = [f"text {i}" for i in range(300)]
    with Client(url) as client:
        vectors = [result.output["embedding"] for result in client.map(name, texts, window=256)]
        embedded = client.embed(name, texts)
        assert np.allclose(np.stack(vectors), client.embed("embed", texts), atol=1e-5)
        assert np.allclose(embedded, np.stack(vectors), atol=1e-5)


def test_embed_takes_any_number_of_texts(fleet: LocalFleet) -> None:
    with Client(fleet.broker_url) as client:
        assert client.embed("embed", []) == []
        vectors = client.embed("embed", (f"text number {i}" for i in range(2500)), dimensions=4)
    assert len({tuple(vector) for vector in vectors}) > 2400


def test_a_vector_is_an_array(url: str) -> None:
    with Client(url) as client:
        result = client.infer("embed", "a text")
    vector = result.output["embedding"]
    assert np.asarray(vector).shape == (len(vector),) == (384,)
    assert abs(float(np.dot(vector, vector)) - 1) < 1e-5
    assert vector.tolist() == list(vector)
    assert "\n" not in repr(result)
    assert len(repr(result)) < 400
