"""`fmplex infer`: texts of a pipe and of files, each as it is and as it comes; a bad one stops no other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fmplex.cli.app import app
from fmplex_broker.errors import FmplexError, InvalidInput, Unavailable
from tests.support.gateways import REFUSED, echoing_gateway

ODD = ["[URGENT] call me", "{name}, hello", '"quoted', "  indented", "a\u2028b\x85c", "[1, 2]", "null", "\\n"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echoing_gateway() as gateway:
        yield gateway


def run(url: str, *args: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["infer", "v", *map(str, args), "--url", url], input=stdin)


def outputs(done: Result) -> list[Any]:
    """What JSON on standard output says of each line: its number, and the text that came back or the error's code."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(f["line"], f["output"]["text"] if "output" in f else f["error"]["code"]) for f in found]


def test_texts_are_taken_as_they_are(url: str) -> None:
    done = run(url, "--json", stdin="\ufeff" + "".join(f"{text}\r\n\n" for text in ODD[:4]) + "\n".join(ODD[4:]))
    assert done.exit_code == 0, done.output
    assert outputs(done) == [*zip((1, 3, 5, 7), ODD[:4], strict=True), *zip((9, 10, 11, 12), ODD[4:], strict=True)]
    assert json.loads(run(url, ODD[0], "--json").stdout)["output"] == {"text": ODD[0]}
    shown = run(url, stdin="word " * 60 + "\nx\n").stdout
    assert shown.count("\n") == 2, "a line each, however long"


def test_lines_of_json_are_asked_for(url: str) -> None:
    lines = ['"[text]"', '{"text": "a", "text_pair": "b"}', "[1]", "3", "nul", '{"messages": []}', "[" * 9000]
    done = run(url, "--jsonl", "--json", stdin="\n".join(lines))
    good: list[Any] = ["[text]", {"text": "a", "text_pair": "b"}, {"messages": []}]
    wanted = [
        (1, good[0]),
        (2, good[1]),
        *[(n, "invalid_input") for n in (3, 4, 5)],
        (6, good[2]),
        (7, "invalid_input"),
    ]
    assert (done.exit_code, outputs(done)) == (1, wanted)
    assert "line 4: invalid_input: neither a JSON string nor an object, but 3" in done.stderr
    assert "line 5: invalid_input: not JSON" in done.stderr


def test_a_bad_line_stops_no_other(url: str) -> None:
    lines = [f"text {n}" for n in range(100)]
    lines[40] = lines[70] = REFUSED
    stdin = "\n".join(lines).encode().replace(b"text 50", b"caf\xe9") + b"\nthe end"
    done = run(url, "--json", stdin=stdin)
    wanted = [(n, "invalid_input" if n in (41, 51, 71) else f"text {n - 1}") for n in range(1, 101)]
    assert (done.exit_code, outputs(done)) == (1, [*wanted, (101, "the end")])
    told = done.stderr.splitlines()
    assert told[0] == "line 41: invalid_input: is refused"
    assert told[1] == "line 51: invalid_input: not UTF-8 text (byte 0xe9 at 4)"
    assert len(told) == 3
    plain = run(url, "fine", REFUSED, "too")
    assert (plain.exit_code, plain.stdout.count("\n"), plain.stderr) == (1, 2, "input 2: invalid_input: is refused\n")
    assert run(url, REFUSED).stderr == "invalid_input: is refused\n"


def test_files_are_read_and_written(url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "пример ü.txt", tmp_path / "вывод.jsonl"
    source.write_text("one\n" + REFUSED + "\ntwo\n")
    done = run(url, "-i", source, "-o", target)
    assert (done.exit_code, done.stderr) == (1, "line 2: invalid_input: is refused\n")
    assert done.stdout == f"2 results in {target}\n"
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [f["line"] for f in found] == [1, 2, 3]
    assert [f.get("output") for f in found] == [{"text": "one"}, None, {"text": "two"}]
    assert found[1]["error"] == {"code": "invalid_input", "message": "is refused"}
    assert outputs(run(url, "-i", "-", "--json", stdin="piped")) == [(1, "piped")]


def test_a_pair_belongs_to_every_line(url: str) -> None:
    assert outputs(run(url, "--pair", "q", "--json", stdin="a\nb")) == [
        (1, {"text": "a", "text_pair": "q"}), (2, {"text": "b", "text_pair": "q"}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ([], "no inputs: give texts"),
        (["--jsonl", "a"], "--jsonl is for lines of JSON; texts are given as arguments"),
        (["--jsonl", "--pair", "a"], "--pair is for texts: write text_pair into the lines"),
        (["a", "-i", "a"], "given as arguments and in a file"),
        (["-i", "nowhere"], r"nowhere cannot be read \(No such file"),
        (["-i", "."], "cannot be read"),
        (["-i", "same.txt", "-o", "same.txt"], "is what is read"),
        (["a", "-o", "no/such/out"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_said(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.txt").write_text("keep me")
    caught = run(url, *args).exception
    assert isinstance(caught, InvalidInput)
    with pytest.raises(InvalidInput, match=error):
        raise caught
    assert (tmp_path / "same.txt").read_text() == "keep me"


def test_a_fleet_that_is_away_ends_the_run() -> None:
    caught = run("http://127.0.0.1:1", stdin="a\nb\n").exception
    assert isinstance(caught, FmplexError)
    assert isinstance(caught, Unavailable)


def test_a_result_is_there_before_the_next_line_is_written(url: str) -> None:
    """Standard input stays open, as of `tail -f`; and the process ends by a signal though it waits for a line."""
    command = [sys.executable, "-c", "from fmplex.cli import main; main()", "infer", "v", "--url", url, "--json"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        assert p.stderr is not None
        for text in ("[1] first", REFUSED, "third"):
            p.stdin.write(text + "\n")
            p.stdin.flush()
            answer = json.loads(p.stdout.readline())
            assert answer.get("output", {"text": REFUSED}) == {"text": text}
        p.send_signal(signal.SIGINT)
        assert p.wait(60) in (1, 130)
        assert "Fatal Python error" not in p.stderr.read()
