# SPDX-License-Identifier: Apache-2.0
"""What a user had better know when the engine starts: a warning each, once."""

import logging
import os

logger = logging.getLogger("vllm.kvbm")  # below vLLM's, so that it goes where the engine's log goes


def warnings_of(vllm_config, kv_cache_config, num_host_blocks: int, num_disk_blocks: int) -> list[str]:
    found = []
    if not vllm_config.cache_config.enable_prefix_caching:
        found.append("prefix caching is off, so vLLM names no blocks and kvbm keeps none: set enable_prefix_caching")
    parallel = vllm_config.parallel_config
    num_processes = parallel.world_size * getattr(parallel, "data_parallel_size", 1)
    if num_processes > 1 and "PYTHONHASHSEED" not in os.environ and not hashes_agree(vllm_config):
        found.append(
            f"PYTHONHASHSEED is not set and there are {num_processes} processes: block hashes made with "
            f"{vllm_config.cache_config.prefix_caching_hash_algo} differ from one to the next; set it for all"
        )
    if 0 < num_host_blocks < kv_cache_config.num_blocks and num_disk_blocks <= kv_cache_config.num_blocks:
        found.append(
            f"host memory has {num_host_blocks} blocks, less than the engine's own {kv_cache_config.num_blocks}: "
            "it holds little that the engine does not have; raise DYN_KVBM_CPU_CACHE_GB or add a disk"
        )
    return found


def hashes_agree(vllm_config) -> bool:
    """Whether hashes need no PYTHONHASHSEED to be the same everywhere: newer vLLM, a cryptographic algorithm."""
    from vllm.v1.core import kv_cache_utils

    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    return hasattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED") and algorithm.startswith("sha256")


def warn_at_start(vllm_config, kv_cache_config, num_host_blocks: int, num_disk_blocks: int):
    for text in warnings_of(vllm_config, kv_cache_config, num_host_blocks, num_disk_blocks):
        logger.warning("kvbm: %s", text)
