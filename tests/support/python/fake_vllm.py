# SPDX-License-Identifier: Apache-2.0
"""As much of vLLM as DynamoConnector meets, in the shape of one release or another: what it imports, and who calls its hooks.

An Era says what differs between releases. installed() puts its modules in the place of vLLM's; FakeEngine plays scheduler and
model runner, and holds the connector to vLLM's contract. tests/engine/test_releases.py compares the shapes with the vLLM that
is installed.
"""

import abc
import contextlib
import dataclasses
import enum
import hashlib
import pickle
import sys
import time
import types

import numpy as np

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
HASH_TOKENS = 2  # of one hash: fewer than a block has
PAGE_BYTES = 64  # of one layer in a block of whatever size


@dataclasses.dataclass(frozen=True)
class Era:
    name: str
    tells_failed_loads: bool  # get_transfer_results(), by which a load can fail as a whole, instead of get_finished()
    starts_loads_late: bool  # start_load_kv() comes after the forward where no request of the step waits for it
    ends_empty_steps: bool  # wait_for_save() is called where nothing is computed, too
    says_hash_tokens: bool  # in the KV cache's config
    says_strides: bool  # of the KV tensors, and their layout
    agrees_on_hashes: bool  # sha256 has one seed in all processes
    retains_more: bool  # a sliding window may say extra_retained_tokens
    media: tuple[str, ...]  # constants of kv_events


V0_26 = Era("0.26", False, False, False, False, False, False, False, ("GPU", "CPU", "FS", "OBJ"))
V0_32 = Era("0.32", True, True, True, True, True, True, True, ("GPU", "CPU", "STORAGE"))
ERAS = (V0_26, V0_32)


# --- what a connector imports


class Role(enum.Enum):
    SCHEDULER = 0
    WORKER = 1


class Metadata(abc.ABC):  # noqa: B024
    pass


class SupportsHMA(abc.ABC):
    @abc.abstractmethod
    def request_finished_all_groups(self, request, block_ids): ...


class ConnectorBase(abc.ABC):
    """The hooks of both releases."""

    def __init__(self, vllm_config, role, kv_cache_config):
        self._connector_metadata = None
        self._vllm_config = vllm_config
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._kv_cache_config = kv_cache_config
        self._role = role

    @property
    def role(self):
        return self._role

    def bind_connector_metadata(self, connector_metadata):
        self._connector_metadata = connector_metadata

    def clear_connector_metadata(self):
        self._connector_metadata = None

    def has_connector_metadata(self):
        return self._connector_metadata is not None

    def register_kv_caches(self, kv_caches): ...

    def set_host_xfer_buffer_ops(self, copy_operation): ...

    def handle_preemptions(self, kv_connector_metadata): ...

    @abc.abstractmethod
    def start_load_kv(self, forward_context, **kwargs): ...

    @abc.abstractmethod
    def wait_for_layer_load(self, layer_name): ...

    @abc.abstractmethod
    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs): ...

    @abc.abstractmethod
    def wait_for_save(self): ...

    def get_finished(self, finished_req_ids):
        return None, None

    def get_block_ids_with_load_errors(self):
        return set()

    def shutdown(self): ...

    def get_kv_connector_stats(self): ...

    def get_kv_connector_kv_cache_events(self): ...

    def get_handshake_metadata(self): ...

    def build_connector_worker_meta(self): ...

    def bind_gpu_block_pool(self, gpu_block_pool): ...

    @abc.abstractmethod
    def get_num_new_matched_tokens(self, request, num_computed_tokens): ...

    @abc.abstractmethod
    def update_state_after_alloc(self, request, blocks, num_external_tokens): ...

    @abc.abstractmethod
    def build_connector_meta(self, scheduler_output): ...

    def on_new_request(self, request): ...

    def update_connector_output(self, connector_output): ...

    def request_finished(self, request, block_ids):
        return False, None

    def take_events(self):
        return ()

    def has_pending_push_work(self):
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config): ...

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config):
        return False

    def get_finished_count(self): ...

    @classmethod
    def build_kv_connector_stats(cls, data=None): ...

    def set_xfer_handshake_metadata(self, metadata): ...

    def set_xfer_handshake_metadata_pp_aware(self, metadata):
        self.set_xfer_handshake_metadata(metadata)

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues): ...

    def reset_cache(self): ...


