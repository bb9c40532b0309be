"""What a caller may ask of a generating vFM, and what is said when it cannot be."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import FmplexError, InvalidInput, JobFailed, PackageRejected, TextTooLong
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Embedding, Generation, InputSpec
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine import opening
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.protocol import Progress, Work
from fmplex_worker.workloads.generation import sandbox
from fmplex_worker.workloads.generation.constraints import _too_much
from fmplex_worker.workloads.generation.sampling import draw
from fmplex_worker.workloads.generation.sandbox import Sandbox, _Child
from tests.support import tiny, tiny_lm

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
Folders = Callable[[str], Path]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(lm_folder: Folders) -> PackedEngine:
    return tiny_lm.open_tiny(lm_folder("llama"))


@pytest.fixture(scope="module")
def digest(engine: PackedEngine) -> str:
    return tiny_lm.load(engine)


def text(engine: PackedEngine, digest: str, value: Any, **params: Any) -> dict[str, Any]:
    out: dict[str, Any] = tiny_lm.drive(engine, [tiny_lm.prepare(engine, digest, value, **params)])[0]
    if isinstance(out, FmplexError):
        raise out
    return out


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_is_kept(engine: PackedEngine, digest: str, seed: int) -> None:
    out = text(engine, digest, "a person:", schema=PERSON, seed=seed, temperature=1.5, max_tokens=150)
    assert out["finish_reason"] == "stop"
    person = json.loads(out["text"])
    assert set(person) == {"name", "age", "likes"}
    assert len(person["name"]) <= 6
    assert 0 <= person["age"] <= 120
    assert set(person["likes"]) <= {"tea", "coffee"}


def test_rows_with_and_without_a_schema_share_passes(engine: PackedEngine, digest: str) -> None:
    free = text(engine, digest, "the cat", temperature=0, max_tokens=30, ignore_eos=True)
    jobs = [
        tiny_lm.prepare(engine, digest, "the cat", temperature=0, max_tokens=30, ignore_eos=True),
        tiny_lm.prepare(engine, digest, "a person:", schema=PERSON, temperature=0, max_tokens=150),
    ]
    with_others, person = tiny_lm.drive(engine, jobs, shares=1.0)
    assert with_others["text"] == free["text"]
    json.loads(person["text"])


def test_the_same_seed_gives_the_same_text(engine: PackedEngine, digest: str) -> None:
    alone = text(engine, digest, "the dog", seed=5, max_tokens=30)
    others = [
        tiny_lm.prepare(engine, digest, p, seed=i, max_tokens=20) for i, p in enumerate(tiny_lm.prompts(5, 30, 50))
    ]
    job = tiny_lm.prepare(engine, digest, "the dog", seed=5, max_tokens=30)
    assert tiny_lm.drive(engine, [*others, job])[-1]["text"] == alone["text"]
    assert text(engine, digest, "the dog", seed=6, max_tokens=30)["text"] != alone["text"]


def test_a_stop_ends_the_text_before_it(engine: PackedEngine, digest: str) -> None:
    whole = text(engine, digest, "the cat", temperature=0, max_tokens=40, ignore_eos=True)
    stop = whole["text"][10:13]
    out = text(engine, digest, "the cat", temperature=0, max_tokens=40, ignore_eos=True, stop=[stop])
    assert out["finish_reason"] == "stop"
    assert out["text"] == whole["text"][: whole["text"].index(stop)]
    assert out["completion_tokens"] < whole["completion_tokens"]


def test_a_stop_token_ends_the_text(engine: PackedEngine, digest: str) -> None:
    job = tiny_lm.prepare(engine, digest, "the cat", temperature=0, max_tokens=20, ignore_eos=True)
    tiny_lm.drive(engine, [job])
    tokens = job.sequence.tokens[job.sequence.prompt :]
    out = text(engine, digest, "the cat", temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=[tokens[4]])
    assert out["completion_tokens"] == tokens.index(tokens[4]) + 1


def test_logprobs_come_one_a_token(engine: PackedEngine, digest: str) -> None:
    out = text(engine, digest, "the cat", temperature=0, max_tokens=10, logprobs=3, ignore_eos=True)
    assert len(out["logprobs"]) == out["completion_tokens"] == 10
    for entry in out["logprobs"]:
        assert len(entry["top"]) == 3
        assert entry["top"][0]["id"] == entry["id"], "greedy takes the best"
        assert entry["logprob"] <= 0


def test_logprobs_say_where_in_the_text_their_tokens_begin(engine: PackedEngine, digest: str) -> None:
    for seed in range(5):
        out = text(engine, digest, "the cat", seed=seed, max_tokens=30, logprobs=2, ignore_eos=True)
        told = out["logprobs"]
        whole = b"".join(bytes(entry.get("bytes", entry["token"].encode())) for entry in told)
        assert whole.decode(errors="replace") == out["text"]
        for entry in told:
            assert "bytes" in entry or out["text"].startswith(entry["token"], entry["at"])


def test_chats_go_through_the_template(engine: PackedEngine) -> None:
    digest = tiny_lm.load(engine, system="be brief")
    messages = [{"role": "user", "content": "hello"}]
    job = tiny_lm.prepare(engine, digest, {"messages": messages})
    decode = engine._backbone.tokenizer.whole.decode
    assert decode(job.sequence.tokens) == "<system>be brief\n<user>hello\n<assistant>"
    own = tiny_lm.load(engine, chat_template="{{ messages[-1].content }}!")
    assert decode(tiny_lm.prepare(engine, own, {"messages": messages}).sequence.tokens) == "hello!"


def test_a_template_is_put_around_texts(engine: PackedEngine) -> None:
    made = tiny.package(Generation(), input=InputSpec(template="Q: {text} A:"))
    engine.load(engine.fit(made))
    job = tiny_lm.prepare(engine, made.digest, "why?")
    assert engine._backbone.tokenizer.whole.decode(job.sequence.tokens) == "Q: why? A:"


@pytest.mark.parametrize(
    ("value", "params", "kind", "field"),
    [
        ([1] * 200, {}, TextTooLong, "input"),
        ("a", {"max_tokens": 5000}, TextTooLong, "params.max_tokens"),
        ([100_000], {}, InvalidInput, "input"),
        ("a", {"schema": {"type": "no such type"}}, InvalidInput, "params.schema"),
        ("a", {"temperature": -1}, InvalidInput, "temperature"),
        ("a", {"colour": "red"}, InvalidInput, "colour"),
    ],
)
def test_refused(engine: PackedEngine, digest: str, value: Any, params: dict[str, Any], kind: type, field: str) -> None:
    with pytest.raises(kind) as refusal:
        tiny_lm.prepare(engine, digest, value, **params)
    assert refusal.value.field == field


def test_a_template_that_refuses_a_chat_is_the_callers_mistake(engine: PackedEngine) -> None:
    digest = tiny_lm.load(engine, chat_template="{{ raise_exception('only one message') }}")
    with pytest.raises(InvalidInput, match="only one message"):
        tiny_lm.prepare(engine, digest, {"messages": [{"role": "user", "content": "x"}]})


@pytest.mark.parametrize(
    "endless",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(99) }}",
        "{% set s = 'x' * 10000 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_loops_for_ever_is_given_up(engine: PackedEngine, endless: str) -> None:
    digest, chat = tiny_lm.load(engine, chat_template=endless), {"messages": [{"role": "user", "content": "hello"}]}
    tiny_lm.prepare(engine, tiny_lm.load(engine, chat_template="{{ messages }}"), chat)
    begun = time.monotonic()
    for _ in range(10):
        with pytest.raises(InvalidInput, match="too long"):
            tiny_lm.prepare(engine, digest, chat)
    assert time.monotonic() - begun < 5, "nobody waits for it again and again"
    with pytest.raises(FmplexError, match="JSON"):
        tiny_lm.prepare(engine, tiny_lm.load(engine, chat_template="{{ raise_exception('JSON') }}"), chat)


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'a' * 2000000000 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ 'a' * 100000000 }}",
    ],
)
def test_a_template_that_takes_all_memory_is_given_up(engine: PackedEngine, bomb: str) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput, match=r"memory|too long|characters"):
        tiny_lm.prepare(engine, tiny_lm.load(engine, chat_template=bomb), chat)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"
    tiny_lm.prepare(engine, tiny_lm.load(engine, chat_template="{{ messages }}"), chat)


@pytest.mark.parametrize("content", ["hello", "Käse 🧀\n\"'", "half \ud83e of a pair"])
def test_a_templates_text_is_the_one_that_transformers_makes(engine: PackedEngine, content: str) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role | upper }}] {{ m.content | tojson }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt and not tools %}go{% endif %}{{ '%5.2f' % 1 }}"
    )
    prompts, chat = tiny_lm.generation(engine)._preparer._prompts, [{"role": "user", "content": content}]
    ours = prompts._chat(chat, Generation(chat_template=template), GenerationParams())
    theirs = prompts._tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert ours == theirs
    assert "<eos>" in ours


MUCH = [
    {"type": "integer", "multipleOf": 9_999_991},
    {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949)]},
    {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}},
    {"type": "string", "pattern": "^((a{500}){500}){500}$"},
]


@pytest.mark.parametrize("schema", MUCH)
def test_a_schema_that_takes_too_much_is_refused(engine: PackedEngine, digest: str, schema: dict[str, Any]) -> None:
    tiny_lm.prepare(engine, digest, "a", schema=PERSON)
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        with pytest.raises(InvalidInput, match="schema: ") as refusal:
            tiny_lm.prepare(engine, digest, "a", schema=schema)
        assert "\n" not in str(refusal.value)
        assert refusal.value.field == "params.schema"
    assert time.monotonic() - begun < 8, "it is tried once"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"
    tiny_lm.prepare(engine, digest, "a", schema={"type": "integer", "multipleOf": 25})


def test_names_and_data_are_no_divisors() -> None:
    assert _too_much({"type": "number", "multipleOf": 0.0001}) == ""
    assert _too_much({"properties": {"multipleOf": {"enum": [{"multipleOf": 99_999}]}}}) == ""
    assert "99.999" in _too_much({"$defs": {"a": {"items": [{"multipleOf": 99.999}]}}})
    nested = {"properties": {"default": {"items": {"properties": {"x": {"multipleOf": 99_999}}}}}}
    assert "property 'default[].x': a multipleOf" in _too_much(nested)


def test_a_schema_is_tried_once(engine: PackedEngine, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        tiny_lm.prepare(engine, digest, "a", schema=PERSON)
        monkeypatch.setattr(Sandbox, "_ask", None)


def test_another_process_takes_the_place_of_one_that_died(engine: PackedEngine, digest: str) -> None:
    for n in (3, 7):
        tiny_lm.prepare(engine, digest, "a", schema={"type": "integer", "multipleOf": n})
        child = tiny_lm.generation(engine)._preparer._sandbox._idle[-1]._child
        assert child is not None
        child._process.kill()
        child._process.wait()


def test_the_process_lives_within_the_limits_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    command = " ".join(sandbox._COMMAND)
    monkeypatch.setattr(sandbox, "_COMMAND", ("sh", "-c", f"ulimit -v 4000000; ulimit -t 600; exec {command}"))
    assert Sandbox("", 0, ()).render("{{ messages[0].content }}", [{"role": "user", "content": "x"}], {}) == "x"


def test_a_process_that_does_not_start_is_nobodys_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_COMMAND", ("false",))
    for _ in range(2):
        with pytest.raises(JobFailed, match="log"):
            Sandbox("", 0, ()).try_schema("{}")


def test_a_process_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was stopped: a pipe takes 64 kB, and then nothing."""
    deaf = 'import os, time; os.write(1, (18).to_bytes(8) + b\'{"value": "ready"}\'); time.sleep(600)'
    monkeypatch.setattr(sandbox, "_COMMAND", (sys.executable, "-c", deaf))
    box = Sandbox("", 0, ())
    begun = time.monotonic()
    with pytest.raises(sandbox.Refused, match="too long"):
        box.render("x", [{"role": "user", "content": "x" * 1_000_000}], {})
    assert time.monotonic() - begun < 30, "it ends at all"
    assert box._child is not None
    box._child.end()


