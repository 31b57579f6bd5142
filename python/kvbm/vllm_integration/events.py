# SPDX-License-Identifier: Apache-2.0
"""kvbm's block events as vLLM's KV cache events."""

from vllm.distributed import kv_events
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

# By tier of kvbm. vLLM has one name for all that is farther than host memory.
MEDIA = {1: getattr(kv_events, "MEDIUM_CPU", "CPU"), 2: getattr(kv_events, "MEDIUM_STORAGE", "STORAGE")}

# Events that wait to be taken; a step of the engine makes a few thousand at most.
MAX_EVENTS = 65536


def wants_events(vllm_config) -> bool:
    config = getattr(vllm_config, "kv_events_config", None)
    return config is not None and bool(config.enable_kv_cache_events)


def to_kv_cache_events(events, hash_bytes: int, block_tokens: list[int]):
    """events: of KvbmLeader.take_events. hash_bytes: of the engine's own hashes, which identities are padded from.
    block_tokens: by layer group.

    kvbm never sees a token, so token_ids is empty and there is no parent: who follows the stream knows both from the
    engine's event of the same hash. Consecutive events of one kind become one.
    """
    run: list = []
    kind = None

    def made():
        is_stored, tier, group = kind
        hashes = [maybe_convert_block_hash(identity[:hash_bytes]) for identity in run]
        if not is_stored:
            return kv_events.BlockRemoved(block_hashes=hashes, medium=MEDIA[tier], group_idx=group)
        return kv_events.BlockStored(
            block_hashes=hashes,
            parent_block_hash=None,
            token_ids=[],
            block_size=block_tokens[group],
            lora_id=None,
            medium=MEDIA[tier],
            lora_name=None,
            group_idx=group,
        )

    for is_stored, tier, group, identity in events:
        if (is_stored, tier, group) != kind:
            if run:
                yield made()
            kind, run = (is_stored, tier, group), []
        run.append(identity)
    if run:
        yield made()
