# SPDX-License-Identifier: Apache-2.0
"""The scheduler half: vLLM's requests over kvbm.KvbmLeader."""

import logging

from kvbm._core import KvbmLeader, dynamo_variables
from kvbm.vllm_integration.connector_worker import LOCAL_WORKERS, WORKER_VARIABLES

logger = logging.getLogger("kvbm")


def window_blocks(spec, block_tokens: int) -> int:
    """Blocks that a layer group needs to go on after a block boundary; 0: the whole prefix.

    By exact class, not by attribute: a full-attention group may say sliding_window too, where the engine keeps all its
    blocks and other layers of the group read them. Raises NotImplementedError for what is not known.
    """
    kind = type(spec).__name__
    if kind in ("FullAttentionSpec", "MLAAttentionSpec"):
        return 0
    if kind in ("SlidingWindowSpec", "SlidingWindowMLASpec"):
        # The next token sees itself and the window - 1 tokens before it.
        needed = spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)
        return max(1, -(-needed // block_tokens))
    raise NotImplementedError(f"layers with a {kind} are not supported: full attention and sliding windows are")


def priority_of(request) -> int | None:
    """What the request's kv_transfer_params say its blocks are worth keeping, 0 to 100."""
    priority = (getattr(request, "kv_transfer_params", None) or {}).get("priority")
    if priority is None:
        return None
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 100:
        logger.warning("request %s: kv_transfer_params priority is %r, not 0 to 100", request.request_id, priority)
        return None
    return priority


class KvConnectorLeader:
    """Threads: the scheduler's."""

    def __init__(self, vllm_config, kv_cache_config):
        groups = kv_cache_config.kv_cache_groups
        sizes = {group.kv_cache_spec.block_size for group in groups}
        if len(sizes) != 1:
            raise NotImplementedError(f"layer groups with blocks of different sizes are not supported: {sorted(sizes)}")
        self._block_tokens = sizes.pop()
        hash_tokens = getattr(kv_cache_config, "hash_block_size", None) or self._block_tokens
        self._hashes_per_block = self._block_tokens // hash_tokens
        model = vllm_config.model_config
        parallel = vllm_config.parallel_config
        engine_id = vllm_config.kv_transfer_config.engine_id
        workers = []
        for rank in range(parallel.world_size):
            worker = LOCAL_WORKERS.get((engine_id, rank))
            if worker is None:
                raise NotImplementedError(
                    f"rank {rank} runs in another process, which is not supported yet: "
                    "use one worker and VLLM_ENABLE_V1_MULTIPROCESSING=0"
                )
            workers.append(worker)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config or {}
        unknown = set(extra) - {"load_mode"}
        if unknown:
            raise ValueError(f"kv_connector_extra_config: unknown {sorted(unknown)}; known is load_mode")
        load_mode = extra.get("load_mode", "auto")
        if len(groups) > 1:
            # A load that fails in a step can be told by block alone, which the engine takes for one group only.
            load_mode = "between_steps"
        variables = dynamo_variables()
        for name in WORKER_VARIABLES:
            variables.pop(name)
        self._leader = KvbmLeader.create(
            workers,
            model=f"{model.model}@{model.revision or ''}",
            dtype=str(vllm_config.cache_config.cache_dtype) + str(model.dtype),
            scheme=f"vllm-{vllm_config.cache_config.prefix_caching_hash_algo}",
            block_tokens=self._block_tokens,
            window_blocks=[window_blocks(group.kv_cache_spec, self._block_tokens) for group in groups],
            load_mode=load_mode,
            **variables,
        )
        self._requests = {}
        self._no_blocks = [[] for _ in groups]

    @property
    def native(self) -> KvbmLeader:
        return self._leader

    def _extend(self, request):
        """Hands over the hashes of blocks that have become full and accepted."""
        known = self._leader.num_identities(request.request_id)
        per_block = self._hashes_per_block
        hashes = request.block_hashes
        full = len(hashes) // per_block
        if full > known:
            # A hash holds all before it: the last one of a block names the block.
            new = [bytes(hashes[(i + 1) * per_block - 1]) for i in range(known, full)]
            self._leader.extend(request.request_id, new, priority_of(request))

    def get_num_new_matched_tokens(self, request, num_computed_tokens: int) -> tuple[int, bool]:
        self._requests[request.request_id] = request
        self._extend(request)
        return self._leader.match(request.request_id, num_computed_tokens, request.num_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens: int):
        self._requests[request.request_id] = request
        self._leader.allocated(request.request_id, [list(ids) for ids in blocks.get_block_ids()], num_external_tokens)

    def build_connector_meta(self, scheduler_output) -> bytes:
        scheduled = []
        tokens = scheduler_output.num_scheduled_tokens
        for new in scheduler_output.scheduled_new_reqs:
            scheduled.append((new.req_id, [list(ids) for ids in new.block_ids], True, new.num_computed_tokens))
        cached = scheduler_output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            blocks = cached.new_block_ids[i]
            groups = [list(ids) for ids in blocks] if blocks is not None else None
            resumed = request_id in cached.resumed_req_ids
            scheduled.append((request_id, groups, resumed, cached.num_computed_tokens[i]))
        steps = []
        for request_id, groups, replaces, computed in scheduled:
            request = self._requests.get(request_id)
            if request is not None:
                self._extend(request)
            if groups is None:
                groups = self._no_blocks
            steps.append((request_id, groups, replaces, computed, tokens.get(request_id, 0)))
        return self._leader.build_step(steps)

    def request_finished(self, request) -> bool:
        self._requests.pop(request.request_id, None)
        return self._leader.finished(request.request_id)
