"""What others upload: whatever it holds, it is read, or refused by a typed error of a few lines, in a bounded number of steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fmplex_broker.errors import MAX_FIELD, MAX_MESSAGE, FmplexError, InvalidInput, PackageRejected
from fmplex_broker.packages.archive import MAX_SPEC_BYTES, pack, unpack
from fmplex_broker.packages.name_patterns import MAX_PATTERNS
from fmplex_broker.packages.package import HEAD, Package
from fmplex_broker.packages.peft import check_adapter, read_config, read_options
from fmplex_broker.packages.peft_ia3 import Ia3Config
from fmplex_broker.packages.peft_lora import LoraConfig
from fmplex_broker.packages.peft_prompt import PromptConfig
from fmplex_broker.packages.weights import MAX_HEADER_BYTES, MAX_TENSORS, tensor_shapes
from fmplex_broker.specs.heads import Classification
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmChange, VfmSpec
from tests.support.hanging import within
from tests.support.steps import count_steps
from tests.unit.broker import made

# Of any package. A header of as many tensors as are taken needs most of them: a tenth of a second.
MOST_STEPS = 1_500_000
MEGA = 1_000_000


def header(text: str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    raw = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + data


def tensors(shapes: dict[str, Any], **more: Any) -> bytes:
    """A safetensors file of float32 without its data, whatever the shapes are."""
    return header(
        json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0], **more} for n, s in shapes.items()})
    )


def refused(call: Callable[[], Any], field: str | None = "") -> FmplexError:
    """The error of what must be refused, soon and in few words."""
    with within(30), pytest.raises(FmplexError) as caught:
        call()
    assert len(caught.value.message) <= MAX_MESSAGE
    assert len(caught.value.field or "") <= MAX_FIELD
    assert json.dumps(caught.value.to_wire()).isascii()
    caught.value.message.encode()
    if field != "":
        assert caught.value.field == field
    return caught.value


@contextmanager
def typed(field: str | None = None) -> Iterator[None]:
    """Let a typed error of a few words pass, of the field if one is given, and nothing else."""
    error: FmplexError | None = None
    try:
        yield
    except FmplexError as e:
        error = e
    if error is not None:
        assert len(error.message) <= MAX_MESSAGE
        assert field is None or error.field == field


def check(config: Any = None, weights: bytes | None = None) -> Any:
    """Check an adapter, with one of its two files replaced."""
    good = list(made.adapter().values())
    raw = good[0] if config is None else config if isinstance(config, bytes) else json.dumps(config).encode()
    return check_adapter(raw, good[1] if weights is None else weights)


LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
IA3 = {"peft_type": "IA3", "feedforward_modules": []}
PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}

# --- adapter_config.json ----------------------------------------------------------------------------------------------

CONFIGS: dict[str, Any] = {
    "a rank that is no number": {**LORA, "r": 10**400},
    "a rank beyond what floats can hold": {**LORA, "rank_pattern": {"q": 10**400}},
    "an infinite rank": b'{"peft_type": "LORA", "r": 1e999, "lora_alpha": 4}',
    "an infinite alpha": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}',
    "an alpha beyond floats": {**LORA, "lora_alpha": 10**400},
    "an infinite alpha of a pattern": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q": -1e999}}',
    "a digit too many for Python": b'{"peft_type": "LORA", "lora_alpha": 4, "r": ' + b"9" * 5000 + b"}",
    "patterns by the hundred thousand": {**LORA, "rank_pattern": {f"a{i}": 2 for i in range(20_000)}},
    "wrong patterns by the hundred thousand": {**LORA, "rank_pattern": {f"a{i}": "x" for i in range(20_000)}},
    "a long pattern": {**LORA, "rank_pattern": {"a" * 100_000: 2}},
    "endings by the hundred thousand": {**IA3, "feedforward_modules": ["w"] * 100_000},
    "wrong endings by the hundred thousand": {**IA3, "feedforward_modules": [1] * 100_000},
    "more bytes than anybody needs": {**LORA, "target_modules": ["q" * 100] * 10_000},
    "options by the hundred thousand": {**LORA, **{f"o{i}": 1 for i in range(30_000)}},
    "a long option": {**LORA, "o" * 100_000: 1},
    "a long kind": {"peft_type": "X" * 100_000},
    "a kind that is a list": {"peft_type": [["LORA"] * 1000]},
    "a long initialisation": {**LORA, "init_lora_weights": "x" * 100_000},
    "a nested initialisation": {**LORA, "init_lora_weights": json.loads("[" * 500 + "]" * 500)},
    "a long bias": {**LORA, "bias": "b" * 100_000},
    "virtual tokens beyond all": {**PROMPT, "num_virtual_tokens": 10**400},
    "nesting": b"[" * 100_000,
    "nesting that ends": b'{"peft_type": ' + b"[" * 400 + b"]" * 400 + b"}",
    "nested options": b'{"a":' * 400 + b"1" + b"}" * 400,
    "a name twice": b'{"peft_type": "LORA", "r": 2, "r": 4, "lora_alpha": 4}',
    "a name twice within": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"q": 2, "q": 4}}',
    "another encoding": json.dumps(LORA).encode("utf-16"),
    "half a surrogate pair": b'{"peft_type": "\\ud800"}',
    "no object": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("what", CONFIGS)
def test_configs_that_are_refused(what: str) -> None:
    error = refused(lambda: check(CONFIGS[what]), "adapter")
    assert isinstance(error, PackageRejected)
    assert error.message.startswith("adapter_config.json")
    assert count_steps(lambda: check(CONFIGS[what])) < MOST_STEPS


plain = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from([10**30, 10**400, 1e300, float("inf"), float("nan")])
)
texts = st.sampled_from(["LORA", "IA3", "PROMPT_TUNING", "none", "q", ".*", "(a|b)?", "a{2}", "[", "\ud800", "x" * 300])
values = st.recursive(
    plain | texts | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
options = st.sampled_from(
    [
        *LoraConfig.model_fields,
        *Ia3Config.model_fields,
        *PromptConfig.model_fields,
        "target_modules",
        "use_dora",
        "strange",
    ]
)
configs = st.builds(
    lambda base, more: base | more,
    st.sampled_from([LORA, IA3, PROMPT, {}]),
    st.dictionaries(options, values, max_size=3),
)


@given(configs | values)
def test_no_config_costs_more_or_raises_anything_else(config: Any) -> None:
    raw = json.dumps(config).encode()

    def use() -> None:
        read = read_config(read_options(raw))
        if isinstance(read, LoraConfig):
            read.scaling("model.layers.0.q")

    assert count_steps(use) < 20_000 + 100 * len(raw)
    with typed("adapter"):
        use()


@given(st.binary(max_size=200) | st.text('{}[]":,01e9 "r\\u', max_size=60).map(str.encode))
def test_no_bytes_of_a_config_do(raw: bytes) -> None:
    with typed("adapter"):
        read_config(read_options(raw))


def test_the_largest_config_that_is_taken() -> None:
    """PEFT's EVA writes a rank for every module."""
    names = [f"base.model.layers.{i}.self_attn.q_proj" for i in range(MAX_PATTERNS)]
    config = {
        **LORA,
        "rank_pattern": dict.fromkeys(names, 3),
        "alpha_pattern": dict.fromkeys(names, 3),
        "target_modules": names,
    }
    raw = json.dumps(config).encode()

    def use() -> None:
        read = read_config(read_options(raw))
        assert isinstance(read, LoraConfig)
        for name in names[:882]:  # linear layers of the largest backbone
            assert read.scaling(name) == 1

    use()
    assert count_steps(use) < MOST_STEPS


