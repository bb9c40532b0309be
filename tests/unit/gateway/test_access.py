"""Keys are principals: whose key it is, whatever else is sent, and that no key is ever shown."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput, Unauthorized
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.specs.schema import parse
from fmplex_gateway.access import Access, Principal
from tests.unit.gateway.site import site

TEAM = {"name": "team-a", "key": "key-of-team-a", "scopes": ["infer"], "models": ["a-*", "common"]}
OTHER = {"name": "team-b", "key": "key-of-team-b", "scopes": ["infer", "deploy"]}
SPEC = {"api_keys": ["first-unnamed", "second-unnamed"], "keys": [TEAM, OTHER]}


def who(access: Access, key: str | bytes, scheme: bytes = b"Bearer", path: str = "/v1/vfms") -> Principal:
    given = key.encode() if isinstance(key, str) else key
    return access.principal({"path": path, "headers": [(b"host", b"x"), (b"authorization", scheme + b" " + given)]})


def access_of(spec: dict[str, Any]) -> Access:
    return Access(parse(GatewaySpec, spec))


def test_each_key_is_somebody() -> None:
    access = access_of(SPEC)
    assert who(access, "key-of-team-a") == Principal("team-a", frozenset({"infer"}), ("a-*", "common"))
    assert who(access, "key-of-team-b") == Principal("team-b", frozenset({"infer", "deploy"}), ("*",))
    for i, key in enumerate(SPEC["api_keys"]):
        assert who(access, key) == Principal(f"api_keys.{i}", frozenset({"admin"}), ("*",))


def test_names_stay_when_keys_are_added_or_replaced() -> None:
    """What belongs to a principal is found again by its name."""
    more = {"api_keys": SPEC["api_keys"], "keys": [{**OTHER, "name": "new"}, {**TEAM, "key": "another-key"}]}
    assert who(access_of(more), "another-key").name == who(access_of(SPEC), "key-of-team-a").name == "team-a"


def test_without_keys_everybody_is_an_anonymous_admin() -> None:
    access = access_of({})
    for headers in ([], [(b"authorization", b"Bearer unused")]):
        principal = access.principal({"path": "/v1/vfms", "headers": headers})
        assert (principal.name, principal.admin) == ("anonymous", True)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_the_scheme_is_written_in_any_case(scheme: bytes) -> None:
    assert who(access_of(SPEC), "key-of-team-a", scheme).name == "team-a"


@given(st.binary(max_size=40), st.sampled_from([b"Bearer", b"Basic", b""]))
def test_no_other_key_is_anybodys(given_key: bytes, scheme: bytes) -> None:
    access = access_of(SPEC)
    with pytest.raises(Unauthorized, match="Authorization: Bearer"):
        who(access, given_key, scheme)


@pytest.mark.parametrize(("path", "public"), [("/metrics", "metrics"), ("/docs", "docs"), ("/openapi.json", "docs")])
def test_what_is_public_is_asked_for_by_nobody_in_particular(path: str, public: str) -> None:
    principal = who(access_of({**SPEC, "public": [public]}), "key-of-team-a", path=path)
    assert (principal.scopes, principal.uses_all) == (frozenset(), True)
    assert who(access_of(SPEC), "key-of-team-a", path=path).name == "team-a"


# --- what a principal may do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "infer", "deploy"),
    [({"infer"}, True, False), ({"deploy"}, False, True), ({"infer", "deploy"}, True, True), ({"admin"}, True, True)],
)
def test_an_admin_has_every_scope_and_no_other_has_two(scopes: set[Any], infer: bool, deploy: bool) -> None:
    principal = Principal("p", frozenset(scopes))
    assert [principal.has_any(frozenset({s})) for s in ("infer", "deploy")] == [infer, deploy]
    assert principal.has_any(frozenset({"infer", "deploy"}))
    assert principal.has_any(frozenset({"admin"})) == principal.admin == ("admin" in scopes)
    assert principal.sees_prompts == deploy


@pytest.mark.parametrize(
    ("models", "vfm", "may"),
    [
        (("*",), "anything", True),
        (("a-*",), "a-b", True),
        (("a-*",), "a-", True),
        (("a-*",), "b-a-", False),
        (("a-*",), "A-b", False),
        (("spam",), "spam", True),
        (("spam",), "spam2", False),
        (("x?", "[st]o*"), "topics", True),
        (("x?", "[st]o*"), "xyz", False),
    ],
)
def test_patterns_say_which_vfms_may_be_used(models: tuple[str, ...], vfm: str, may: bool) -> None:
    principal = Principal("p", frozenset({"infer"}), models)
    assert principal.may_use(vfm) == may
    assert principal.uses_all == (models == ("*",))
    assert Principal("p", frozenset({"admin"}), models).may_use(vfm)


# --- keys in files ----------------------------------------------------------------------------------------------------


def in_file(path: Path, **more: Any) -> GatewaySpec:
    spec = {"api_keys": ["an-unnamed-key"], "keys": [OTHER, {"name": "f", "scopes": ["infer"], "key_file": path.name}]}
    return parse(GatewaySpec, spec | more).located(path.parent)


@pytest.mark.parametrize("content", [b"key-in-a-file", b"key-in-a-file\n", b"key-in-a-file\r\n"])
def test_a_key_may_lie_in_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "team.key"
    path.write_bytes(content)
    assert who(Access(in_file(path)), "key-in-a-file") == Principal("f", frozenset({"infer"}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"", "8 to 1024 characters"),
        (b"short\n", "8 to 1024 characters"),
        (b"x" * 5000, "8 to 1024 characters"),
        (b"two-keys-in\none-file", "printable ASCII"),
        (b"with a space", "printable ASCII"),
        ("schlüssel".encode(), "printable ASCII"),
        (b"\xff\xfe\x00binary", "printable ASCII"),
        (b"an-unnamed-key\n", "'api_keys.0' has the same key"),
        (b"key-of-team-b", "'team-b' has the same key"),
    ],
)
def test_a_file_without_a_key_of_its_own_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "team.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=says) as caught:
        Access(in_file(path))
    assert caught.value.field == "gateway.keys.1.key_file"
    assert caught.value.message.startswith("gateway.keys.1.key_file: ")
    assert not content or content.strip() not in caught.value.message.encode()


# --- no key is shown --------------------------------------------------------------------------------------------------


async def test_no_key_is_in_a_log_or_an_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    async with site(tmp_path, SPEC) as place:

        async def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(place.queue.registry, "page", fails)
        answers = [await place.ask("GET", "/v1/vfms", key) for key in ("key-of-team-b", "almost-key-of-team-b")]
    assert [answer.status_code for answer in answers] == [500, 401]
    assert "a bug" in caplog.text
    shown = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    assert "key-of-team-b" not in shown
