"""Heads and input templates: what of a vFM's specification decides its outputs, beside the files of its package."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmplex_broker.specs.sampling import SAMPLING, RepetitionPenalty, Share, Stops, StopTokens, Temperature, TopK
from fmplex_broker.specs.schema import Label, Several, Spec

Pooling = Literal["mean", "cls", "last"]
Activation = Literal["relu", "gelu", "tanh"]
ProjectionActivation = Literal["identity", "relu", "gelu", "tanh"]
# What a team writes around its callers' texts, of heads and of `InputSpec`. It is not for everybody who may call the vFM.
_TEXT, _PAIR = "{text}", "{text_pair}"  # where templates hold the caller's texts
PROMPTS = frozenset({"system", "chat_template", "template", "pair_template"})


class _Layers(Spec):
    """A head with weights: a linear layer, or a stack of them (an MLP).

    `hidden`: widths of the layers between the hidden state and the last one, each followed by `activation`; empty: none. `norm`:
    what comes out of each of those is normalised to mean 0 and variance 1 (ε 1e-5), as by a LayerNorm whose weights are part
    of the next layer.
    """

    hidden: Several[Annotated[int, Field(ge=1, le=65_536)]] = Field(default=(), max_length=8)
    activation: Activation = "relu"
    norm: bool = False


class _PooledLayers(_Layers):
    """Layers on the pooled state. `normalize`: the state is scaled to length 1 first, as for a linear model that was fitted on
    embeddings. `pooling`: if not said, as for embeddings."""

    normalize: bool = False


class Embedding(Spec):
    """Pooled hidden state, [hidden], or what `projection` makes of it.

    `pooling`: over all tokens (mean), the first one (cls) or the last one; `normalize`: scale it to length 1; if not said, both
    are what the files of sentence-transformers beside the backbone say, else mean and true. `projection`: widths of layers on the
    pooled state, each followed by `activation`.
    """

    kind: Literal["embedding"] = "embedding"
    pooling: Pooling | None = None
    normalize: bool | None = None
    projection: Several[Annotated[int, Field(ge=1, le=65_536)]] = Field(default=(), max_length=8)
    activation: ProjectionActivation = "identity"


class Classification(_PooledLayers):
    """Scores per label from the layers on the pooled state: softmax, or one sigmoid a label if `multi_label`.

    `labels`: in the order of the outputs; `pooling`: mean, cls or last; `normalize`: scale the state to length 1 first; `hidden`:
    widths of the layers before the last one, each followed by `activation` and, if `norm`, normalised.
    """

    kind: Literal["classification"] = "classification"
    labels: Several[Label] = Field(min_length=2, max_length=10_000)
    multi_label: bool = False
    pooling: Pooling | None = None


class Regression(_PooledLayers):
    """One number from the layers on the pooled state.

    `pooling`: mean, cls or last; `normalize`: scale the state to length 1 first; `hidden`: widths of the layers before the last
    one, each followed by `activation` and, if `norm`, normalised.
    """

    kind: Literal["regression"] = "regression"
    pooling: Pooling | None = None


class Tagging(_Layers):
    """Labelled spans of the text, from the layers on every token. The last one has 1 + len(labels) rows; row 0 means
    'outside'. Neighbouring tokens of one label make one span. Labels of the BIO, BIOES or BILOU scheme (B-PER, I-PER, …) are read
    as such: B and S (U) begin a span, I and E (L) of the same type go on with it, E (L) and S (U) end it; it is called PER.

    `labels`: in the order of the rows; `hidden`: widths of the layers before the last one, each followed by `activation` and,
    if `norm`, normalised.
    """

    kind: Literal["tagging"] = "tagging"
    labels: Several[Label] = Field(min_length=1, max_length=1_000)


class Similarity(Spec):
    """Cosine of the pooled states of `text` and `text_pair`, each encoded by itself (bi-encoder). Has no weights.

    `pooling`: mean, cls or last.
    """

    kind: Literal["similarity"] = "similarity"
    pooling: Pooling | None = None


class Ranking(_PooledLayers):
    """Relevance of `text_pair` to `text`, both encoded together (cross-encoder): sigmoid of the one output of the layers.

    `pooling`: mean, cls or last; `normalize`: scale the state to length 1 first; `hidden`: widths of the layers before the last
    one, each followed by `activation` and, if `norm`, normalised.
    """

    kind: Literal["ranking"] = "ranking"
    pooling: Pooling = "cls"


class Features(Spec):
    """The raw hidden states of every token, [tokens, hidden]. Has no weights."""

    kind: Literal["features"] = "features"


class Generation(Spec):
    """Text that goes on from the input, by the backbone's own language-model head. Has no weights.

    `max_tokens`: of a text, for calls that do not say; `system`: a message put before chats that have none of that role;
    `chat_template`: Jinja, instead of the one that the backbone's tokenizer has; `stop`: texts before which every text ends,
    special tokens among them; `stop_token_ids`: tokens that end it, beside the model's own and those of the call; `temperature`,
    `top_p`, `top_k`, `min_p`, `repetition_penalty`: for calls that do not say, instead of the model's own.
    """

    kind: Literal["generation"] = "generation"
    max_tokens: int = Field(default=256, ge=1, le=1_000_000)
    system: str = Field(default="", max_length=65_536)
    chat_template: str | None = Field(default=None, min_length=1, max_length=65_536)
    stop: Stops = ()
    stop_token_ids: StopTokens = ()
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    repetition_penalty: RepetitionPenalty | None = None

    @property
    def sampling(self) -> dict[str, float]:
        """What it says of sampling, by the names of `GenerationParams`."""
        return {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}


Head = Annotated[
    Embedding | Classification | Regression | Tagging | Similarity | Ranking | Features | Generation,
    Field(discriminator="kind"),
]


def outputs(head: Head) -> int:
    """Return the rows of the head's last layer; 0 for heads without weights, which are a function of the hidden states."""
    match head:
        case Embedding():
            return head.projection[-1] if head.projection else 0
        case Classification():
            return len(head.labels)
        case Tagging():
            return 1 + len(head.labels)
        case Regression() | Ranking():
            return 1
        case _:
            return 0