class OldConnectorBase(ConnectorBase):
    @property
    def prefer_cross_layer_blocks(self):
        return False

    def register_cross_layers_kv_cache(self, kv_cache, attn_backend): ...


@dataclasses.dataclass
class TransferResults:
    finished_sending: set = dataclasses.field(default_factory=set)
    finished_recving: set = dataclasses.field(default_factory=set)
    failed_recving: set = dataclasses.field(default_factory=set)


class NewConnectorBase(ConnectorBase):
    @property
    def supports_divergent_local_hybrid_hits(self):
        return False

    @property
    def requires_kv_delivery(self):
        return True

    def get_mem_pool_context(self): ...

    def finish_forward(self): ...

    def reset_capture_state(self): ...

    def get_transfer_results(self, finished_req_ids):
        sent, received = self.get_finished(finished_req_ids)
        return TransferResults(set(sent or ()), set(received or ()))

    def bind_kv_cache_manager(self, kv_cache_manager):
        self.bind_gpu_block_pool(kv_cache_manager.block_pool)

    def get_loaded_kv_cache_group_ids(self, request):
        return tuple(range(len(self._kv_cache_config.kv_cache_groups)))

    def get_external_cache_hit_sources(self, request, num_external_tokens):
        return {}

    def register_finished_partial_tail(self, request, block_ids, partial_tail_offloads):
        return False

    def has_pending_block_frees(self):
        return False


@dataclasses.dataclass
class Stats:
    data: dict = dataclasses.field(default_factory=dict)


class PromMetrics:
    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        self.per_engine_labelvalues = per_engine_labelvalues


@dataclasses.dataclass
class BlockStored:
    block_hashes: list
    parent_block_hash: object
    token_ids: list
    block_size: int
    lora_id: object
    medium: str
    lora_name: object
    extra_keys: object = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None


@dataclasses.dataclass
class BlockRemoved:
    block_hashes: list
    medium: str
    group_idx: int | None = None
    locality: str | None = None


@dataclasses.dataclass
class OldKVCacheTensor:
    size: int
    shared_by: list
    offset: int = 0
    block_stride: int = 0


@dataclasses.dataclass
class NewKVCacheTensor:
    size: int
    layers: list
    layer_stride: int
    block_stride: int
    offset: int = 0


def modules_of(era: Era) -> dict[str, types.ModuleType]:
    base = {
        "KVConnectorBase_V1": NewConnectorBase if era.tells_failed_loads else OldConnectorBase,
        "KVConnectorMetadata": Metadata,
        "KVConnectorRole": Role,
        "SupportsHMA": SupportsHMA,
    }
    if era.tells_failed_loads:
        base["KVConnectorTransferResults"] = TransferResults
    utils = {
        "maybe_convert_block_hash": lambda name: int.from_bytes(name, "big") & (2**64 - 1),
        "resolve_kv_cache_block_sizes": lambda config, _: (max_tokens(config), HASH_TOKENS),
    }
    if era.agrees_on_hashes:
        utils["DEFAULT_NONE_HASH_SEED"] = "seed"
    events = {f"MEDIUM_{name}": name for name in era.media}
    contents = {
        BASE: base,
        BASE.replace("base", "metrics"): {"KVConnectorStats": Stats, "KVConnectorPromMetrics": PromMetrics},
        "vllm.distributed.kv_events": {"BlockStored": BlockStored, "BlockRemoved": BlockRemoved, **events},
        "vllm.v1.core.kv_cache_utils": utils,
    }
    modules = {}
    for path, names in contents.items():
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            module = modules.setdefault(name, types.ModuleType(name))
            module.__path__ = []
            if i > 1:
                setattr(modules[".".join(parts[: i - 1])], parts[i - 1], module)
        vars(modules[path]).update(names)
    return modules


