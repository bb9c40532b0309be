"""A client that was made before a fork, as by gunicorn's preload or Celery's prefork: the new process can use it, and the old one
does not notice."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests.support.gateways import echoing_gateway

# The child says what it has to say on its standard output, and ends without the parent's clean-up.
START = """
import asyncio, os, sys, warnings
from fmplex import AsyncClient, Client, FmplexError
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: a process with threads that forks

URL = sys.argv[1]

def say(*words):  # one write, buffered or not: a fork copies no half-written line, and processes cut none of each other's
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def forked(work):
    if os.fork() == 0:
        try:
            say("child:", work())
        except FmplexError as e:
            say("child:", type(e).__name__, e)
        finally:
            os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with echoing_gateway() as url:
        yield url


def run(program: str, url: str) -> list[str]:
    """Run a program that knows `URL` and `forked`; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(program), url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_forked_process_uses_the_client_and_the_first_one_goes_on(gateway: str) -> None:
    program = """
        client = Client(URL)
        say(client.infer("v", "before").output["text"])
        forked(lambda: [client.infer("v", x).output["text"] for x in "ab"])
        forked(lambda: [r.output["text"] for r in client.map("v", ["c", "d"])])
        say(client.infer("v", "after").output["text"])
        client.close()
        """
    assert run(program, gateway) == ["before", "child: ['a', 'b']", "child: ['c', 'd']", "after"]


def test_a_client_that_nobody_has_used_can_be_used_in_each_process(gateway: str) -> None:
    program = """
        client = Client(URL)
        forked(lambda: client.infer("v", "a").output["text"])
        forked(lambda: forked(lambda: client.infer("v", "grandchild").output["text"]))
        say(client.infer("v", "b").output["text"])
        """
    assert run(program, gateway) == ["child: a", "child: grandchild", "child: None", "b"]


def test_many_threads_of_a_forked_process_share_it(gateway: str) -> None:
    program = """
        from concurrent.futures import ThreadPoolExecutor
        client = Client(URL)
        client.infer("v", "before")
        def work():
            with ThreadPoolExecutor(8) as pool:
                return sum(r.output["text"] for r in pool.map(lambda i: client.infer("v", i), range(64)))
        forked(work)
        """
    program = program.replace('client.infer("v", i)', 'client.infer("v", {"n": i})').replace(
        'r.output["text"] for', 'r.output["text"]["n"] for'
    )
    assert run(program, gateway) == [f"child: {sum(range(64))}"]


def test_closing_it_in_one_process_leaves_it_to_the_other(gateway: str) -> None:
    program = """
        with Client(URL) as client:
            client.infer("v", "before")
            forked(client.close)
            def use_and_close():
                client.infer("v", "x")
                client.close()
                return client.infer("v", "closed")
            forked(use_and_close)
            say(client.infer("v", "after").output["text"])
        """
    closed = "child: Unavailable this client is closed; make a new one"
    assert run(program, gateway) == ["child: None", closed, "after"]


def test_jobs_texts_and_maps_of_the_first_process_say_so_in_the_second(gateway: str) -> None:
    program = """
        client = Client(URL)
        handle = client.enqueue("v", "a job")
        results = client.map("v", map(str, range(1000)))
        say(next(results).output["text"])
        forked(lambda: handle.result(timeout=5))
        forked(handle.cancel)
        forked(lambda: list(results))
        def leave():
            results.close()
            return "left"
        forked(leave)
        say(handle.result(timeout=30).output["text"], next(results).output["text"], len(list(results)))
        """
    first, *children, last = run(program, gateway)
    assert (first, last) == ("0", "a job 1 998")
    assert [line.split(maxsplit=2)[:2] for line in children] == [["child:", "InvalidInput"]] * 3 + [["child:", "left"]]
    assert all("fork" in line for line in children[:3])


def test_an_asynchronous_client_is_used_in_a_forked_process_too(gateway: str) -> None:
    program = """
        client = AsyncClient(URL)
        async def ask(text):
            return (await client.infer("v", text)).output["text"]
        async def main():
            say(await ask("before"))
            forked(lambda: in_a_new_loop("a"))  # while this loop runs
            say(await ask("after"))
        def in_a_new_loop(text):
            asyncio._set_running_loop(None)
            return asyncio.run(ask(text))
        asyncio.run(main())
        forked(lambda: asyncio.run(ask("b")))
        """
    assert run(program, gateway) == ["before", "child: a", "after", "child: b"]
