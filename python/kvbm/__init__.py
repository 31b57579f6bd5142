# SPDX-License-Identifier: Apache-2.0
"""kvbm: keeps the KV cache of LLM inference beyond GPU memory.

Importing it starts no thread and needs neither a GPU nor an engine.
"""

from kvbm._core import (
    Block,
    BlockList,
    BlockManager,
    ContractViolation,
    KvbmLeader,
    KvbmWorker,
    KvEvent,
    Layer,
    Onboarded,
    Onboarding,
    PrefixHit,
    SequenceKeys,
    replay,
)
from kvbm.errors import (
    CancelledError,
    CorruptError,
    DeviceError,
    Error,
    ExhaustedError,
    InternalError,
    InvalidArgumentError,
    IoError,
    NotFoundError,
    RejectedError,
    TimeoutError,
    UnavailableError,
    UnsupportedError,
)

__all__ = [
    "Block",
    "BlockList",
    "BlockManager",
    "CancelledError",
    "ContractViolation",
    "CorruptError",
    "DeviceError",
    "Error",
    "ExhaustedError",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "KvEvent",
    "KvbmLeader",
    "KvbmWorker",
    "Layer",
    "NotFoundError",
    "Onboarded",
    "Onboarding",
    "PrefixHit",
    "RejectedError",
    "SequenceKeys",
    "TimeoutError",
    "UnavailableError",
    "UnsupportedError",
    "replay",
]
__version__ = "0.1.0"