def max_tokens(config) -> int:
    return max(group.kv_cache_spec.block_size for group in config.kv_cache_groups)


@contextlib.contextmanager
def installed(era: Era):
    """Imports of vllm find the era's, and kvbm.vllm_integration is imported anew. Gives the module of DynamoConnector."""
    import kvbm

    def is_concerned(name):
        return name == "vllm" or name.startswith(("vllm.", "kvbm.vllm_integration"))

    kept = {name: module for name, module in sys.modules.items() if is_concerned(name)}
    integration = vars(kvbm).get("vllm_integration")
    for name in kept:
        del sys.modules[name]
    sys.modules.update(modules_of(era))
    try:
        from kvbm.vllm_integration import connector

        yield connector
    finally:
        for name in [name for name in sys.modules if is_concerned(name)]:
            del sys.modules[name]
        sys.modules.update(kept)
        if integration is not None:
            kvbm.vllm_integration = integration


# --- who calls the hooks


def spec_of(era: Era, tokens: int, window: int | None):
    """By the name of its class, as vLLM's are told apart."""
    fields = {"block_size": tokens, "page_size_bytes": PAGE_BYTES}
    if window is None:
        return type("FullAttentionSpec", (), fields)()
    if era.retains_more:
        fields["extra_retained_tokens"] = 0
    return type("SlidingWindowSpec", (), {**fields, "sliding_window": window})()


def content(token, position, layer, num_bytes):
    return np.random.default_rng((token, position, layer)).integers(0, 256, num_bytes, dtype=np.uint8)


