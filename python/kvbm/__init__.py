# SPDX-License-Identifier: Apache-2.0
"""kvbm: keeps the KV cache of LLM inference beyond GPU memory.

Importing it starts no thread and needs neither a GPU nor an engine.
"""

from kvbm._core import Error, KvbmLeader, KvbmWorker

__all__ = ["Error", "KvbmLeader", "KvbmWorker"]
__version__ = "0.1.0"
