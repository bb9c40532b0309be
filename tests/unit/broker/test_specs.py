"""Specs: an unknown key is named, names are safe in Redis, and a fleet file's paths are relative to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import BackboneSpec, FleetSpec, WorkerSpec, artifacts_of, load_fleet
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.specs.heads import Embedding, InputSpec
from fmplex_broker.specs.schema import load_toml, parse
from fmplex_broker.specs.vfm import Slo, VfmChange, VfmSpec

GOOD: dict[str, Any] = {"name": "v", "backbone": "m", "head": {"kind": "embedding"}}


def refused(kind: type[Any], value: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(kind, value, source="here")
    assert caught.value.message.startswith("here: ")
    assert caught.value.field
    assert caught.value.field in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({**GOOD, "wieght": 2}, "wieght"),
        ({**GOOD, "limits": {"max_pendign": 1}}, "limits.max_pendign"),
        ({**GOOD, "slo": {"deadline": 1}}, "slo.deadline"),
        ({**GOOD, "head": {"kind": "embedding", "labels": ["a"]}}, "head.embedding.labels"),
    ],
)
def test_an_unknown_key_is_named(value: dict[str, Any], field: str) -> None:
    error = refused(VfmSpec, value)
    assert error.field == field
    assert "unknown key" in error.message


@pytest.mark.parametrize("key", ["name", "backbone"])
def test_a_missing_key_is_named(key: str) -> None:
    assert refused(VfmSpec, {k: v for k, v in GOOD.items() if k != key}).field == key


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"head": None}, "either head, or heads"),
        ({"heads": {"a": {"kind": "embedding"}}}, "either head, or heads"),
        ({"head": None, "heads": {"a": {"kind": "similarity"}}}, "of its own"),
        ({"head": None, "heads": {"a": {"kind": "ranking"}, "b": {"kind": "tagging", "labels": ["x"]}}}, "of its own"),
        ({"head": None, "heads": {"a": {"kind": "generation"}}}, "of its own"),
        ({"head": None, "heads": {"a": {"kind": "embedding"}, "b": {"kind": "generation"}}}, "of its own"),
        ({"input": {"template": "no place"}}, "exactly once"),
        ({"input": {"template": "{text} {text}"}}, "exactly once"),
        ({"input": {"pair_template": "{text}"}}, "exactly once"),
    ],
)
def test_what_does_not_go_together(value: dict[str, Any], what: str) -> None:
    assert what in refused(VfmSpec, {**GOOD, **value}).message


def test_one_head_has_no_name_and_several_have() -> None:
    assert list(parse(VfmSpec, GOOD).outputs) == [""]
    several = parse(VfmSpec, {**GOOD, "head": None, "heads": {"a": {"kind": "embedding"}, "b": {"kind": "features"}}})
    assert (list(several.outputs), several.kinds) == (["a", "b"], {"embedding", "features"})


@pytest.mark.parametrize(
    ("slo", "pass_ms"),
    [
        ({}, 0),
        ({"deadline_ms": 5}, 0),
        ({"latency_ms": 100}, 40),
        ({"ttft_ms": 200}, 80),
        ({"inter_token_ms": 50}, 40),
        ({"latency_ms": 1000, "ttft_ms": 300, "inter_token_ms": 100}, 80),
        ({"latency_ms": 1000, "ttft_ms": 150, "inter_token_ms": 100}, 60),
        ({"latency_ms": 1, "inter_token_ms": 1}, 0.4),
    ],
)
def test_targets_say_how_long_a_pass_may_take(slo: dict[str, int], pass_ms: float) -> None:
    """A job waits for one pass and runs in the next; a token waits for one. Something is left for the way."""
    assert parse(Slo, slo).targets.pass_ms == pytest.approx(pass_ms)


@given(st.text(max_size=30), st.text(max_size=10), st.text(max_size=10))
def test_a_template_puts_the_text_in_its_place(text: str, before: str, after: str) -> None:
    made = InputSpec(template=f"{before}{{text}}{after}") if "{text}" not in before + after else InputSpec()
    done = made.text(text)
    assert done[made.lead : made.lead + len(text)] == text
    assert len(done) == len(made.template) - len("{text}") + len(text)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"weight": 0}, "weight"),
        ({"weight": 1e-9}, "weight"),
        ({"weight": -1}, "weight"),
        ({"weight": 1e7}, "weight"),
        ({"weight": "heavy"}, "weight"),
        ({"limits": {"max_pending": 0}}, "limits.max_pending"),
        ({"limits": {"rate": 0}}, "limits.rate"),
        ({"limits": {"rate": 1e-300}}, "limits.rate"),
        ({"limits": {"rate": 9e-4}}, "limits.rate"),
        ({"limits": {"rate": 1e13}}, "limits.rate"),
        ({"limits": {"rate": float("inf")}}, "limits.rate"),
        ({"limits": {"rate": float("nan")}}, "limits.rate"),
        ({"limits": {"max_pending_bytes": 0}}, "limits.max_pending_bytes"),
        ({"limits": {"max_call_bytes": 10**15}}, "limits.max_call_bytes"),
        ({"limits": {"max_input_bytes": 0}}, "limits.max_input_bytes"),
        ({"slo": {"deadline_ms": 0}}, "slo.deadline_ms"),
        ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms"),
        ({"slo": {"inter_token_ms": 86_400_001}}, "slo.inter_token_ms"),
        ({"head": {"kind": "generation", "max_tokens": 0}}, "head.generation.max_tokens"),
        ({"head": {"kind": "generation", "max_tokens": 1_000_001}}, "head.generation.max_tokens"),
        ({"head": {"kind": "generation", "chat_template": ""}}, "head.generation.chat_template"),
        ({"head": {"kind": "generation", "system": "x" * 65_537}}, "head.generation.system"),
        ({"head": {"kind": "generation", "pooling": "mean"}}, "head.generation.pooling"),
        ({"head": {"kind": "poetry"}}, "head"),
        ({"head": {}}, "head"),
        ({"head": "embedding"}, "head"),
        ({"head": {"kind": "classification", "labels": ["one"]}}, "head.classification.labels"),
        ({"head": {"kind": "classification", "labels": ["one", ""]}}, "head.classification.labels.1"),
        ({"head": {"kind": "tagging", "labels": []}}, "head.tagging.labels"),
    ],
)
def test_values_out_of_bounds_are_named(more: dict[str, Any], field: str) -> None:
    assert refused(VfmSpec, {**GOOD, **more}).field == field


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_a_number(weight: float) -> None:
    assert refused(VfmSpec, {**GOOD, "weight": weight}).field == "weight"


@pytest.mark.parametrize("value", [None, 5, "v", [], [GOOD]])
def test_not_a_mapping(value: Any) -> None:
    assert refused(VfmSpec, value).field == "(whole)"


@given(st.text(max_size=10))
def test_names_become_parts_of_keys(name: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        assert parse(VfmSpec, {**GOOD, "name": name}).name == name
    else:
        assert refused(VfmSpec, {**GOOD, "name": name}).field == "name"


@pytest.mark.parametrize(
    "name", ["a:b", "a#b", "{a}", "a b", "", ".a", "-a", "a\n", "é", "a/b", "x" * 129, "a|b", "a*"]
)
@pytest.mark.parametrize("key", ["name", "backbone"])
def test_bad_names(name: str, key: str) -> None:
    assert refused(VfmSpec, {**GOOD, key: name}).field == key


def test_long_names_are_fine() -> None:
    assert parse(VfmSpec, {**GOOD, "name": "a" + "x" * 127})


def test_specs_do_not_change() -> None:
    spec = parse(VfmSpec, GOOD)
    with pytest.raises(ValidationError):
        spec.weight = 2.0


def test_json_round_trip() -> None:
    spec = VfmSpec(name="v", backbone="m", head=Embedding(pooling="cls"), weight=2.5)
    assert VfmSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_change_names_what_cannot_be_changed() -> None:
    assert refused(VfmChange, {"backbone": "other"}).field == "backbone"
    assert refused(VfmChange, {"weight": 0}).field == "weight"


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        (WorkerSpec, {"device": "tpu"}, "device"),
        (WorkerSpec, {"lease_ms": 10}, "lease_ms"),
        (WorkerSpec, {"max_attempts": 0}, "max_attempts"),
        (WorkerSpec, {"kv_bytes": 1000}, "kv_bytes"),
        (GatewaySpec, {"port": 70_000}, "port"),
        (GatewaySpec, {"api_keys": ["short"]}, "api_keys.0"),
        (BackboneSpec, {"name": "m", "model": ""}, "model"),
        (BackboneSpec, {"name": "m", "model": "x", "dtype": "int8"}, "dtype"),
    ],
)
def test_other_specs(kind: type[Any], value: dict[str, Any], field: str) -> None:
    assert refused(kind, value).field == field


# --- fleets -----------------------------------------------------------------------------------------------------------

FLEET = """
artifacts = "./artifacts"
packages = ["packages/one", "/absolute/two"]
[backbone]
name = "m"
model = "{model}"
[[vfms]]
name = "v"
backbone = "m"
head = {{ kind = "embedding" }}
"""


def fleet_file(folder: Path, model: str = "./model") -> Path:
    path = folder / "fleet.toml"
    path.write_text(FLEET.format(model=model))
    return path


def test_paths_are_relative_to_the_fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleets").mkdir()
    fleet_file(tmp_path / "fleets")
    monkeypatch.chdir(tmp_path)
    fleet = load_fleet(Path("fleets/fleet.toml"))
    base = tmp_path / "fleets"
    assert Path(fleet.backbone.model) == base / "model"
    assert Path(fleet.artifacts) == base / "artifacts"
    assert list(fleet.packages) == [base / "packages/one", Path("/absolute/two")]
    assert fleet.broker == "embedded"
    assert [v.name for v in fleet.vfms] == ["v"]


def test_models_of_several_backbones_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('[[backbones]]\nname = "a"\nmodel = "./one"\n[[backbones]]\nname = "b"\nmodel = "org/two"\n')
    assert [b.model for b in load_fleet(path).hosted] == [str(tmp_path / "one"), "org/two"]


@pytest.mark.parametrize("model", ["org/name", "/abs/model"])
def test_hub_ids_and_absolute_models_stay(tmp_path: Path, model: str) -> None:
    assert load_fleet(fleet_file(tmp_path, model)).backbone.model == model


def test_a_model_may_lie_in_the_home_folder(tmp_path: Path) -> None:
    assert load_fleet(fleet_file(tmp_path, "~/model")).backbone.model == str(Path.home() / "model")


def test_a_vfm_of_another_backbone_is_refused() -> None:
    error = refused(FleetSpec, {"backbone": {"name": "m", "model": "x"}, "vfms": [{**GOOD, "backbone": "other"}]})
    assert "other" in error.message
    assert error.field == "vfms.0.backbone"


BACKBONES: list[dict[str, Any]] = [{"name": "m", "model": "x"}, {"name": "n", "model": "y", "workers": 2}]


def test_several_backbones_each_with_its_settings() -> None:
    inner = {"threads": 4, "residency": {"host_bytes": 5}}
    fleet = parse(
        FleetSpec,
        {
            "worker": {"threads": 1, "lease_ms": 500, "residency": {"device_bytes": 7}},
            "backbones": [BACKBONES[0], {**BACKBONES[1], "worker": inner}],
            "vfms": [GOOD, {**GOOD, "name": "w", "backbone": "n"}],
        },
    )
    m, n = fleet.hosted
    assert (m.name, m.workers, n.name, n.workers) == ("m", 1, "n", 2)
    assert (m.worker.threads, m.worker.lease_ms) == (1, 500)
    assert (n.worker.threads, n.worker.lease_ms) == (4, 500)
    assert (n.worker.residency.device_bytes, n.worker.residency.host_bytes) == (7, 5)
    assert (fleet.find("n"), fleet.find("m")) == (n, m)
    assert fleet.names == ["m", "n"]


def test_one_backbone_need_not_be_named() -> None:
    fleet = parse(FleetSpec, {"backbone": {**BACKBONES[1], "worker": {"threads": 3}}, "worker": {"kv_bytes": 1 << 20}})
    found = fleet.find(None)
    assert (found, found.worker.threads, found.worker.kv_bytes) == (fleet.find("n"), 3, 1 << 20)


@pytest.mark.parametrize("name", [None, "o"])
def test_which_of_several_backbones_must_be_said(name: str | None) -> None:
    with pytest.raises(InvalidInput, match="m, n") as caught:
        parse(FleetSpec, {"backbones": BACKBONES}).find(name)
    assert caught.value.field == "backbone"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "backbones"),
        ({"backbones": []}, "backbones"),
        ({"backbone": BACKBONES[0], "backbones": BACKBONES}, "backbones"),
        ({"backbones": [*BACKBONES, {"name": "m", "model": "z"}]}, "backbones.2.name"),
        ({"backbones": BACKBONES, "vfms": [GOOD, GOOD]}, "vfms.1.name"),
        ({"backbones": BACKBONES, "vfms": [GOOD, {**GOOD, "name": "w", "backbone": "o"}]}, "vfms.1.backbone"),
        ({"backbones": [BACKBONES[0], {**BACKBONES[1], "worker": {"thread": 1}}]}, "backbones.1.worker.thread"),
        ({"backbones": [{**BACKBONES[0], "workers": 0}]}, "backbones.0.workers"),
    ],
)
def test_what_does_not_go_together_in_a_fleet_is_named(value: dict[str, Any], field: str) -> None:
    assert refused(FleetSpec, value).field == field


def test_fleets_of_two_brokers_share_no_artifacts() -> None:
    fleet = parse(FleetSpec, {"backbone": BACKBONES[0]})
    places = [
        artifacts_of(fleet, url) for url in ("redis://a:6379", "redis://b:6379", "redis://a:6380", "redis://a:6379/1")
    ]
    assert len(set(places)) == len(places)
    # Who asks with which password is the same fleet.
    assert artifacts_of(fleet, "redis://:secret@a:6379") == places[0]
    assert artifacts_of(fleet.model_copy(update={"artifacts": "s3://b"}), "redis://a") == "s3://b"


@pytest.mark.parametrize("broker", ["http://x", "redis:", "", "localhost:6379"])
def test_brokers_are_urls(broker: str) -> None:
    assert refused(FleetSpec, {"backbone": {"name": "m", "model": "x"}, "broker": broker}).field == "broker"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.toml: cannot be read"):
        load_fleet(tmp_path / "none.toml")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_toml(tmp_path)  # a folder


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"[a]\n[a]\n", b"\x00"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"broken\.toml: not valid TOML"):
        load_toml(path)


def test_the_file_is_named_beside_the_key(tmp_path: Path) -> None:
    path = fleet_file(tmp_path)
    path.write_text(path.read_text() + "typo = 1\n")
    with pytest.raises(InvalidInput, match=r"fleet\.toml: vfms\.0\.typo: unknown key"):
        load_fleet(path)
