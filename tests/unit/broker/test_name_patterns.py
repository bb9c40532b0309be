"""Patterns of module names: what PEFT's `re` finds, but in linear time, and no more than both read alike."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.name_patterns import MAX_EXPRESSIONS, MAX_LENGTH, MAX_PATTERNS, NamePatterns, check_patterns
from fmplex_broker.packages.peft import read_config
from fmplex_broker.packages.peft_ia3 import Ia3Config
from fmplex_broker.packages.peft_lora import LoraConfig
from tests.support.hanging import within

BEFORE = r".*\."
MODULE = "model.layers." + "1" * 60 + ".mlp.up_proj"
# Each keeps Python's `re` busy for longer than anybody waits.
ENDLESS = [
    ".?" * 60 + "z",
    "(1|1)?" * 40 + "z",
    "(.?.?)*z",
    "(.+)+z",
    "(.*)*z",
    "(1|11)+2",
    "(.|.)*z",
    "(.*.*.*)*z",
    ".{1,9}?" * 30 + "z",
    "(1?)" * 50 + "z",
]


def lora(**options: Any) -> LoraConfig:
    config = read_config({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **options})
    assert isinstance(config, LoraConfig)
    return config


def ia3(feedforward: Any) -> Ia3Config:
    config = read_config({"peft_type": "IA3", "feedforward_modules": feedforward})
    assert isinstance(config, Ia3Config)
    return config


def peft_finds(pattern: str, name: str) -> bool:
    """PEFT 0.21 `utils.other.get_pattern_key`."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ENDLESS)
def test_no_pattern_takes_longer_than_its_name_is_long(pattern: str) -> None:
    with within(20):
        assert lora(rank_pattern={pattern: 3}).rank(MODULE) == 2
        assert lora(alpha_pattern={pattern: 3}).scaling(MODULE) == 2
        assert not ia3(pattern).feedforward(MODULE)


def test_as_many_patterns_as_are_taken_on_as_many_modules_as_there_are() -> None:
    names = {f"model.layers.{i}.self_attn.q_proj": 3 for i in range(MAX_PATTERNS)}
    with within(20):
        config = lora(rank_pattern=names, alpha_pattern=names)
        for i in range(0, MAX_PATTERNS, 8):
            assert config.rank(f"model.layers.{i}.self_attn.q_proj") == 3
            assert config.rank(f"model.layers.{i}.self_attn.k_proj") == 2


# --- what they find ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "name", "found"),
    [
        (["query"], "layer.0.query", "query"),
        (["query"], "layer.0.my_query", None),
        (["uery"], "layer.0.query", None),
        (["0.query"], "layer.0.query", "0.query"),
        (["0.query"], "layer.0xquery", "0.query"),  # a dot is any sign, as it is to PEFT
        (["r.0.q"], "layer.0.q", None),
        (["layer.0"], "layer_0", "layer.0"),
        ([r"layer\.0"], "layer_0", None),
        (["^query"], "query", "^query"),
        (["^query"], "layer.query", None),
        ([r".*\.(q|v)_proj"], "model.layers.3.v_proj", r".*\.(q|v)_proj"),
        ([r"layers\.(1[0-9]|2[0-3])\..*"], "model.layers.17.mlp", r"layers\.(1[0-9]|2[0-3])\..*"),
        ([r"layers\.(1[0-9]|2[0-3])\..*"], "model.layers.7.mlp", None),
        ([r"layers\.\d{1,2}\.\w+"], "model.layers.17.mlp_up", r"layers\.\d{1,2}\.\w+"),
        ([r"[\w.]+\.q"], "a.b.q", r"[\w.]+\.q"),
        ([r"[^\d.]+"], "a.bc", r"[^\d.]+"),
        (["v", "query", ".*"], "a.query", "query"),
        (["v|a"], "x.a", "v|a"),
        ([], "a", None),
    ],
)
def test_the_first_that_matches_a_whole_dotted_ending(patterns: list[str], name: str, found: str | None) -> None:
    check_patterns("rank_pattern", patterns)
    assert NamePatterns(patterns, BEFORE).first(name) == found
    assert next((p for p in patterns if peft_finds(p, name)), None) == found


