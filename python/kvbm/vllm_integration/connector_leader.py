# SPDX-License-Identifier: Apache-2.0
"""The scheduler half: vLLM's requests over kvbm.KvbmLeader."""

import logging

from kvbm._core import KvbmLeader, MetricsReader
from kvbm.vllm_integration.connector_worker import LOCAL_WORKERS, WORKER_SETTINGS, settings_of
from kvbm.vllm_integration.endpoint import meeting_of, remove, uses_channel
from kvbm.vllm_integration.events import MAX_EVENTS, to_kv_cache_events, wants_events
from kvbm.vllm_integration.layer_groups import hash_tokens_of, layer_groups_of
from kvbm.vllm_integration.start_checks import warn_at_start

logger = logging.getLogger("kvbm")

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
        shapes = layer_groups_of(kv_cache_config)
        self._block_tokens = shapes.block_tokens
        smallest = min(self._block_tokens)
        hash_tokens = hash_tokens_of(vllm_config, kv_cache_config)
        if smallest % hash_tokens:
            raise ValueError(f"blocks of {smallest} tokens do not fit hashes over {hash_tokens} tokens")
        self._hashes_per_identity = smallest // hash_tokens
        self._position_tokens = max(self._block_tokens)
        self._hashes_per_position = self._position_tokens // hash_tokens
        model = vllm_config.model_config
        parallel = vllm_config.parallel_config
        engine_id = vllm_config.kv_transfer_config.engine_id
        settings = settings_of(vllm_config)
        if shapes.fails_by_request:
            # A load that fails in a step can be told by block alone.
            settings["load_mode"] = "between_steps"
        for name in WORKER_SETTINGS:
            settings.pop(name)
        endpoint = settings.pop("endpoint")
        meeting = None
        if uses_channel(parallel):
            # The workers have registered their tensors, or will: they come to the endpoint by themselves.
            meeting = meeting_of(vllm_config, endpoint)
            where = {
                "endpoint": meeting.endpoint,
                "secret": meeting.secret,
                "num_ranks": parallel.world_size,
            }
        else:
            where = {"workers": [LOCAL_WORKERS[engine_id, rank] for rank in range(parallel.world_size)]}
        try:
            self._leader = KvbmLeader.create(
                **where,
                model=f"{model.model}@{model.revision or ''}",
                dtype=str(vllm_config.cache_config.cache_dtype) + str(model.dtype),
                scheme=f"vllm-{vllm_config.cache_config.prefix_caching_hash_algo}",
                block_tokens=self._block_tokens,
                window_blocks=shapes.window_blocks,
                max_events=MAX_EVENTS if wants_events(vllm_config) else 0,
                **settings,
            )
        finally:
            if meeting is not None:
                remove(meeting.folder)
        self._wants_events = wants_events(vllm_config)
        self._hash_bytes = 32
        warn_at_start(vllm_config, kv_cache_config, self._leader.num_host_blocks, self._leader.num_disk_blocks)
        self._metrics = MetricsReader(self._leader)
        self._requests = {}
        self._num_known = {}  # by request: blocks of the smallest size whose hashes were handed over
        self._passed = {}  # by request: full positions, all named, that there were when it was passed on last
        self._no_blocks = [[] for _ in groups]

    def shutdown(self):
        """Nothing is called after it."""
        self._leader.stop()

    @property
    def native(self) -> KvbmLeader:
        return self._leader

    def take_changes(self) -> tuple[dict, dict]:
        """By how much counters have grown, and gauges that have changed, since the last call."""
        return self._metrics.take()

    def _extend(self, request):
        """Hands over the hashes of blocks that have become full and accepted."""
        known = self._num_known.get(request.request_id, 0)
        per_block = self._hashes_per_identity
        hashes = request.block_hashes
        full = len(hashes) // per_block
        if full > known:
            # A hash holds all before it: the last one of a block names the block.
            new = hashes[(known + 1) * per_block - 1 : full * per_block : per_block]
            self._hash_bytes = len(new[0])
            self._leader.extend(request.request_id, new, priority_of(request))
            self._num_known[request.request_id] = full

    def get_num_new_matched_tokens(self, request, num_computed_tokens: int) -> tuple[int, bool]:
        self._requests[request.request_id] = request
        self._extend(request)
        return self._leader.match(request.request_id, num_computed_tokens, request.num_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens: int):
        self._requests[request.request_id] = request
        self._leader.allocated(request.request_id, list(blocks.get_block_ids()), num_external_tokens)

    def build_connector_meta(self, scheduler_output) -> bytes:
        tokens = scheduler_output.num_scheduled_tokens
        position_tokens = self._position_tokens
        passed = self._passed
        # While a load is open, blocks may have to be offered later than when they are computed.
        is_quiet = self._leader.num_open_loads == 0
        steps = []

        def take(request_id, groups, replaces, computed, count):
            request = self._requests.get(request_id)
            if request is not None:
                self._extend(request)
                end = (computed + count) // position_tokens
                is_named = len(request.block_hashes) // self._hashes_per_position >= end
                passed[request_id] = end if is_quiet and is_named else None
            steps.append((request_id, list(groups or self._no_blocks), replaces, computed, count))

        for new in scheduler_output.scheduled_new_reqs:
            take(new.req_id, new.block_ids, True, new.num_computed_tokens, tokens.get(new.req_id, 0))
        cached = scheduler_output.scheduled_cached_reqs
        resumed = cached.resumed_req_ids
        for request_id, groups, computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens):
            count = tokens.get(request_id, 0)
            # Most requests of most steps: no block has come, none has become full, and all that are full have names.
            if groups is None and passed.get(request_id) == (computed + count) // position_tokens:
                continue
            take(request_id, groups, request_id in resumed, computed, count)
        return self._leader.build_step(steps)

    def take_events(self):
        """What has come to or left host memory and disk since the last call, as vLLM's events."""
        if not self._wants_events:
            return ()
        return to_kv_cache_events(self._leader.take_events(), self._hash_bytes, self._block_tokens)

    def reset_cache(self):
        self._leader.reset()
        self._passed.clear()

    def request_finished(self, request) -> bool:
        self._requests.pop(request.request_id, None)
        self._num_known.pop(request.request_id, None)
        self._passed.pop(request.request_id, None)
        return self._leader.finished(request.request_id)
