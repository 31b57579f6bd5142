# SPDX-License-Identifier: Apache-2.0
"""Where Dynamo's package has what its compiled module gives to an engine's face: the same names, in C++ and Python here."""

from kvbm import BlockManager, KvbmLeader, KvbmWorker
from kvbm.cache_manager import BlockState, BlockStates, KvbmBlockList, KvbmCacheManager, SlotUpdate
from kvbm.slots import KvbmRequest, KvConnectorLeader, KvConnectorWorker, SchedulerOutput

__all__ = [
    "BlockManager",
    "BlockState",
    "BlockStates",
    "KvConnectorLeader",
    "KvConnectorWorker",
    "KvbmBlockList",
    "KvbmCacheManager",
    "KvbmLeader",
    "KvbmRequest",
    "KvbmWorker",
    "SchedulerOutput",
    "SlotUpdate",
]