# --- headers ----------------------------------------------------------------------------------------------------------

HEADERS: dict[str, bytes] = {
    "20,000 tensors": tensors({f"t{i}": [0] for i in range(20_000)}),
    "a header of megabytes": header(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
    "a header that is not there": header(b"{}")[:9],
    "a header longer than all memory": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "an infinite shape": header('{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', bytes(4)),
    "a shape of NaN": header('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)),
    "a shape of fractions": header('{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', bytes(4)),
    "a shape of truth": header('{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', bytes(4)),
    "a negative shape": header('{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}', bytes(4)),
    "a shape that overflows to what is there": tensors({"a": [2**32, 2**32]}),
    "a shape beyond all numbers": tensors({"a": [10**400]}),
    "a shape of many dimensions": tensors({"a": [1] * 100_000}),
    "a shape of many large dimensions": tensors({"a": [10**18] * 50_000}),
    "a shape that is a text": tensors({"a": "12"}),
    "a shape that is none": tensors({"a": None}),
    "infinite offsets": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}', bytes(4)),
    "offsets before the beginning": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', bytes(4)),
    "offsets beyond the end": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', bytes(4)),
    "offsets that are swapped": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', bytes(4)),
    "one offset": tensors({"a": [0]}, data_offsets=[0]),
    "no offsets": tensors({"a": [0]}, data_offsets=None),
    "tensors one over the other": header(
        json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}), bytes(4)
    ),
    "a hole between tensors": header(
        json.dumps(
            {n: {"dtype": "F32", "shape": [1], "data_offsets": [i, i + 4]} for n, i in {"a": 0, "b": 8}.items()}
        ),
        bytes(12),
    ),
    "a shape that is not its bytes": header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(4)),
    "a name twice": tensors({"a": [0], "b": [0]}).replace(b'"b"', b'"a"'),
    "a key twice": header('{"a": {"dtype": "F32", "shape": [1], "shape": [2], "data_offsets": [0, 4]}}', bytes(4)),
    "a key more": tensors({"a": [0]}, more=1),
    "an entry that is none": header('{"a": 1}'),
    "a long dtype": tensors({"a": [0]}, dtype="F" * 100_000),
    "a dtype that is a list": tensors({"a": [0]}, dtype=["F32"]),
    "a long name": tensors({"a" * 100_000: [0]}),
    "no name": tensors({"": [0]}),
    "a name of no Unicode": header(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
    "a name of two lines": tensors({"a\nb": [0]}),
    "a name of another alphabet": tensors({"вес": [0]}),
    "metadata that is none": header('{"__metadata__": {"a": 1}}'),
    "metadata that is a list": header('{"__metadata__": []}'),
    "nesting": header(b"[" * 100_000),
    "nesting in a name's place": header(b'{"a":' * 400 + b"1" + b"}" * 400),
    "another encoding": header("{}".encode("utf-16")),
    "no object": header("[]"),
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("part", ["head", "adapter"])
def test_headers_that_are_refused(what: str, part: str) -> None:
    def use() -> None:
        if part == "head":
            unpack(made.archive({"name": "v", "backbone": "m", "head": {"kind": "regression"}}, {HEAD: HEADERS[what]}))
        else:
            check(weights=HEADERS[what])

    error = refused(use, part)
    assert isinstance(error, PackageRejected)
    assert ".safetensors" in error.message
    assert count_steps(use) < MOST_STEPS


@given(st.dictionaries(texts | st.sampled_from(["__metadata__", "weight"]), values, max_size=3) | values)
def test_no_header_raises_anything_else(value: Any) -> None:
    raw = header(json.dumps(value))
    assert count_steps(lambda: tensor_shapes(raw, "x.safetensors", "head")) < 20_000 + 100 * len(raw)
    with typed("head"):
        shapes = tensor_shapes(raw, "x.safetensors", "head")
        assert all(0 in shape for shape in shapes.values()), "there is no data"


entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "I8", 3]), "shape": values, "data_offsets": values | st.just([0, 4])}
)


