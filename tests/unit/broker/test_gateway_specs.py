"""The gateway's table of a fleet file: what is wrong with a key is said by its place, and the key itself never."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import FleetSpec, load_fleet
from fmplex_broker.specs.gateway import GatewaySpec, KeySpec, read_keys
from fmplex_broker.specs.schema import parse

REPO = Path(__file__).resolve().parents[3]
KEY = {"name": "team-a", "key": "secret-of-a", "scopes": ["infer"]}
OTHER = {"name": "team-b", "key": "secret-of-b", "scopes": ["infer", "deploy"], "models": ["b-*"]}
ADMIN = {"name": "ops", "key": "secret-of-ops", "scopes": ["admin"]}


def refused(**gateway: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(FleetSpec, {"backbone": {"name": "m", "model": "x"}, "gateway": gateway}, source="here")
    assert caught.value.message.startswith(f"here: {caught.value.field}: ")
    assert "secret" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("keys", "field", "says"),
    [
        ([KEY, OTHER, {**OTHER, "name": "team-a"}], "keys.2.name", "gateway.keys.0 has this name too"),
        ([KEY, {**OTHER, "key": "secret-of-a"}], "keys.1.key", "gateway.keys.0.key is the same key"),
        ([{**KEY, "key": "secret"}], "keys.0.key", "8 to 1024 characters"),
        ([{**KEY, "key": ""}], "keys.0.key", "8 to 1024 characters"),
        ([{**KEY, "key": "secret-" * 200}], "keys.0.key", "8 to 1024 characters"),
        ([{**KEY, "key": "secret of a"}], "keys.0.key", "printable ASCII characters without spaces"),
        ([{**KEY, "key": "secret-öf-a"}], "keys.0.key", "printable ASCII"),
        ([{**KEY, "key": "secret-of-a\n"}], "keys.0.key", "printable ASCII"),
        ([{**KEY, "key": 12345678}], "keys.0.key", "string"),
        ([{**KEY, "key_file": "a.key"}], "keys.0", "either key, or key_file"),
        ([{"name": "team-a", "scopes": ["infer"]}], "keys.0", "either key, or key_file"),
        ([{**KEY, "scopes": ["infer", "rule"]}], "keys.0.scopes.1", "'infer', 'deploy' or 'admin'"),
        ([{**KEY, "scopes": []}], "keys.0.scopes", "at least 1"),
        ([{**KEY, "scopes": "infer"}], "keys.0.scopes", "valid frozenset"),
        ([{"name": "team-a", "key": "secret-of-a"}], "keys.0.scopes", "required"),
        ([{**KEY, "models": []}], "keys.0.models", "at least 1"),
        ([{**KEY, "models": [""]}], "keys.0.models.0", "at least 1"),
        ([{**ADMIN, "models": ["a-*"]}], "keys.0.models", "an admin may use every vFM"),
        ([{**KEY, "name": "team a"}], "keys.0.name", "pattern"),
        ([{**KEY, "name": "anonymous"}], "keys.0.name", "keys without a name"),
        ([{**KEY, "name": "api_keys.0"}], "keys.0.name", "keys without a name"),
        ([{**KEY, "modles": ["*"]}], "keys.0.modles", "unknown key"),
    ],
)
def test_a_wrong_key_is_named_by_its_place(keys: list[dict[str, Any]], field: str, says: str) -> None:
    error = refused(keys=keys)
    assert error.field == f"gateway.{field}"
    assert says in error.message


def test_keys_without_names_are_keys_too() -> None:
    assert refused(api_keys=["fine-and-long", "secret"]).field == "gateway.api_keys.1"
    assert refused(api_keys=["secret-of-x", "secret-of-x"]).field == "gateway.api_keys.1"
    twice = refused(api_keys=["secret-of-a"], keys=[KEY])
    assert (twice.field, "gateway.api_keys.0 is the same key" in twice.message) == ("gateway.keys.0.key", True)


def test_what_can_be_public_is_named() -> None:
    assert refused(public=["metrics", "healthz"]).field == "gateway.public.1"


@given(st.text(max_size=20) | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=7, max_size=20))
def test_a_key_is_eight_printable_characters_of_ascii(key: str) -> None:
    said = {"name": "k", "key": key, "scopes": ["infer"]}
    if re.fullmatch(r"[!-~]{8,1024}", key):
        ((_, secret),) = read_keys(parse(GatewaySpec, {"keys": [said]}))
        assert secret.get_secret_value() == key
    else:
        with pytest.raises(InvalidInput) as caught:
            parse(KeySpec, said)
        assert caught.value.field == "key"
        assert len(key) < 8 or key not in caught.value.message


def test_no_key_is_in_a_text_of_the_spec() -> None:
    spec = parse(GatewaySpec, {"api_keys": ["secret-of-all"], "keys": [KEY, OTHER]})
    for text in (repr(spec), str(spec), spec.model_dump_json(), repr(spec.model_dump()), repr(read_keys(spec))):
        assert "secret" not in text.replace("SecretStr", "").lower()


def test_all_keys_with_their_names() -> None:
    spec = parse(GatewaySpec, {"api_keys": ["one-of-two", "two-of-two"], "keys": [KEY, OTHER]})
    assert [(key.name, key.scopes, key.models, secret.get_secret_value()) for key, secret in read_keys(spec)] == [
        ("api_keys.0", {"admin"}, ("*",), "one-of-two"),
        ("api_keys.1", {"admin"}, ("*",), "two-of-two"),
        ("team-a", {"infer"}, ("*",), "secret-of-a"),
        ("team-b", {"infer", "deploy"}, ("b-*",), "secret-of-b"),
    ]


FLEET = """
[backbone]
name = "m"
model = "x"
[[gateway.keys]]
name = "a"
key_file = "keys/a"
scopes = ["infer"]
[[gateway.keys]]
name = "b"
key_file = "/run/secrets/b"
scopes = ["infer"]
[[gateway.keys]]
name = "c"
key_file = "~/c.key"
scopes = ["infer"]
[[gateway.keys]]
name = "d"
key = "a-key-of-d"
scopes = ["infer"]
"""


def test_key_files_are_relative_to_the_fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleets").mkdir()
    (tmp_path / "fleets" / "fleet.toml").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    files = [key.key_file for key in load_fleet(Path("fleets/fleet.toml")).gateway.keys]
    assert files == [tmp_path / "fleets/keys/a", Path("/run/secrets/b"), Path.home() / "c.key", None]


def test_the_example_of_the_readme_is_right() -> None:
    example = re.search(r"(?ms)^```toml\n(\[gateway\].*?)^```", (REPO / "README.md").read_text())
    assert example is not None
    spec = parse(GatewaySpec, tomllib.loads(example[1])["gateway"])
    assert [(key.name, key.models) for key in spec.keys] == [("team-a", ("team-a-*", "shared")), ("ops", ("*",))]


def test_the_comment_of_the_compose_file_is_right() -> None:
    _, gateway, lines = (REPO / "configs" / "compose.toml").read_text().partition("[gateway]\n")
    example = re.sub(r"(?m)^# (?=\[|\w+ = )", "", gateway + lines)
    assert [key.name for key in parse(GatewaySpec, tomllib.loads(example)["gateway"]).keys] == ["team-a"]
