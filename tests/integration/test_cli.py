"""The command line, as somebody types it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from fmplex.local import LocalFleet
from fmplex_broker.specs.fleet import locate_model
from tests.integration.conftest import LABELS, TEXTS
from tests.integration.shell import FMPLEX, Shell, clean_environment
from tests.support.fleets import MODEL, write_minilm_fleet
from tests.support.outputs import difference
from tests.support.packages import head_weights, write_package
from tests.support.waiting import wait_until

CLASSES = {"kind": "classification", "labels": ["a", "b"]}


def test_a_package_goes_through_its_life_by_hand(fmplex: Shell, place: Path, age: Callable[[str], None]) -> None:
    folder = write_package(place / "vfms" / "by-hand", CLASSES, rank=2)
    assert "by-hand serves version" in fmplex("deploy", folder)
    again = fmplex.fails("deploy", folder)
    assert again.startswith("conflict: there is already a vFM 'by-hand'; ")
    assert "--update" in again
    newer = write_package(place / "vfms" / "by-hand-newer", CLASSES, name="by-hand", rank=2, seed=1)
    deployed = json.loads(fmplex("deploy", newer, "--update", "--json"))
    assert deployed["status"] == "serving"
    first = json.loads(fmplex("vfms", "show", "by-hand"))["past"][0]["version"]
    listed = {v["name"]: v for v in json.loads(fmplex("vfms", "--json"))}
    assert listed["by-hand"]["version"] == deployed["version"]
    assert "by-hand" in fmplex("vfms")
    assert "weight 3," in fmplex("vfms", "update", "by-hand", "--weight", "3", "--max-pending", "7", "--rate", "1e6")
    shown = json.loads(fmplex("vfms", "show", "by-hand"))
    assert (shown["weight"], shown["limits"]["max_pending"], shown["limits"]["rate"]) == (3, 7, 1e6)
    fmplex("vfms", "update", "by-hand", "--rate", "0", "--deadline-ms", "5000", "--package", folder)
    shown = json.loads(fmplex("vfms", "show", "by-hand"))
    assert (shown["limits"]["rate"], shown["slo"]["deadline_ms"], shown["version"] != deployed["version"]) == (
        None,
        5000,
        True,
    )
    assert shown["version"] == first
    assert [p["version"] for p in shown["past"]] == [deployed["version"]], "newest first, without what serves"
    assert f"version {deployed['version']}, serving" in fmplex("vfms", "rollback", "by-hand")
    assert f"version {first}, serving" in fmplex("vfms", "rollback", "by-hand", "--version", first)
    assert "can be rolled back to" in fmplex.fails("vfms", "rollback", "by-hand", "--version", "none")
    age(first)
    assert fmplex("vfms", "prune").strip().endswith("packages deleted")
    assert f"version {deployed['version']}, serving" in fmplex("vfms", "rollback", "by-hand"), "not pruned"
    assert "is gone" in fmplex("vfms", "remove", "by-hand")
    assert fmplex.fails("vfms", "rollback", "by-hand").startswith("unknown_vfm: ")
    assert fmplex.fails("vfms", "show", "by-hand").startswith("unknown_vfm: there is no vFM 'by-hand'")


def test_a_bad_version_is_shown_and_the_old_one_goes_on(fmplex: Shell, tmp_path: Path) -> None:
    fmplex("deploy", write_package(tmp_path / "by-hand-2", CLASSES))
    before = json.loads(fmplex("infer", "by-hand-2", "a text", "--json"))
    bad = write_package(tmp_path / "bad" / "by-hand-2", CLASSES, seed=1)
    save_file(head_weights(2, hidden=768), bad / "head.safetensors")
    assert fmplex.fails("deploy", bad, "--update").startswith("package_rejected: head.safetensors holds ")
    shown = json.loads(fmplex("vfms", "show", "by-hand-2"))
    assert (shown["status"], shown["version"]) == ("serving", before["version"])
    assert shown["error"]["code"] == "package_rejected"
    assert "needed: weight (2, 384)" in shown["error"]["message"]
    assert "serving (head.safetensors holds" in fmplex("vfms", "--match", "by-hand-2")
    after = json.loads(fmplex("infer", "by-hand-2", "a text", "--json"))
    assert (after["output"], after["version"]) == (before["output"], before["version"])
    fmplex("vfms", "remove", "by-hand-2")


def test_vfms_are_listed_by_pattern_and_by_the_page(fmplex: Shell, references: dict[str, list[Any]]) -> None:
    def names(*args: str) -> list[str]:
        return [v["name"] for v in json.loads(fmplex("vfms", "--json", *args))]

    assert names("--match", "embed*") == ["embed", "embed-cls", "embed-lora"]
    assert names("--match", "embed?*", "--limit", "1") == ["embed-cls"]
    assert names("--match", "no-such-*") == []
    assert set(references) <= set(names("--all"))
    table = fmplex("vfms", "--limit", "2")
    assert table.count("\n") == 5, table
    assert "in all; --match narrows, --all lists them" in table


def test_texts_are_inferred_from_arguments_and_from_a_pipe(fmplex: Shell, references: dict[str, list[Any]]) -> None:
    one = json.loads(fmplex("infer", "sentiment", TEXTS[0], "--json"))
    assert set(one) == {"output", "vfm", "version", "units", "queue_ms", "run_ms", "load_ms"}
    assert (one["vfm"], one["units"] > 0, one["run_ms"] > 0) == ("sentiment", True, True)
    assert difference(one["output"], references["sentiment"][0]) <= 1e-5
    lines = f"{json.dumps(TEXTS[0])}\n\n{json.dumps({'text': TEXTS[1]})}\n"
    piped = [json.loads(line) for line in fmplex("infer", "sentiment", "--jsonl", "--json", stdin=lines).splitlines()]
    assert [p["line"] for p in piped] == [1, 3]
    assert [difference(p["output"], w) <= 1e-5 for p, w in zip(piped, references["sentiment"], strict=False)] == [
        True,
        True,
    ]
    assert any(label in fmplex("infer", "sentiment", TEXTS[0]) for label in LABELS)
    pair = json.loads(fmplex("infer", "ranker", TEXTS[0], "--pair", TEXTS[1], "--json"))
    assert difference(pair["output"], references["ranker"][0]) <= 1e-5
    assert "embedding [384]" in fmplex("infer", "embed", "word " * 300, "--truncate")


def test_the_command_line_speaks_to_the_broker_too(fleet: LocalFleet, tmp_path: Path) -> None:
    direct = Shell(tmp_path, fleet.broker_url)
    assert json.loads(direct("infer", "stars", "a text", "--json"))["output"]["value"]
    assert direct.fails("infer", "nobody", "x").startswith("unknown_vfm: ")


def test_top_shows_the_fleet_for_scripts_and_for_people(fleet: LocalFleet, fmplex: Shell) -> None:
    seen = json.loads(fmplex("top", "--broker", fleet.broker_url, "--json"))
    row = next(v for v in seen["vfms"] if v["vfm"] == "sentiment")
    wanted = {
        "waiting",
        "pending",
        "oldest_ms",
        "jobs_per_s",
        "p50_ms",
        "p99_ms",
        "share_received",
        "share_promised",
        "device_s_per_s",
    }
    assert wanted <= set(row)
    worker = seen["workers"][0]
    assert {"tokens_per_pass", "busy", "memory_bytes"} <= set(worker)
    assert worker["memory_bytes"] > 0
    table = fmplex("top", "--broker", fleet.broker_url, "--once")
    assert "sentiment" in table
    assert worker["worker"] in table


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["infer", "nobody", "x"], "unknown_vfm: there is no vFM 'nobody'; `fmplex vfms` lists them"),
        (["infer", "embed", ""], "invalid_input: the text is empty"),
        (
            ["infer", "embed", "word " * 300],
            "text_too_long: This model's maximum context length is 256 tokens. However, the input has 302 tokens; shorten it",
        ),
        (["infer", "embed"], "invalid_input: no inputs: give texts"),
        (["infer", "a b", "x"], "'a b' is not the name of a vFM"),
        (["infer", "[/red]", "x"], "'[/red]' is not the name of a vFM"),
        (["deploy", "nowhere"], "package_rejected: "),
        (["deploy", "[bold]nowhere"], "[bold]nowhere"),
        (["vfms", "remove", "nobody"], "unknown_vfm: there is no vFM 'nobody'"),
        (["vfms", "update", "embed"], "nothing to change: give --weight"),
        (["vfms", "update", "embed", "--weight", "-1"], "weight: Input should be greater than"),
        (["vfms", "--url", "http://127.0.0.1:1"], "does not answer"),
        (["vfms", "--url", "redis://127.0.0.1:1"], "broker_unavailable: the broker does not answer"),
        (["vfms", "--url", "ftp://x"], "neither http(s)://"),
        (["top"], "which broker? give --broker redis://"),
        (["top", "--broker", "redis://127.0.0.1:1"], "broker_unavailable: the broker does not answer"),
        (["up", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
    ],
)
def test_an_error_is_one_clear_line_and_exit_code_1(fmplex: Shell, args: list[str], says: str) -> None:
    assert says in fmplex.fails(*args)


def test_a_bad_line_of_a_pipe_is_named_and_stops_no_other(fmplex: Shell, references: dict[str, list[Any]]) -> None:
    done = fmplex.run("infer", "sentiment", "--json", stdin=f"{TEXTS[0]}\n{'word ' * 300}\n[URGENT] {{x\n{TEXTS[1]}\n")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f.get("error", {}).get("code") for f in found] == [None, "text_too_long", None, None]
    for f, wanted in zip((found[0], found[3]), references["sentiment"], strict=False):
        assert difference(f["output"], wanted) <= 1e-5
    assert done.returncode == 1
    assert done.stderr.startswith("line 2: text_too_long: This model's maximum context length is 256 tokens. However, ")
    assert "the input has 302 tokens" in done.stderr
    assert done.stderr.count("\n") == 1
    said = fmplex.run("infer", "embed", "--jsonl", stdin='"fine"\n{"text": \n')
    assert "line 2: invalid_input: not JSON" in said.stderr


def test_an_adapter_of_peft_is_deployed_as_it_is(fleet: LocalFleet, fmplex: Shell, place: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", {"kind": "embedding"}, rank=4, seed=1)
    adapter = tmp_path / "adapter"
    (package / "adapter").rename(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    model = locate_model(MODEL, place)
    config |= {"base_model_name_or_path": model, "task_type": "FEATURE_EXTRACTION"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shown = fmplex("deploy", adapter, "--name", "from-peft", "--config", place / "fleet.toml")
    assert "from-peft serves version" in shown
    ours, packaged = (json.loads(fmplex("infer", v, TEXTS[0], "--json"))["output"] for v in ("from-peft", "embed-lora"))
    assert difference(ours, packaged) <= 1e-5
    fmplex("vfms", "remove", "from-peft")


def test_help_is_there_without_a_fleet(tmp_path: Path) -> None:
    nowhere = Shell(tmp_path, "http://127.0.0.1:1")
    listed = nowhere("--help")
    assert all(command in listed for command in ("up", "demo", "fit", "deploy", "vfms", "infer", "top", "trace"))
    assert "--truncate" in nowhere("infer", "--help")


def test_up_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """The fleet file's vFMs are deployed, other commands find the fleet by themselves, and nothing is left running."""
    config = write_minilm_fleet(tmp_path)
    config.write_text(config.read_text() + '[[vfms]]\nname = "e"\nbackbone = "minilm"\nhead = { kind = "embedding" }\n')
    shell = Shell(tmp_path, "")
    shell.environment = clean_environment()
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [FMPLEX, "up", "--config", config, "--port", "0"], cwd=tmp_path, env=shell.environment, stdout=log, stderr=log
        )  # fmt: skip
    try:
        wait_until(
            lambda: "Ctrl-C stops" in (tmp_path / "up.log").read_text() or up.poll() is not None, "the fleet is up"
        )
        assert up.poll() is None, (tmp_path / "up.log").read_text()
        assert json.loads(shell("infer", "e", "a text", "--json"))["output"]
        assert json.loads(shell("top", "--json"))["workers"]
        broker = json.loads((tmp_path / ".fmplex" / "up.json").read_text())["broker"]
    finally:
        up.send_signal(signal.SIGINT)
        code = up.wait(90)
    assert code == 0, (tmp_path / "up.log").read_text()
    assert not (tmp_path / ".fmplex" / "up.json").exists()
    assert "broker_unavailable" in shell.fails("vfms", "--url", broker)