def head_tensors(head: Head, width: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that the head needs on hidden states of `width`; biases may be missing.

    A linear head: `weight` [outputs, width] and `bias` [outputs]. A stack: `hidden.0.weight`, `hidden.0.bias`, … before them.
    """
    rows = outputs(head)
    if not rows:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    before = head.projection[:-1] if isinstance(head, Embedding) else getattr(head, "hidden", ())
    for i, size in enumerate(before):
        shapes |= {f"hidden.{i}.weight": (size, width), f"hidden.{i}.bias": (size,)}
        width = size
    return shapes | {"weight": (rows, width), "bias": (rows,)}


class InputSpec(Spec):
    """What is done with a caller's texts before they are encoded, e.g. `template = "query: {text}"` is put around them.

    `template` holds `{text}` once, `pair_template` holds `{text_pair}` once; all else in them is literal. Token ids and
    embeddings are taken as they are. If not said, nothing is put around; around the texts of embeddings the default prompt of the
    sentence-transformers files beside the backbone.

    `max_tokens` of a text (default: what the backbone takes); `truncate`: longer ones are cut, for calls that do not say;
    `token_ids`: `/v1/embeddings` takes ids of the backbone's own vocabulary in place of texts.
    """

    template: str | None = Field(default=None, max_length=65_536)
    pair_template: str | None = Field(default=None, max_length=65_536)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    truncate: bool = False
    token_ids: bool = False

    @model_validator(mode="after")
    def _one_place(self) -> InputSpec:
        for name, place in (("template", _TEXT), ("pair_template", _PAIR)):
            template = getattr(self, name)
            if template is not None and template.count(place) != 1:
                raise ValueError(f"{name} must hold {place} exactly once")
        if self.token_ids and self.template not in (None, _TEXT):
            raise ValueError("token_ids: a template cannot be put around token ids; leave one of the two out")
        return self

    def text(self, value: str) -> str:
        """Put the template around a text, `value`."""
        return value if self.template is None else self.template.replace(_TEXT, value)

    def text_pair(self, value: str) -> str:
        """Put the pair template around a second text, `value`."""
        return value if self.pair_template is None else self.pair_template.replace(_PAIR, value)

    @property
    def lead(self) -> int:
        """Number of characters before the caller's text."""
        return 0 if self.template is None else self.template.index(_TEXT)