@given(st.dictionaries(st.sampled_from(["weight", "bias", "a"]), entries, max_size=3), st.binary(max_size=8))
def test_no_entry_raises_anything_else(value: Any, data: bytes) -> None:
    with typed("head"):
        tensor_shapes(header(json.dumps(value), data), "x.safetensors", "head")


@given(st.binary(max_size=64))
def test_no_bytes_do(raw: bytes) -> None:
    for data in (raw, header(raw)):
        with typed("head"):
            tensor_shapes(data, "x.safetensors", "head")


def test_the_largest_header_that_is_taken() -> None:
    stem = "base_model.model.model.layers"
    names = [f"{stem}.{i}.self_attn.q_proj.lora_{side}.weight" for i in range(MAX_TENSORS // 2) for side in "AB"]
    raw = tensors({name: [0, 4096] for name in names})
    assert len(raw) < MAX_HEADER_BYTES
    assert check(weights=raw)
    assert count_steps(lambda: check(weights=raw)) < MOST_STEPS


def test_a_head_of_many_tensors_is_refused_in_few_words() -> None:
    spec = made.spec()
    many = tensors({f"tensor_number_{i}": [0] for i in range(MAX_TENSORS)})
    error = refused(lambda: unpack(made.archive(json.loads(spec.model_dump_json()), {HEAD: many})), "head")
    assert "and 8184 more" in error.message
    assert "needed: weight" in error.message


# --- specs ------------------------------------------------------------------------------------------------------------

SPEC = {"name": "v", "backbone": "m", "head": {"kind": "embedding"}}
CLASSES = {"kind": "classification", "labels": ["a", "b"]}
WRITES = {"kind": "generation"}
SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown keys by the hundred thousand": ("k0", {**SPEC, **{f"k{i}": 1 for i in range(100_000)}}),
    "unknown keys within": ("head.embedding.k0", {**SPEC, "head": {"kind": "embedding", **{f"k{i}": 1 for i in range(99_999)}}}),
    "a long unknown key": ("k" * MAX_FIELD, {**SPEC, "k" * MEGA: 1}),
    "wrong labels by the hundred thousand": (
        "head.classification.labels.0",
        {**SPEC, "head": {**CLASSES, "labels": [1] * 300_000}},
    ),
    "labels by the hundred thousand": ("head.classification.labels", {**SPEC, "head": {**CLASSES, "labels": ["a"] * 300_000}}),
    "a long label": ("head.classification.labels.0", {**SPEC, "head": {**CLASSES, "labels": ["a" * MEGA, "b"]}}),
    "layers by the hundred thousand": ("head.classification.hidden", {**SPEC, "head": {**CLASSES, "hidden": [1] * 300_000}}),
    "heads by the hundred thousand": ("heads", {"name": "v", "backbone": "m", "heads": {f"h{i}": 1 for i in range(99_999)}}),
    "a long template": ("input.template", {**SPEC, "input": {"template": "{text}" + "x" * MEGA}}),
    "a template of many places": ("input", {**SPEC, "input": {"template": "{text}" * 1000}}),
    "a long chat template": ("head.generation.chat_template", {**SPEC, "head": {**WRITES, "chat_template": "x" * MEGA}}),
    "a long system message": ("head.generation.system", {**SPEC, "head": {**WRITES, "system": "x" * MEGA}}),
    "a long kind": ("head", {**SPEC, "head": {"kind": "x" * MEGA}}),
    "a long name": ("name", {**SPEC, "name": "x" * MEGA}),
    "tokens beyond all": ("head.generation.max_tokens", {**SPEC, "head": {**WRITES, "max_tokens": 10**400}}),
    "more bytes than anybody needs": ("package", {**SPEC, "name": "x" * MAX_SPEC_BYTES}),
}  # fmt: skip


@pytest.mark.parametrize("what", SPECS)
def test_specs_that_are_refused(what: str) -> None:
    field, spec = SPECS[what]
    refused(lambda: unpack(made.archive(spec)), field)
    assert count_steps(lambda: unpack(made.archive(spec))) < MOST_STEPS
    if what != "more bytes than anybody needs":
        refused(lambda: parse(VfmSpec, spec), field)


def test_one_error_is_made_of_many_mistakes() -> None:
    """Pydantic makes one of each, with all that it quotes; we show one."""
    for field, spec in list(SPECS.values())[:-1]:
        with pytest.raises(ValidationError) as caught:
            VfmSpec.model_validate(spec)
        assert caught.value.error_count() <= 2, field
    heads = {f"h{i}": {**CLASSES, "labels": [1] * 9000} for i in range(64)}
    with pytest.raises(ValidationError) as caught:
        VfmSpec.model_validate({"name": "v", "backbone": "m", "heads": heads})
    assert caught.value.error_count() <= 2 * 64


def test_a_spec_that_nobody_would_read_is_not_packed() -> None:
    labels = tuple(f"{i:0256}" for i in range(10_000))
    spec = VfmSpec(name="v", backbone="m", heads={n: Classification(labels=labels) for n in "ab"})
    with pytest.raises(PackageRejected, match="fewer labels"):
        pack(Package(spec, "d" * 16))


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("stop.0", {"stop": [1] * 300_000}),
        ("stop", {"stop": ["a"] * 300_000}),
        ("stop.0", {"stop": ["a" * MEGA]}),
        ("stop_token_ids", {"stop_token_ids": [1] * 300_000}),
        ("stop_token_ids.0", {"stop_token_ids": ["a"] * 300_000}),
        ("k0", {f"k{i}": 1 for i in range(300_000)}),
        ("temperature", {"temperature": float("inf")}),
        ("seed", {"seed": 10**400}),
        ("max_tokens", {"max_tokens": 10**400}),
    ],
)
def test_parameters_that_are_refused(field: str, params: dict[str, Any]) -> None:
    error = refused(lambda: parse(GenerationParams, params))
    assert isinstance(error, InvalidInput)
    assert (error.field or "").startswith(field)
    assert count_steps(lambda: parse(GenerationParams, params)) < MOST_STEPS


parts = st.sampled_from([*VfmSpec.model_fields, *Classification.model_fields, "strange"])


@given(
    st.builds(lambda base, more: base | more, st.sampled_from([SPEC, {}]), st.dictionaries(parts, values, max_size=3)),
)
def test_no_spec_raises_anything_else(spec: dict[str, Any]) -> None:
    raw = made.archive(spec)
    assert count_steps(lambda: unpack(raw)) < 20_000 + 100 * len(raw)
    for use in (lambda: unpack(raw), lambda: parse(VfmSpec, spec), lambda: parse(VfmChange, spec)):
        with typed():
            use()