characters = st.sampled_from(["a", "b", ".", r"\.", r"\d", r"\w", "1", "_", "-", "[ab.]", r"[^\w]", "[a-c-]", r"[\d.]"])
counted = st.tuples(characters, st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "{1,}", "*?", "+?"])).map(
    "".join
)
expressions = st.recursive(
    st.lists(counted, max_size=4).map("".join),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("|".join),
        st.tuples(st.sampled_from(["(", "(?:"]), inner, st.sampled_from([")", ")*", ")+", ")?"])).map("".join),
        st.tuples(inner, inner).map("".join),
        st.tuples(st.sampled_from(["^", ""]), inner, st.sampled_from(["$", ""])).map("".join),
    ),
    max_leaves=4,
)
names = st.text("ab1_-.", min_size=1, max_size=9)


@given(expressions, names)
def test_whatever_is_taken_finds_what_peft_finds(pattern: str, name: str) -> None:
    check_patterns("rank_pattern", [pattern])
    assert (NamePatterns([pattern], BEFORE).first(name) is not None) == peft_finds(pattern, name)
    assert (NamePatterns([pattern]).first(name) is not None) == (re.fullmatch(pattern, name) is not None)


@given(st.text(max_size=20) | st.text(r"ab.\d()|[]^$*+?{}1,-:!<>=P&~", max_size=20), names)
def test_whatever_is_written_it_is_refused_or_finds_what_peft_finds(pattern: str, name: str) -> None:
    try:
        check_patterns("rank_pattern", [pattern])
    except PackageRejected:
        return
    assert (NamePatterns([pattern], BEFORE).first(name) is not None) == peft_finds(pattern, name)


# --- what is refused --------------------------------------------------------------------------------------------------

NOT_TAKEN = [
    "[",
    "(",
    ")",
    "a)|(b",
    "*",
    "a**",
    "a*+",
    "a++",
    "a{10}",
    "a{1,99}",
    "(a{9}){9}",
    "(?=a)b",
    "(?!a)b",
    "(?<=a)b",
    "(?>a*)b",
    r"(a)\1",
    "(?P<n>a)(?P=n)",
    "(?i)a",
    "(?i:a)",
    "(?x) a",
    "(?#c)a",
    r"\Aa\Z",
    r"\bq",
    r"\x41",
    "[a&&b]",
    "[a--b]",
    "[[ab]]",
    "[z-a]",
    "q\n",
    "q ",
    "ä",
    "\ud800",
    "\0",
]


@pytest.mark.parametrize("pattern", NOT_TAKEN)
@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern", "feedforward_modules"])
def test_what_is_more_is_refused_by_name_and_told_what_to_write(option: str, pattern: str) -> None:
    with pytest.raises(PackageRejected) as caught:
        ia3(pattern) if option == "feedforward_modules" else lora(**{option: {pattern: 3}})
    assert caught.value.field == "adapter"
    assert f"{option}: pattern {pattern!r} is" in caught.value.message


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_number_and_length_have_bounds(option: str) -> None:
    def refused(*patterns: str) -> str:
        with pytest.raises(PackageRejected) as caught:
            lora(**{option: dict.fromkeys(patterns, 3)})
        return caught.value.message

    assert f"at most {MAX_PATTERNS} are taken" in refused(*(f"a{i}" for i in range(MAX_PATTERNS + 1)))
    assert f"at most {MAX_LENGTH} are taken" in refused("a" * (MAX_LENGTH + 1))
    many = [f"{i}|" + "x" * (MAX_LENGTH - 5) for i in range(100, 120)]
    assert f"more than {MAX_EXPRESSIONS} characters" in refused(*many)
    lora(**{option: dict.fromkeys(["a" * MAX_LENGTH, *many[:16]], 3)})


def test_feedforward_names_have_bounds_too() -> None:
    assert ia3(["w"] * MAX_PATTERNS).feedforward("x.w")
    for names in (["w"] * (MAX_PATTERNS + 1), ["w" * (MAX_LENGTH + 1)]):
        with pytest.raises(PackageRejected, match="feedforward_modules"):
            ia3(names)
