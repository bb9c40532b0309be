"""A vFM's status as it is shown, with and without what its team has written as prompts."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from fmplex_broker.specs import heads
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.heads import PROMPTS, InputSpec
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec

TOLD = {"max_tokens": None, "truncate": False, "token_ids": False}
INPUT = {"template": "SECRET {text}", "pair_template": "SECRET {text_pair}", **TOLD}
DRAWN = dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))
PLAIN = {"kind": "generation", "max_tokens": 9, "stop": ["END"], "stop_token_ids": [7], **DRAWN}
BOT = {**PLAIN, "system": "SECRET", "chat_template": "SECRET {{ messages }}"}


def status(error: dict[str, Any] | None = None, **parts: Any) -> VfmStatus:
    spec = parse(VfmSpec, {"name": "v", "backbone": "m", **parts}) if parts else None
    return VfmStatus(name="v", backbone="m", status="serving", version="1", generation=1, serving=spec, error=error)


def test_prompts_are_left_out_and_nothing_else() -> None:
    bot = status(head=BOT, input=INPUT, weight=2)
    shown, whole = bot.describe().plain(prompts=False), bot.describe().plain()
    assert shown["head"] == PLAIN
    assert shown["input"] == TOLD
    assert (whole["head"], whole["input"]) == (BOT, INPUT)
    assert {**shown, "head": BOT, "input": INPUT} == whole


def test_prompts_are_left_out_of_each_of_several_heads_whatever_its_name() -> None:
    several = status(heads={"template": {"kind": "embedding"}, "system": {"kind": "features"}}, input=INPUT)
    shown = several.describe().plain(prompts=False)
    assert shown["heads"] == several.describe().plain()["heads"]
    assert (list(shown["heads"]), shown["head"], shown["input"]) == (["template", "system"], None, TOLD)


def test_a_version_on_offer_shows_none_either() -> None:
    spec = parse(VfmSpec, {"name": "v", "backbone": "m", "head": BOT})
    offered = VfmStatus(name="v", backbone="m", status="validating", version="", generation=1, candidate=("1", spec))
    assert "SECRET" not in str(offered.describe().plain(prompts=False))
    assert "SECRET" in str(offered.describe().plain())


def test_a_vfm_without_an_accepted_version_is_shown_the_same() -> None:
    assert status().describe().plain(prompts=False) == status().describe().plain()


@pytest.mark.parametrize(("field", "kept"), [("head.chat_template", False), ("head", True), (None, True)])
def test_an_error_that_may_quote_a_prompt_is_told_without_its_message(field: str | None, kept: bool) -> None:
    error = {"code": "package_rejected", "message": "it holds SECRET", **({"field": field} if field else {})}
    rejected = status(error=error, head=BOT)
    shown = rejected.describe().plain(prompts=False)["error"]
    assert (shown["code"], shown.get("field"), "SECRET" in shown["message"]) == ("package_rejected", field, kept)
    assert rejected.describe().plain()["error"] == error


def test_every_free_text_of_heads_and_input_is_a_prompt() -> None:
    """Whoever adds a field that teams write text into must decide whether all callers may read it."""
    kinds = [*get_args(get_args(heads.Head)[0]), InputSpec]
    texts = {
        name for kind in kinds for name, field in kind.model_fields.items() if field.annotation in (str, str | None)
    }
    assert texts == PROMPTS