def test_the_process_ends_with_the_worker() -> None:
    """However that dies, it closes its ends of the pipes."""
    child = _Child()
    child.wait(None)
    child._process.stdin.close()  # type: ignore[union-attr]
    assert child._process.wait(10) == 0


def test_a_template_reaches_nothing_but_the_messages(engine: PackedEngine) -> None:
    digest = tiny_lm.load(engine, chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidInput):
        tiny_lm.prepare(engine, digest, {"messages": [{"role": "user", "content": "x"}]})


def test_a_chat_template_that_is_none_is_no_version(engine: PackedEngine) -> None:
    with pytest.raises(PackageRejected, match="chat_template"):
        tiny_lm.load(engine, chat_template="{% for %}")


@pytest.mark.parametrize("order", [["reasoning", "answer"], ["answer", "reasoning"]])
def test_properties_come_in_the_order_of_the_schema(engine: PackedEngine, digest: str, order: list[str]) -> None:
    properties = {name: {"type": "string", "maxLength": 4} for name in order}
    schema = {"type": "object", "properties": properties, "required": order, "additionalProperties": False}
    assert list(json.loads(text(engine, digest, "why?", schema=schema, seed=1, max_tokens=80)["text"])) == order


def test_memory_that_holds_next_to_nothing_is_refused_at_the_start(
    lm_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_LEAST_TOKENS", 1000)  # tokens of a tiny model are tiny too
    spec = BackboneSpec(name="tiny", model=str(lm_folder("gpt2")))
    with pytest.raises(InvalidInput, match="tokens of a text") as refusal:
        opening.open_engine(spec, WorkerSpec(device="cpu", kv_bytes=1 << 16))
    assert refusal.value.field == "worker.kv_bytes"


def test_what_could_never_fit_is_refused_at_once(lm_folder: Folders) -> None:
    engine = tiny_lm.open_tiny(lm_folder("gpt2"), kv_bytes=1 << 16)
    digest = tiny_lm.load(engine)
    tiny_lm.prepare(engine, digest, [5] * 10, max_tokens=100)
    with pytest.raises(TextTooLong, match="kv_bytes"):
        tiny_lm.prepare(engine, digest, [5] * 50, max_tokens=100)


def test_a_text_may_fill_all_memory_that_there_is(lm_folder: Folders) -> None:
    engine = tiny_lm.open_tiny(lm_folder("gpt2"), kv_bytes=136 * 512 + 7)  # slabs are of 96, 128, 192, … tokens
    assert tiny_lm.generation(engine)._pool.slabs.tokens == 136
    digest = tiny_lm.load(engine)
    job = tiny_lm.prepare(engine, digest, [5] * 40, max_tokens=96, ignore_eos=True)
    assert tiny_lm.drive(engine, [job])[0]["completion_tokens"] == 96
    assert job.kv.slab_bytes(136) == tiny_lm.generation(engine)._pool.used <= engine.capacity.memory
    with pytest.raises(TextTooLong) as refusal:
        tiny_lm.prepare(engine, digest, [5] * 40, max_tokens=97)
    assert refusal.value.field == "params.max_tokens"
    for prompt, limit in ((1, 135), (40, 96), (135, 1)):
        job = tiny_lm.prepare(engine, digest, [5] * prompt, ignore_eos=True)
        assert job.sequence.limit == limit, "as long as fits, for calls that do not say"
    with pytest.raises(TextTooLong) as refusal:
        tiny_lm.prepare(engine, digest, [5] * 136)
    assert refusal.value.field == "input"


def test_heads_on_the_same_decoder(engine: PackedEngine, digest: str) -> None:
    embed = tiny.load(engine, Embedding(pooling="last"))  # type: ignore[arg-type]
    alone = tiny.run(engine, (embed, "the cat sat"))[0]["embedding"]  # type: ignore[arg-type]
    jobs = [
        tiny_lm.prepare(engine, digest, "the cat", temperature=0, max_tokens=5),
        tiny_lm.prepare(engine, embed, "the cat sat"),
    ]
    together = tiny_lm.drive(engine, jobs, shares=1.0)[1]["embedding"]
    assert together.numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_a_pass_that_fails_advances_no_sequence(
    engine: PackedEngine, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head fails after the tokens of its pass were drawn: each of them is drawn again, and appended once."""
    whole = text(engine, digest, "the cat", seed=3, max_tokens=12, ignore_eos=True)
    embed = tiny.load(engine, Embedding(pooling="last"))
    job = tiny_lm.prepare(engine, digest, "the cat", seed=3, max_tokens=12, ignore_eos=True)
    other = tiny_lm.prepare(engine, embed, "the cat sat")

    def broken(*_: Any) -> Any:
        raise ValueError("broken head")

    with monkeypatch.context() as patch:
        patch.setattr("fmplex_worker.workloads.encoding.workload.run_heads", broken)
        work = [Work(part, sum(piece.tokens for piece in part.pieces())) for part in (job, other)]
        progress, failed = engine.step(work).results
    assert isinstance(failed, JobFailed)
    assert isinstance(progress, Progress)
    assert len(job.sequence.tokens) == job.sequence.prompt + 1
    assert tiny_lm.drive(engine, [job])[0]["text"] == whole["text"]


def test_a_backbone_without_a_language_model_head_does_not_generate(bert_engine: Any) -> None:
    with pytest.raises(PackageRejected, match="language-model head"):
        bert_engine.fit(tiny.package(Generation()))


def test_nan_fails_alone(lm_folder: Folders, tmp_path: Path, engine: PackedEngine, digest: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_lm.save_lora(lm_folder("llama"), tmp_path / "nan", 1, 4)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.full_like(t, 1e30) for name, t in tensors.items()}, file)
    broken = tiny_lm.load(engine, folder)
    whole = text(engine, digest, "the cat", temperature=0, max_tokens=12, ignore_eos=True)
    jobs = [
        tiny_lm.prepare(engine, digest, "the cat", temperature=0, max_tokens=12, ignore_eos=True),
        tiny_lm.prepare(engine, broken, "the cat", temperature=0, max_tokens=12, ignore_eos=True),
    ]
    good, bad = tiny_lm.drive(engine, jobs, shares=1.0)
    assert good["text"] == whole["text"]
    assert bad.code == "non_finite_output"


@pytest.mark.parametrize(("prompt", "breaks", "good"), [(40, 64, 32), (40, 40, 0), (100, 100, 0)])
def test_what_a_broken_pass_computed_is_nobodys_prefix(
    lm_folder: Folders, monkeypatch: pytest.MonkeyPatch, prompt: int, breaks: int, good: int
) -> None:
    """The row of so many tokens gives NaN: `good` of them were known to be good."""
    engine = tiny_lm.open_tiny(lm_folder("llama"))
    digest = tiny_lm.load(engine)
    job = tiny_lm.prepare(engine, digest, tiny_lm.prompts(prompt)[0], temperature=0, max_tokens=60, ignore_eos=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            "fmplex_worker.workloads.generation.workload.draw",
            lambda *a: [None] if len(job.sequence.tokens) == breaks else draw(*a),
        )
        assert tiny_lm.drive(engine, [job])[0].code == "non_finite_output"
    engine.drop(job)
    again = tiny_lm.prepare(engine, digest, [*job.sequence.tokens, 7], max_tokens=1)
    assert tiny_lm.drive(engine, [again])[0]["cached_tokens"] == good


def test_the_seed_of_a_request_travels_with_it(engine: PackedEngine, digest: str) -> None:
    job = engine.prepare([(digest, Request("x", {"seed": 2**60}))])[0]
    assert job.sequence.sampler.seed == 2**60  # type: ignore[union-attr]


CHAT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("own_template", "value", "params", "quick"),
    [
        (False, "the cat", {}, True),
        (False, CHAT, {}, True),
        (True, "the cat", {}, True),
        (True, CHAT, {}, False),
        (False, "the cat", {"schema": PERSON}, False),
        (False, "the cat " * 10_000, {}, False),
        (False, {"text": "the cat " * 10_000}, {}, False),
        (False, {"input_ids": [5] * 50_000}, {}, False),
        (False, {"messages": [{"role": "user", "content": "x" * 30} for _ in range(1000)]}, {}, False),
        (False, 5, {}, True),
        (False, {"messages": [None, 5]}, {}, True),
    ],
)
def test_what_others_wrote_and_what_is_long_is_not_quick(
    engine: PackedEngine, own_template: bool, value: Any, params: dict[str, Any], quick: bool
) -> None:
    version = tiny_lm.load(engine, **({"chat_template": "{{ messages[0].content }}"} if own_template else {}))
    assert engine.quick(version, Request(value, params)) is quick
    assert engine.quick("gone", Request(value, params))


def test_a_prompt_far_too_long_is_refused_by_its_beginning(
    engine: PackedEngine, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    ids = engine._backbone.tokenizer.ids
    monkeypatch.setattr(
        engine._backbone.tokenizer, "ids", lambda text, special: read.append(len(text)) or ids(text, special)
    )
    for value in ("the cat " * 100_000, {"messages": [{"role": "user", "content": "the cat " * 100_000}]}):
        with pytest.raises(TextTooLong, match="the prompt has at least"):
            tiny_lm.prepare(engine, digest, value)
    assert max(read) < 40_000, "characters that were looked at"


def test_schemas_of_others_go_on_while_one_is_tried(
    engine: PackedEngine, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema that is known, or another one that is not, does not wait for it."""
    tiny_lm.prepare(engine, digest, "a", schema=PERSON)
    at_it, gate = threading.Event(), threading.Event()
    try_schema = Sandbox.try_schema

    def slow(self: Sandbox, schema: str, strict: bool = False) -> str:
        if "slow" in schema:
            at_it.set()
            gate.wait(60)
        return try_schema(self, schema, strict)

    monkeypatch.setattr(Sandbox, "try_schema", slow)
    thread = threading.Thread(target=tiny_lm.prepare, args=(engine, digest, "a"), kwargs={"schema": {"const": "slow"}})
    thread.start()
    at_it.wait(60)
    tiny_lm.prepare(engine, digest, "a", schema=PERSON)
    tiny_lm.prepare(engine, digest, "a", schema={"const": "new"})
    assert not gate.is_set()
    gate.set()
    thread.join()