class FakeEngine:
    """One request at a time, in steps of at most `step_tokens` tokens, and no prefix cache of its own: what is found is kvbm's.

    groups: (tokens of a block, window in tokens or None) by layer group, of two layers each.
    """

    def __init__(self, era: Era, connector_class, groups, extra, num_blocks=40, step_tokens=8):
        import torch

        self.era, self.step_tokens, self.num_blocks = era, step_tokens, num_blocks
        self.config = types.SimpleNamespace(
            instance_id="1",
            kv_transfer_config=types.SimpleNamespace(engine_id="fake", kv_connector_extra_config=extra),
            parallel_config=types.SimpleNamespace(rank=0, world_size=1, distributed_executor_backend="uni"),
            model_config=types.SimpleNamespace(model="m", revision=None, dtype="uint8"),
            cache_config=types.SimpleNamespace(
                cache_dtype="auto", prefix_caching_hash_algo="sha256", enable_prefix_caching=True
            ),
            kv_events_config=types.SimpleNamespace(enable_kv_cache_events=True),
        )
        names = [[f"layer{2 * group + i}" for i in range(2)] for group in range(len(groups))]
        self.layers = {}  # by name: group, tokens of a block, window, the memory as [blocks, tokens, bytes]
        tensors, declared = {}, []
        for group, (tokens, window) in enumerate(groups):
            memory = np.zeros((2, num_blocks, tokens, PAGE_BYTES // tokens), dtype=np.uint8)
            for name, of_layer in zip(names[group], memory):
                self.layers[name] = (group, tokens, window, of_layer)
                tensors[name] = torch.from_numpy(of_layer)
                if not era.says_strides:
                    declared.append(OldKVCacheTensor(of_layer.nbytes, [name]))
            if era.says_strides:
                declared.append(NewKVCacheTensor(memory.nbytes, names[group], memory[0].nbytes, PAGE_BYTES))
        self.kv_config = types.SimpleNamespace(
            num_blocks=num_blocks,
            kv_cache_tensors=declared,
            kv_cache_groups=[
                types.SimpleNamespace(layer_names=names[group], kv_cache_spec=spec_of(era, *shape))
                for group, shape in enumerate(groups)
            ],
        )
        if era.says_hash_tokens:
            self.kv_config.hash_block_size = HASH_TOKENS
        if era.says_strides:
            self.kv_config.kv_cache_layout = "LBNHC"
        self.worker = connector_class(self.config, Role.WORKER, self.kv_config)
        self.worker.register_kv_caches(tensors)
        self.worker.set_host_xfer_buffer_ops(None)
        self.scheduler = connector_class(self.config, Role.SCHEDULER, self.kv_config)
        if era.tells_failed_loads:
            pool = types.SimpleNamespace()
            self.scheduler.bind_kv_cache_manager(types.SimpleNamespace(block_pool=pool))
        else:
            self.scheduler.bind_gpu_block_pool(types.SimpleNamespace())
        assert self.scheduler.get_finished_count() is None
        assert self.worker.get_handshake_metadata() is None
        self.scheduler.set_xfer_handshake_metadata_pp_aware({})
        self.free = list(range(1, num_blocks))
        self.waiting = None  # the request whose load between steps is under way
        self.finished = set()  # told with the next step
        self.events = []
        self.counted = {}
        self.num_requests = 0
        self.waits = 0  # steps in which nothing was computed, as a load was under way

    def run(self, prompt) -> int:
        """Computes the prompt; every byte that is read is compared. Gives the tokens that were found."""
        request = self._request(prompt)
        self.scheduler.on_new_request(request)
        found, between_steps = self.scheduler.get_num_new_matched_tokens(request, 0)
        assert not (between_steps and found == 0), "a load of nothing is none"
        for group, (_, tokens, _, _) in enumerate(list(self.layers.values())[::2]):
            for _ in range(-(-len(prompt) // tokens)):
                request.blocks[group].append(self.free.pop(0))
        self.scheduler.update_state_after_alloc(request, self._blocks(request), found)
        computed = found
        if between_steps:
            computed = self._wait_for(request, found)
        is_new, is_sync = True, found > 0 and not between_steps
        while computed < len(prompt):
            count = min(self.step_tokens, len(prompt) - computed)
            failed = self._step([(request, computed, count, is_new)], is_sync)
            is_new, is_sync = False, False
            assert not failed, "a load in the step has failed"
            computed += count
        hold, _ = self.scheduler.request_finished_all_groups(request, tuple(request.blocks))
        assert not hold, "stores hold no block"
        self.finished.add(request.request_id)
        for blocks in request.blocks:
            self.free.extend(blocks)
        return found

    def settle(self):
        """Steps without work, until no copy is under way."""
        deadline = time.monotonic() + 20
        while sum(v for k, v in self.native.statistics().items() if k.startswith("kvbm_transfer_inflight")):
            assert time.monotonic() < deadline, "a copy does not end"
            self._step([], False)

    def show_counts(self):
        """Brings `counted` up to date: the connector looks at its counters from time to time."""
        from kvbm.vllm_integration.connector.dynamo_connector import STATS_INTERVAL_SECONDS

        time.sleep(2 * STATS_INTERVAL_SECONDS)
        self._step([], False)

    @property
    def native(self):
        return self.scheduler._leader.native

    def close(self):
        self.scheduler.shutdown()
        self.worker.shutdown()

    def _request(self, prompt):
        hashes, parent = [], b"root"
        for i in range(HASH_TOKENS, len(prompt) + 1, HASH_TOKENS):
            parent = hashlib.sha256(parent + repr(prompt[i - HASH_TOKENS : i]).encode()).digest()
            hashes.append(parent)
        self.num_requests += 1
        return types.SimpleNamespace(
            request_id=f"r{self.num_requests}",
            prompt=prompt,
            num_tokens=len(prompt),
            block_hashes=hashes,
            kv_transfer_params=None,
            blocks=[[] for _ in self.kv_config.kv_cache_groups],
        )

    @staticmethod
    def _blocks(request):
        return types.SimpleNamespace(get_block_ids=lambda: tuple(request.blocks))

    def _wait_for(self, request, found):
        """Nothing is computed meanwhile. Gives how many tokens have come."""
        self.waiting = request
        deadline = time.monotonic() + 20
        while self.waiting is not None:
            assert time.monotonic() < deadline, "a load does not end"
            failed = self._step([], False)
            self.waits += 1
            if failed:
                found = 0 if failed is True else min(self._first_token(request, failed), found)
        self.scheduler.update_state_after_alloc(request, self._blocks(request), 0)
        return found

    def _first_token(self, request, failed):
        return min(request.blocks[0].index(block) for block in failed) * self.layers["layer0"][1]

    def _step(self, scheduled, is_sync):
        """Failed blocks of the request that waits or runs, or True for all of them."""
        new = [entry for entry in scheduled if entry[3]]
        cached = [entry for entry in scheduled if not entry[3]]
        finished, self.finished = self.finished, set()
        planned = types.SimpleNamespace(
            finished_req_ids=finished,
            num_scheduled_tokens={request.request_id: count for request, _, count, _ in scheduled},
            scheduled_new_reqs=[
                types.SimpleNamespace(
                    req_id=request.request_id, block_ids=tuple(request.blocks), num_computed_tokens=computed
                )
                for request, computed, _, _ in new
            ],
            scheduled_cached_reqs=types.SimpleNamespace(
                req_ids=[request.request_id for request, _, _, _ in cached],
                resumed_req_ids=set(),
                new_block_ids=[None for _ in cached],
                num_computed_tokens=[computed for _, computed, _, _ in cached],
            ),
        )
        metadata = pickle.loads(pickle.dumps(self.scheduler.build_connector_meta(planned)))
        results = self._run_model(planned, metadata, scheduled, is_sync)
        failed = self.worker.get_block_ids_with_load_errors()
        self._count(self.worker.get_kv_connector_stats())
        assert self.worker.get_kv_connector_kv_cache_events() is None
        assert self.worker.build_connector_worker_meta() is None
        self.worker.clear_connector_metadata()
        self.scheduler.update_connector_output(types.SimpleNamespace(**vars(results), invalid_block_ids=failed))
        self._count(self.scheduler.get_kv_connector_stats())
        self.events += self.scheduler.take_events()
        assert not results.finished_sending, "nothing is held for a store"
        for request_id in results.finished_recving | results.failed_recving:
            assert self.waiting is not None and request_id == self.waiting.request_id, f"nobody waits for {request_id}"
        if results.finished_recving:
            self.waiting = None
        return bool(results.failed_recving) or failed

    def _run_model(self, planned, metadata, scheduled, is_sync):
        """A step of the model runner, as the release calls the hooks."""
        worker, era = self.worker, self.era
        worker.handle_preemptions(metadata)
        worker.bind_connector_metadata(metadata)
        arguments = {"scheduler_output": planned, "num_tokens": 1} if era.starts_loads_late and scheduled else {}
        is_late = era.starts_loads_late and not is_sync
        if not is_late:
            worker.start_load_kv(None, **arguments)
        if scheduled:
            for i, name in enumerate(self.layers):
                worker.wait_for_layer_load(name)
                for request, computed, count, _ in scheduled:
                    self._compute(request, computed, count, i, name)
                worker.save_kv_layer(name, None, None)
        if is_late:
            worker.start_load_kv(None, **arguments)
        if era.tells_failed_loads:
            worker.finish_forward()
        if scheduled or era.ends_empty_steps:
            worker.wait_for_save()
        if era.tells_failed_loads:
            return worker.get_transfer_results(planned.finished_req_ids)
        sent, received = worker.get_finished(planned.finished_req_ids)
        assert received is None or received, "None, and no empty set"
        return TransferResults(sent or set(), received or set())

    def _compute(self, request, computed, count, layer, name):
        group, tokens, window, memory = self.layers[name]
        table = request.blocks[group]
        first = 0 if window is None else max(0, computed - window + 1)
        for position in range(first, computed):
            expected = content(request.prompt[position], position, layer, memory.shape[2])
            found = memory[table[position // tokens], position % tokens]
            assert np.array_equal(found, expected), f"{name} of {request.request_id}: token {position} of {computed}"
        for position in range(computed, computed + count):
            value = content(request.prompt[position], position, layer, memory.shape[2])
            memory[table[position // tokens], position % tokens] = value

    def _count(self, stats):
        if stats is not None:
            for series, growth in stats.data["counters"].items():
                self.counted[series] = self.counted.get(series, 0) + growth
