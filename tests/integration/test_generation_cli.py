"""The command line with vFMs that generate, as somebody types it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client
from fmplex.cli.show import printable
from fmplex.local import LocalFleet
from tests.integration.shell import FMPLEX, Shell
from tests.support.decoders import generating_fleet
from tests.support.waiting import wait_until

GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with generating_fleet(tmp_path_factory.mktemp("texts")) as fleet:
        yield fleet


@pytest.fixture
def fmplex(texts: LocalFleet, tmp_path: Path) -> Shell:
    return Shell(tmp_path, texts.gateway_url)


def answer(texts: LocalFleet, vfm: str, *messages: tuple[str, str]) -> str:
    """What the vFM says to a chat, greedily."""
    chat = {"messages": [{"role": role, "content": content} for role, content in messages]}
    with Client(texts.gateway_url) as client:
        return str(client.infer(vfm, chat, temperature=0, max_tokens=12).output["text"])


def test_one_message_is_answered_on_standard_output(fmplex: Shell, texts: LocalFleet) -> None:
    told = fmplex("chat", "pirate", "--message", "the cat", *GREEDY)
    assert told == printable(answer(texts, "pirate", ("user", "the cat"))) + "\n"
    system = fmplex("chat", "pirate", "-m", "the cat", "--system", "be brief", *GREEDY)
    assert system == printable(answer(texts, "pirate", ("system", "be brief"), ("user", "the cat"))) + "\n"
    assert fmplex("chat", "pirate", "-m", "x", "-p", "max_tokens=1", "-p", "temperature=0").count("\n") >= 1


def test_a_talk_is_read_line_by_line_and_remembered(fmplex: Shell, texts: LocalFleet) -> None:
    first = answer(texts, "pirate", ("user", "the cat"))
    second = answer(texts, "pirate", ("user", "the cat"), ("assistant", first), ("user", "a dog"))
    told = fmplex("chat", "pirate", *GREEDY, stdin="the cat\n\n  a dog \n")
    assert told == f"{printable(first)}\n{printable(second)}\n"


def test_the_broker_can_be_talked_to_as_well(texts: LocalFleet, tmp_path: Path) -> None:
    direct = Shell(tmp_path, texts.broker_url)
    assert direct("chat", "pirate", "-m", "the cat", *GREEDY)[:-1] == printable(
        answer(texts, "pirate", ("user", "the cat"))
    )


class Terminal:
    """`fmplex` with a person in front of it."""

    def __init__(self, shell: Shell, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [FMPLEX, *args], cwd=shell.folder, env=shell.environment, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.seen = ""

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    def shows(self, text: str, times: int = 1) -> bool:
        with suppress(OSError):  # nothing yet, or nobody is there any more
            self.seen += os.read(self._master, 65_536).decode(errors="replace")
        return self.seen.count(text) >= times

    def ends(self) -> int:
        """Its exit code."""
        wait_until(lambda: self.shows("") and self.process.poll() is not None, "it ends")
        os.close(self._master)
        return int(self.process.returncode)


def test_a_person_is_prompted_told_how_fast_it_went_and_may_interrupt(fmplex: Shell) -> None:
    terminal = Terminal(fmplex, "chat", "plain", "-p", "ignore_eos=true", "--max-tokens", "15000")
    try:
        wait_until(lambda: terminal.shows("> "), "there is a prompt")
        terminal.types("the cat\n")
        wait_until(lambda: terminal.shows("") and len(terminal.seen) > 200, "it speaks")
        terminal.process.send_signal(signal.SIGINT)
        wait_until(lambda: terminal.shows("") and terminal.seen.endswith("\n> "), "there is a prompt again")
        terminal.types("\x04")
        assert terminal.ends() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
    assert "Traceback" not in terminal.seen


def test_a_person_who_is_refused_may_go_on(fmplex: Shell) -> None:
    terminal = Terminal(fmplex, "chat", "strict", "--system", "x", *GREEDY)
    try:
        wait_until(lambda: terminal.shows("> "), "there is a prompt")
        terminal.types("hello\n")
        wait_until(lambda: terminal.shows("invalid_input"), "it says why")
        wait_until(lambda: terminal.shows("> ", 2), "there is a prompt again")
        terminal.types("\x04")
        assert terminal.ends() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_infer_takes_the_parameters_of_the_call(fmplex: Shell) -> None:
    args = ("infer", "plain", "the cat", "-p", "temperature=0", "-p", "max_tokens=5", "-p", "ignore_eos=true")
    output = json.loads(fmplex(*args, "--json"))["output"]
    assert (output["completion_tokens"], output["finish_reason"]) == (5, "length")
    assert "5 tokens, length)" in fmplex(*args)
    chat = json.dumps({"messages": [{"role": "user", "content": "the cat"}]})
    asked = fmplex("infer", "plain", "--jsonl", "--json", "-p", "max_tokens=2", "-p", 'stop=["never seen"]', stdin=chat)
    assert json.loads(asked)["output"]["completion_tokens"] <= 2


def test_targets_are_set_shown_and_lifted(fmplex: Shell) -> None:
    def slo() -> dict[str, Any]:
        shown = json.loads(fmplex("vfms", "show", "poet"))["slo"]
        return {name: shown[name] for name in ("latency_ms", "ttft_ms", "inter_token_ms")}

    fmplex("vfms", "update", "poet", "--ttft-ms", "400", "--inter-token-ms", "100")
    assert slo() == {"latency_ms": None, "ttft_ms": 400, "inter_token_ms": 100}
    assert "first 400, next 100" in fmplex("vfms")
    fmplex("vfms", "update", "poet", "--ttft-ms", "0")
    assert slo() == {"latency_ms": None, "ttft_ms": None, "inter_token_ms": 100}
    fmplex("vfms", "update", "poet", "--inter-token-ms", "0")
    assert json.loads(fmplex("vfms", "show", "poet"))["head"]["kind"] == "generation"


def test_top_shows_tokens_and_their_memory(fmplex: Shell, texts: LocalFleet) -> None:
    with Client(texts.gateway_url) as client, client.stream("poet", "x", max_tokens=15_000, ignore_eos=True) as growing:
        next(growing)
        seen = json.loads(fmplex("top", "--broker", texts.broker_url, "--json"))
        table = fmplex("top", "--broker", texts.broker_url, "--once")
    text = next(v for v in seen["vfms"] if v["vfm"] == "poet")["text"]
    assert text["inter_token_p99_ms"] >= text["inter_token_p50_ms"] > 0
    assert text["kv_bytes"] > 0
    assert seen["workers"][0]["kv_budget_bytes"] == 33_554_432
    assert "text" not in next(v for v in seen["vfms"] if v["vfm"] == "vectors")
    assert set(table.split()) >= {"tokens/s", "first", "next", "KV", "prefixes"}, table


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["chat", "nobody", "-m", "x"], "unknown_vfm: there is no vFM 'nobody'"),
        (["chat", "vectors", "-m", "x"], "invalid_input: "),
        (["chat", "plain", "-m", "x", "--temperature", "-1"], "temperature: Input should be greater than"),
        (["chat", "strict", "-m", "x", "--system", "y"], "system messages are not for me"),
        (["chat", "plain", "-m", "x", "-p", "stream=true"], "write it as NAME=VALUE"),
        (["infer", "plain", "x", "-p", "max_tokens"], "write it as NAME=VALUE"),
        (["infer", "plain", "x", "-p", "colour=red"], "invalid_input: colour: unknown key"),
        (["vfms", "update", "plain"], "--ttft-ms, --inter-token-ms or --package"),
        (["vfms", "update", "plain", "--ttft-ms", "-1"], "ttft_ms: Input should be greater than"),
    ],
)
def test_an_error_is_one_clear_line_and_exit_code_1(fmplex: Shell, args: list[str], says: str) -> None:
    assert says in fmplex.fails(*args)
