"""FMplex: serve many customised versions of one foundation model on one shared backbone.

from fmplex import Client

with Client("http://127.0.0.1:8080") as fm:
    fm.infer("sentiment", "what a lovely day").output

Calls: `Client`, `AsyncClient` and what they give (`Result`, handles, text streams); `client.vfms` shows vFMs as `VfmInfo`;
`client.batches` has offline work, `client.tune` trains on the fleet.
Packages: `fit`, `from_peft`, `from_sentence_transformers`, `from_sklearn`, `write_package`. Specifications: `VfmSpec` and its
parts, a class for each kind of head. Errors: all are `FmplexError`.
"""

from fmplex.aio import AsyncClient
from fmplex.batches.aio import AsyncBatch, AsyncBatches
from fmplex.batches.records import BatchCounts, BatchFault, BatchInfo, BatchResult
from fmplex.batches.sync import Batch, Batches
from fmplex.construct import WrittenPackage, from_peft, from_sentence_transformers, from_sklearn, write_package
from fmplex.fitting import fit
from fmplex.results import AsyncHandle, AsyncTextStream, Handle, Result, TextStream
from fmplex.sync import Client
from fmplex.tunes.aio import AsyncTune, AsyncTunes
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex.tunes.sync import Tune, Tunes
from fmplex.vfms import AsyncVfms, Vfms
from fmplex_broker.errors import (
    BrokerFault,
    BrokerMisconfigured,
    BrokerUnavailable,
    Busy,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FmplexError,
    Forbidden,
    InvalidInput,
    JobFailed,
    NonFiniteOutput,
    NoWorker,
    PackageRejected,
    Poisoned,
    QueueFull,
    RateLimited,
    StaleVersion,
    StoreUnavailable,
    StreamRestarted,
    TextTooLong,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnknownBatch,
    UnknownFile,
    UnknownTune,
    UnknownVfm,
    VfmClosed,
)
from fmplex_broker.specs.fitting import FitDone, LoraSpec
from fmplex_broker.specs.heads import (
    Classification,
    Embedding,
    Features,
    Generation,
    InputSpec,
    Ranking,
    Regression,
    Similarity,
    Tagging,
)
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_broker.specs.tune_records import TuneError, TuneProgress
from fmplex_broker.specs.vfm import Limits, Slo, VfmSpec
from fmplex_broker.specs.vfm_info import PastVersion, Refusal, VfmInfo
from fmplex_broker.wire.tensors import Tensor

__all__ = [
    "AsyncBatch",
    "AsyncBatches",
    "AsyncClient",
    "AsyncHandle",
    "AsyncTextStream",
    "AsyncTune",
    "AsyncTunes",
    "AsyncVfms",
    "Batch",
    "BatchCounts",
    "BatchFault",
    "BatchInfo",
    "BatchResult",
    "Batches",
    "BrokerFault",
    "BrokerMisconfigured",
    "BrokerUnavailable",
    "Busy",
    "Cancelled",
    "Classification",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Embedding",
    "Features",
    "FitDone",
    "FmplexError",
    "Forbidden",
    "Generation",
    "GenerationParams",
    "Handle",
    "InputSpec",
    "InvalidInput",
    "JobFailed",
    "Limits",
    "LoraSpec",
    "NoWorker",
    "NonFiniteOutput",
    "PackageRejected",
    "PastVersion",
    "Poisoned",
    "QueueFull",
    "Ranking",
    "RateLimited",
    "Refusal",
    "Regression",
    "Result",
    "Similarity",
    "Slo",
    "StaleVersion",
    "StoreUnavailable",
    "StreamRestarted",
    "Tagging",
    "Tensor",
    "TextStream",
    "TextTooLong",
    "TooLarge",
    "TooSlow",
    "Tune",
    "TuneCheckpointInfo",
    "TuneError",
    "TuneEventInfo",
    "TuneInfo",
    "TuneProgress",
    "Tunes",
    "Unauthorized",
    "Unavailable",
    "UnknownBatch",
    "UnknownFile",
    "UnknownTune",
    "UnknownVfm",
    "VfmClosed",
    "VfmInfo",
    "VfmSpec",
    "Vfms",
    "WrittenPackage",
    "fit",
    "from_peft",
    "from_sentence_transformers",
    "from_sklearn",
    "write_package",
]
