"""FMplex: serve many customised versions of one foundation model on one shared backbone.

from fmplex import Client

with Client("http://127.0.0.1:8080") as fm:
    fm.infer("sentiment", "what a lovely day").output
"""

from fmplex.aio import AsyncClient
from fmplex.construct import WrittenPackage, from_peft, from_sklearn, write_package
from fmplex.fitting import fit
from fmplex.results import AsyncHandle, AsyncTextStream, Handle, Result, TextStream
from fmplex.sync import Client
from fmplex_broker.errors import (
    Busy,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FmplexError,
    Forbidden,
    InvalidInput,
    JobFailed,
    NonFiniteOutput,
    PackageRejected,
    Poisoned,
    QueueFull,
    RateLimited,
    StreamRestarted,
    TextTooLong,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownVfm,
)
from fmplex_broker.specs.fitting import LoraSpec
from fmplex_broker.specs.vfm import Limits, Slo, VfmSpec
from fmplex_broker.wire.tensors import Tensor

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "AsyncTextStream",
    "Busy",
    "Cancelled",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "FmplexError",
    "Forbidden",
    "Handle",
    "InvalidInput",
    "JobFailed",
    "Limits",
    "LoraSpec",
    "NonFiniteOutput",
    "PackageRejected",
    "Poisoned",
    "QueueFull",
    "RateLimited",
    "Result",
    "Slo",
    "StreamRestarted",
    "Tensor",
    "TextStream",
    "TextTooLong",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnknownVfm",
    "VfmSpec",
    "WrittenPackage",
    "fit",
    "from_peft",
    "from_sklearn",
    "write_package",
]
