"""`fmplex submit` and `fmplex batches`: whatever file somebody has, its lines keep numbers and order."""

from __future__ import annotations

import codecs
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fmplex.cli.app import app
from fmplex_broker.errors import Conflict, InvalidInput
from tests.support.batch_gateway import BatchGateway, batch_gateway
from tests.support.gateways import REFUSED
from tests.support.waiting import wait_until

URL = "/v1/vfms/v/infer"


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchGateway]:
    monkeypatch.chdir(tmp_path)
    with batch_gateway() as running:
        monkeypatch.setenv("FMPLEX_URL", running.url)
        yield running


def run(*args: object) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def submitted(gateway: BatchGateway, name: str, content: str | bytes, *args: str) -> dict[int, Any]:
    """The lines that are sent of a file, by their number: their ids and inputs, or what is no JSON."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run("submit", name, "--vfm", "v", "--json", *args)
    assert done.exit_code == 0, done
    lines = gateway.files[json.loads(done.stdout)["input_file_id"]].removesuffix(b"\n").split(b"\n")
    return {number: _read(raw) for number, raw in enumerate(lines, 1) if raw}


def _read(raw: bytes) -> Any:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    assert (line["method"], line["url"], line["body"]["params"]) == ("POST", URL, {})
    (value,) = line["body"]["inputs"]
    return line["custom_id"], value


def test_a_list_of_texts_is_enough(gateway: BatchGateway) -> None:
    odd = ["[URGENT] call me", '"quoted', "  indented", "a\u2028b\x85c", "null", "nul\0", "Ж 漢 🙂"]
    content = codecs.BOM_UTF8 + "\r\n".join(["", *odd[:3], " ", *odd[3:]]).encode()
    numbers = [2, 3, 4, 6, 7, 8, 9]
    wanted = {n: (f"line-{n}", text) for n, text in zip(numbers, odd, strict=True)}
    for name in ("mails.txt", "mails", "mails.LOG"):
        assert submitted(gateway, name, content) == wanted


def test_a_line_that_cannot_be_read_fails_in_its_place(gateway: BatchGateway) -> None:
    found = submitted(gateway, "a.txt", b"good\ncaf\xe9\n\nfine")
    assert {n: value for n, value in found.items() if n != 2} == {1: ("line-1", "good"), 4: ("line-4", "fine")}
    assert b"caf\xe9" in found[2], "as it is: no JSON"
    lines = ['"[text]"', '{"text": "a", "text_pair": "b"}', "3", "nul", "null", '"half \\ud800"', "[" * 9000, '"fin"']
    found = submitted(gateway, "a.jsonl", "\n\n".join(lines))
    assert found == {
        1: ("line-1", "[text]"), 3: ("line-3", {"text": "a", "text_pair": "b"}), 5: ("line-5", 3), 7: b"nul", 9: ("line-9", None),
        11: ("line-11", "half \ud800"), 13: b"[" * 9000, 15: ("line-15", "fin"),
    }  # fmt: skip


def test_a_table_keeps_its_numbers(gateway: BatchGateway) -> None:
    found = submitted(gateway, "a.csv", '\ufefftext,label\r\none,x\r\n"two\nlines, quoted",y\r\n\r\nfour,z\r\n')
    assert found == {2: ("line-2", "one"), 3: ("line-3", "two\nlines, quoted"), 6: ("line-6", "four")}
    assert submitted(gateway, "b.csv", "label;comment\nx;one, two\n", "--column", "comment") == {
        2: ("line-2", "one, two")
    }
    assert submitted(gateway, "c.tsv", "text\ttext_pair\na\tb\n") == {2: ("line-2", {"text": "a", "text_pair": "b"})}
    assert b"caf\xe9" in submitted(gateway, "d.csv", b"text\ncaf\xe9\n")[2]


def test_each_file_of_a_folder_is_a_text(gateway: BatchGateway) -> None:
    folder = Path("letters")
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "two.txt").write_text("second\nletter\n")
    (folder / "a.md").write_bytes(codecs.BOM_UTF8 + b"first")
    (folder / ".hidden").write_text("no")
    assert run("submit", folder, "--vfm", "v").exit_code == 0
    lines = [json.loads(raw) for raw in gateway.files["file-0000"].splitlines()]
    assert [(line["custom_id"], line["body"]["inputs"]) for line in lines] == [
        ("a.md", ["first"]), ("b/two.txt", ["second\nletter\n"]),
    ]  # fmt: skip
    assert gateway.names["file-0000"] == "letters.jsonl"


def test_it_goes_on_without_the_command(gateway: BatchGateway) -> None:
    Path("a.txt").write_text(f"one\n\n{REFUSED}\ntwo\n")
    done = run("submit", "a.txt", "--vfm", "v", "--window", "90m", "-p", "top_k=2")
    assert (done.exit_code, done.stdout) == (
        0,
        "batch_0000 in_progress: 3 lines, within 90m; its results: fmplex batches fetch batch_0000 --wait -o OUT.jsonl\n",
    )
    assert gateway.batches["batch_0000"]["completion_window"] == "90m"
    gateway.stuck = True
    listed = run("batches", "list").stdout
    assert "batch_0000" in listed
    assert "in_progress" in listed
    caught = run("batches", "fetch", "batch_0000").exception
    assert isinstance(caught, Conflict)
    assert "1 of 3 lines have ended; --wait waits" in caught.message
    gateway.stuck = False
    done = run("batches", "fetch", "batch_0000", "--wait", "-o", "out.jsonl")
    assert done.exit_code == 1
    assert done.stdout.startswith("2 of 3 lines answered, in out.jsonl (completed after ")
    assert "1 × text_too_long; first line 3: is refused" in done.stderr
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(f["line"], f["custom_id"], f.get("output")) for f in found] == [
        (1, "line-1", "one"), (3, "line-3", None), (4, "line-4", "two"),
    ]  # fmt: skip
    assert found[1]["error"] == {"code": "text_too_long", "message": "is refused"}
    again = run("batches", "fetch", "batch_0000")
    assert (again.exit_code, [json.loads(line) for line in again.stdout.splitlines()]) == (1, found)
    assert json.loads(run("batches", "show", "batch_0000").stdout)["request_counts"]["failed"] == 1
    assert [b["id"] for b in json.loads(run("batches", "list", "--json").stdout)] == ["batch_0000"]


@pytest.mark.parametrize("args", [["--wait"], ["--wait", "-o", "out.jsonl"], ["-o", "out.jsonl"]])
def test_it_waits_and_gives_the_results(gateway: BatchGateway, args: list[str]) -> None:
    Path("a.txt").write_text("one\ntwo\n")
    done = run("submit", "a.txt", "--vfm", "v", *args)
    assert done.exit_code == 0, done.output
    written = Path("out.jsonl").read_text() if "-o" in args else done.stdout
    assert [json.loads(line)["output"] for line in written.splitlines()] == ["one", "two"]
    assert "completed" in done.stderr, "a bar"
    assert "2/2" in done.stderr


def test_a_batch_is_cancelled(gateway: BatchGateway) -> None:
    gateway.stuck = True
    Path("a.txt").write_text("one\n")
    run("submit", "a.txt", "--vfm", "v")
    assert run("batches", "cancel", "batch_0000").stdout == "batch_0000 cancelling\n"
    done = run("batches", "fetch", "batch_0000", "--wait", "-o", "out.jsonl")
    assert done.exit_code == 1
    assert "(cancelled after " in done.stdout
    assert "1 × batch_cancelled; first line 1" in done.stderr


def test_ctrl_c_leaves_it_to_itself(gateway: BatchGateway) -> None:
    gateway.stuck = True
    Path("a.txt").write_text("one\n")
    command = [
        sys.executable,
        "-c",
        "from fmplex.cli import main; main()",
        "submit",
        "a.txt",
        "--vfm",
        "v",
        "-o",
        "out.jsonl",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stderr is not None
        assert "batch_0000: its results" in p.stderr.readline()
        seen = len(gateway.requests)
        wait_until(lambda: len(gateway.requests) > seen, "it looks at the batch")
        p.send_signal(2)
        assert p.wait(60) == 130
        assert "batch_0000 goes on; its results: fmplex batches fetch batch_0000 --wait -o out.jsonl" in p.stderr.read()
    assert not Path("out.jsonl").exists()
    assert gateway.batches["batch_0000"]["status"] == "in_progress"


@pytest.mark.parametrize(
    ("name", "content", "args", "error"),
    [
        ("nowhere", None, [], "nowhere cannot be read"),
        ("a.txt", b"one", [], "say which vFM"),
        ("a.txt", b"\n \r\n", ["--vfm", "v"], "no inputs: there is nothing in it to send"),
        ("a.txt", b"one", ["--vfm", "a/b"], "not the name of a vFM"),
        ("a.txt", "one".encode("utf-16"), ["--vfm", "v"], "is UTF-16 text; unpack it, save it as UTF-8 text"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", ["--vfm", "v"], "is compressed"),
        ("a.xlsx", b"PK\x03\x04", ["--vfm", "v"], "a spreadsheet"),
        ("a.json", b"[1]", ["--vfm", "v"], r"one JSON value a line is taken, in a file called \.jsonl"),
        ("a.csv", b"comment\none\n", ["--vfm", "v"], "one of them 'text', or --column"),
        ("a.csv", b"text,label\none, two,x\n", ["--vfm", "v"], "line 2: 3 cells in 2 columns; quote"),
        ("a.csv", b'text\n"one\n', ["--vfm", "v"], r"line 2: not CSV"),
        ("a.txt", b"one", ["--vfm", "v", "-o", "a.txt"], "is what is read"),
        ("a.txt", b"one", ["--vfm", "v", "-o", "no/such"], "cannot be written"),
        ("a.txt", b"one", ["--vfm", "v", "-o", "."], "it is a folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(
    gateway: BatchGateway, name: str, content: bytes | None, args: list[str], error: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    caught = run("submit", name, *args).exception
    assert isinstance(caught, InvalidInput)
    with pytest.raises(InvalidInput, match=error):
        raise caught
    assert gateway.files == {}


def test_a_file_that_the_fleet_does_not_take_is_told_at_once(gateway: BatchGateway) -> None:
    Path("a.jsonl").write_text('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}\n')
    gateway.files["file-none"] = b""
    original = gateway.create
    gateway.create = lambda body: original(body | {"input_file_id": "file-none"})  # type: ignore[method-assign]
    caught = run("submit", "a.jsonl").exception
    assert isinstance(caught, InvalidInput)
    assert caught.message == "batch_0000 failed: empty_file: there is no line"
