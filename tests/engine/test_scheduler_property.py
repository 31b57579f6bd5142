# SPDX-License-Identifier: Apache-2.0
"""The real Scheduler of vLLM with DynamoConnector in both roles, and a model whose KV is a function of token, position and
layer, through random programs of add, step, abort, reset, pools so small that requests are preempted, budgets of stores so small
that some are dropped, and a disk that loses what was written. Every byte that a step reads is compared; stores hold no block, and
never read more than their budget. When the connector is reset too, the function changes, as it would with new weights.

KVBM_ENGINE_PROGRAMS programs (default 200) from KVBM_SEED (default 1); a failure names its own seed.
"""

import os
import pathlib
import random
import sys
import time

import numpy as np
import pytest
from engine_run import corrupt_disk, engine_environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support" / "python"))

PROGRAMS = int(os.environ.get("KVBM_ENGINE_PROGRAMS", "200"))
SEED = int(os.environ.get("KVBM_SEED", "1"))
BLOCK = 4  # tokens of the smallest blocks
PAGE_BYTES = 64  # of one layer in a block of whatever size

# Layer groups: tokens of a block, and the window in tokens if it has one.
SHAPES = [
    *4 * [[(4, None)]],  # the only one that loads in steps
    [(4, 8)],
    [(4, None), (4, 8)],
    [(4, None), (4, 11)],
    # Blocks of different sizes: where the window has them, and where it has not; a window within one of its own blocks,
    # and one over several of the others'.
    [(8, None), (4, None)],
    [(8, None), (4, 8)],
    [(8, None), (4, 3)],
    [(4, None), (8, 11)],
    [(16, None), (4, 30)],
    [(16, None), (4, 11), (8, None)],
]


def content(token, position, layer):
    """What a layer keeps of a token: a function of what the model would have seen. As much as it has place for."""
    rng = np.random.default_rng((token, position, layer))
    return rng.integers(0, 256, PAGE_BYTES // BLOCK, dtype=np.uint8)


def has_transfer_results():
    """vLLM before 0.30 cannot be told of a failed load as a whole."""
    from vllm.distributed.kv_transfer.kv_connector.v1 import base

    return hasattr(base, "KVConnectorTransferResults")


class Contents:
    """content(), remembered."""

    def __init__(self):
        self._known = {}

    def __call__(self, token, position, layer):
        key = (token, position, layer)
        if key not in self._known:
            self._known[key] = content(*key)
        return self._known[key]


CONTENTS = Contents()


@pytest.fixture(scope="module")
def vllm_parts():
    os.environ.update(engine_environment())
    from tiny_model import make_tiny_model
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import init_none_hash

    model = make_tiny_model(ROOT / "build" / "models" / "llama")
    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)

    def config(num_blocks, **extra):
        made = EngineArgs(
            model=str(model),
            enforce_eager=True,
            dtype="float32",
            max_model_len=BLOCK * 40,
            max_num_seqs=4,
            max_num_batched_tokens=BLOCK * 6,
            enable_prefix_caching=True,
            kv_transfer_config=KVTransferConfig(
                kv_connector="DynamoConnector",
                kv_connector_module_path="kvbm.vllm_integration.connector",
                kv_role="kv_both",
                kv_load_failure_policy="recompute",
                kv_connector_extra_config=extra,
            ),
        ).create_engine_config()
        made.cache_config.block_size = BLOCK
        made.cache_config.num_gpu_blocks = num_blocks
        return made

    return config, hash_function


class Engine:
    """One program's engine. The pool's tensors are shared by the groups, as vLLM's are: a page has the same bytes in all
    of them, however many tokens it holds."""

    def __init__(self, parts, rng, folder, store_budget="auto"):
        import torch
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
        from vllm.v1.structured_output import StructuredOutputManager
        from kvbm.vllm_integration.connector import DynamoConnector

        make_config, self.hash_function = parts
        self.rng = rng
        self.shape = rng.choice(SHAPES)
        # From what one request may need, up to more than all that run.
        num_blocks = rng.randrange(24, 70) if len(self.shape) == 1 else rng.randrange(42, 80)
        load_mode = rng.choice(["auto", "auto", "between_steps"])
        self.store_budget = 1024 if store_budget == "auto" else max(1, int(store_budget * num_blocks))
        self.config = make_config(num_blocks, load_mode=load_mode, store_budget=store_budget)
        memory = [np.zeros((num_blocks, PAGE_BYTES), dtype=np.uint8) for _ in range(2)]
        self.layers = {}  # by name: group, and the memory as [blocks, tokens, bytes]
        groups = []
        for group, (tokens, window) in enumerate(self.shape):
            token_bytes = PAGE_BYTES // tokens
            size = {"block_size": tokens, "num_kv_heads": 1, "head_size": token_bytes // 2, "dtype": torch.uint8}
            spec = FullAttentionSpec(**size) if window is None else SlidingWindowSpec(**size, sliding_window=window)
            assert spec.page_size_bytes == PAGE_BYTES
            names = [f"layer{2 * group + i}" for i in range(2)]
            groups.append(KVCacheGroupSpec(names, spec))
            for name, pages in zip(names, memory):
                self.layers[name] = (group, pages.reshape(num_blocks, tokens, token_bytes))
        self.kv_config = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)
        # As vLLM's engine core does.
        self.config.cache_config.block_size = groups[0].kv_cache_spec.block_size
        scheduler_tokens, self.hash_tokens = resolve_kv_cache_block_sizes(self.kv_config, self.config)
        sizes = [tokens for tokens, _ in self.shape]
        assert (scheduler_tokens, self.hash_tokens) == (max(sizes), min(sizes))
        if hasattr(self.kv_config, "hash_block_size"):  # 0.26 does not say it there
            self.kv_config.hash_block_size = self.hash_tokens
        self.worker = DynamoConnector(self.config, KVConnectorRole.WORKER, self.kv_config)
        tensors = {name: torch.from_numpy(array) for name, (_, array) in self.layers.items()}
        self.worker.register_kv_caches(tensors)
        self.scheduler = Scheduler(
            vllm_config=self.config,
            kv_cache_config=self.kv_config,
            structured_output_manager=StructuredOutputManager(self.config),
            block_size=scheduler_tokens,
            hash_block_size=self.hash_tokens,
            log_stats=False,
        )
        self.blocks = {}  # the worker's block tables: request -> group -> blocks
        self.requests = {}
        self.num_requests = 0
        self.loaded = 0
        self.weights = 0  # changes with every reset of the connector
        self.is_damaged = False  # something on the disk is not what was written
        self.failed_loads = 0
        self.preemptions = 0
        self.held = 0  # requests that were aborted, and whose blocks a load still holds
        self.prefixes = [[rng.randrange(1, 50) for _ in range(BLOCK * rng.randrange(1, 12))] for _ in range(3)]

    @property
    def native(self):
        return self.scheduler.connector._leader.native

    def add(self):
        prefix = self.rng.choice(self.prefixes)
        prompt = prefix[: self.rng.randrange(1, len(prefix) + 1)] + [
            self.rng.randrange(1, 50) for _ in range(self.rng.randrange(0, BLOCK * 4))
        ]
        self.add_request(prompt, self.rng.randrange(1, 20))

    def make_request(self, prompt, max_tokens, **values):
        from vllm import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        self.num_requests += 1
        return Request(
            request_id=f"r{self.num_requests}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0),
            pooling_params=None,
            block_hasher=get_request_block_hasher(self.hash_tokens, self.hash_function),
            **values,
        )

    def add_request(self, prompt, max_tokens):
        request = self.make_request(prompt, max_tokens)
        self.requests[request.request_id] = request
        self.scheduler.add_request(request)

    def loading(self):
        from vllm.v1.request import RequestStatus

        status = RequestStatus.WAITING_FOR_REMOTE_KVS
        return [request_id for request_id, request in self.requests.items() if request.status == status]

    def abort(self):
        from vllm.v1.request import RequestStatus

        if self.requests:
            request_id = self.rng.choice(self.loading() or list(self.requests))
            num_open_loads = self.native.num_open_loads
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            assert num_open_loads or request_id not in self.scheduler.requests, "only a load holds blocks"
            self.held += request_id in self.scheduler.requests

    def step(self):
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        planned = self.scheduler.schedule()
        self.check_stores()
        metadata = planned.kv_connector_metadata
        self.worker.handle_preemptions(metadata)
        self.worker.bind_connector_metadata(metadata)
        self.take_blocks(planned)
        starts_early = getattr(planned, "has_sync_kv_loads", True)  # 0.26 always does
        if starts_early:
            self.worker.start_load_kv(None)
        for i, name in enumerate(self.layers):
            if planned.num_scheduled_tokens:
                self.worker.wait_for_layer_load(name)
                self.compute(planned, i, name)
                self.worker.save_kv_layer(name, None, None)
        if not starts_early:
            self.worker.start_load_kv(None)
        if planned.num_scheduled_tokens or has_transfer_results():  # 0.26 leaves it out where nothing is computed
            self.worker.wait_for_save()
        results = self.transfer_results(planned)
        failed = self.worker.get_block_ids_with_load_errors()
        self.worker.clear_connector_metadata()
        # A load that was given up with its request may be told.
        num_failed = len(failed & self.live_blocks()) + len(results.get("failed_recving") or ())
        assert self.is_damaged or num_failed == 0, "no load fails on a disk that is whole"
        self.failed_loads += num_failed
        ids = list(planned.num_scheduled_tokens)
        sampled = []
        for request_id in ids:
            request = self.scheduler.requests[request_id]
            done = request.num_computed_tokens >= request.num_tokens
            sampled.append([self.rng.randrange(1, 50)] if done else [])
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=sampled,
            kv_connector_output=KVConnectorOutput(
                **results,
                invalid_block_ids=failed,
            ),
        )
        self.scheduler.update_from_output(planned, output)
        self.check_stores()
        for request_id in list(self.requests):
            if self.requests[request_id].is_finished():
                self.preemptions += self.requests.pop(request_id).num_preemptions
        return bool(ids)

    def check_stores(self):
        """They read no more blocks than they may, and hold none: every block is free or a request's."""
        statistics = self.native.statistics()
        assert statistics["kvbm_store_budget_blocks"] <= self.store_budget
        assert statistics["kvbm_store_open_blocks"] <= statistics["kvbm_store_budget_blocks"]
        manager = self.scheduler.kv_cache_manager
        held = {b for request_id in self.scheduler.requests for ids in manager.get_block_ids(request_id) for b in ids} - {0}
        free = manager.block_pool.get_num_free_blocks()
        assert free + len(held) == self.kv_config.num_blocks - 1, "a block is neither free nor a request's"
        for request in self.scheduler.requests.values():
            is_aborted = request.status.name == "FINISHED_ABORTED"  # while it was loading, see abort()
            assert is_aborted or not request.is_finished(), f"{request.request_id} has ended and holds blocks"

    def transfer_results(self, planned):
        """What vLLM's worker asks for after a step, by name."""
        if has_transfer_results():
            return vars(self.worker.get_transfer_results(planned.finished_req_ids))
        sent, received = self.worker.get_finished(planned.finished_req_ids)
        return {"finished_sending": sent, "finished_recving": received}

    def live_blocks(self):
        manager = self.scheduler.kv_cache_manager
        live = [request_id for request_id, request in self.requests.items() if not request.is_finished()]
        return {b for request_id in live for ids in manager.get_block_ids(request_id) for b in ids} - {0}

    def take_blocks(self, planned):
        for request_id in planned.finished_req_ids:
            self.blocks.pop(request_id, None)
        for new in planned.scheduled_new_reqs:
            self.blocks[new.req_id] = [list(ids) for ids in new.block_ids]
            if new.num_computed_tokens:
                self.loaded += 1
        cached = planned.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            added = cached.new_block_ids[i]
            if request_id in cached.resumed_req_ids:
                self.blocks[request_id] = [list(ids) for ids in added]
            elif added is not None:
                for have, ids in zip(self.blocks[request_id], added):
                    have.extend(ids)

    def compute(self, planned, layer, name):
        """Reads what attention would read, and writes the scheduled tokens."""
        group, memory = self.layers[name]
        size, window = self.shape[group]
        token_bytes = memory.shape[2]
        kind = layer + 10 * self.weights
        for request_id, count in planned.num_scheduled_tokens.items():
            request = self.scheduler.requests[request_id]
            tokens = request.all_token_ids
            end = request.num_computed_tokens  # the scheduler has advanced it already
            begin = end - count
            table = self.blocks[request_id][group]
            for position in range(begin, end):
                value = CONTENTS(tokens[position], position, kind)[:token_bytes]
                memory[table[position // size], position % size] = value
            first = 0 if window is None else max(0, begin - window + 1)
            for position in range(first, begin):
                found = memory[table[position // size], position % size]
                if not np.array_equal(found, CONTENTS(tokens[position], position, kind)[:token_bytes]):
                    raise AssertionError(f"{name} of {request_id} at token {position} of {begin}: {found[:4]} ...")

    def finish(self):
        deadline = time.monotonic() + 60
        while self.scheduler.has_unfinished_requests() or self.scheduler.has_finished_requests():
            assert time.monotonic() < deadline, f"{len(self.requests)} requests do not end"
            if not self.step():
                time.sleep(0.0005)  # a load is under way
        self.step()
        assert not self.requests
        assert not self.scheduler.requests, "the scheduler still knows requests"
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == self.kv_config.num_blocks - 1, "blocks are leaked"  # one is the null block
        assert (self.native.num_requests, self.native.num_open_loads) == (0, 0)
        while self.num_open_copies():
            assert time.monotonic() < deadline, "a copy does not end"
            self.step()

    def num_open_copies(self):
        statistics = self.native.statistics()
        return sum(statistics[f"kvbm_transfer_inflight{{operation={name}}}"] for name in ("offload", "onboard"))

    def change_weights(self):
        self.finish()
        assert self.scheduler.reset_prefix_cache(reset_connector=True)
        self.weights += 1

    def damage_disk(self):
        """What lies there fails to load, and the engine computes it."""
        has_disk = "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS" in os.environ
        if has_disk and (self.shape == [(4, None)] or has_transfer_results()):
            self.is_damaged = True
            corrupt_disk()

    def close(self):
        self.scheduler.shutdown()
        self.worker.shutdown()


def run_program(parts, seed, folder, monkeypatch):
    rng = random.Random(seed)
    has_disk = rng.random() < 0.5
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", str(rng.randrange(8, 40 if has_disk else 120)))
    if has_disk:
        monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", str(rng.randrange(20, 200)))
        monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(folder))
        monkeypatch.setenv("DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER", rng.choice(["true", "false"]))
        monkeypatch.setenv("DYN_KVBM_DISK_DISABLE_O_DIRECT", rng.choice(["true", "false"]))
    else:
        monkeypatch.delenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", raising=False)
    engine = Engine(parts, rng, folder, rng.choice(["auto", "auto", 0.02, 0.1]))
    try:
        for _ in range(rng.randrange(20, 120)):
            what = rng.random()
            if what < 0.25 and len(engine.requests) < 8:
                engine.add()
            elif what < (0.35 if engine.loading() else 0.29):
                engine.abort()
            elif what < 0.38:
                engine.scheduler.reset_prefix_cache()
            elif what < 0.39:
                engine.change_weights()
            elif what < 0.43:
                engine.damage_disk()
            else:
                engine.step()
        engine.finish()
        counted = {"failed loads": engine.failed_loads, "preemptions": engine.preemptions, "held": engine.held}
        return engine.shape, {**engine.native.statistics(), **counted}
    finally:
        engine.close()


def test_random_programs(vllm_parts, tmp_path, monkeypatch):
    moved = {}
    loaded = {}  # by shape: blocks
    for seed in range(SEED, SEED + PROGRAMS):
        try:
            shape, statistics = run_program(vllm_parts, seed, tmp_path, monkeypatch)
        except BaseException as error:
            raise AssertionError(f"KVBM_SEED={seed} KVBM_ENGINE_PROGRAMS=1 fails: {error!r}") from error
        for name, value in statistics.items():
            moved[name] = moved.get(name, 0) + value
        blocks = statistics.get("kvbm_transfer_blocks_total{route=g2_to_g1}", 0)
        loaded[str(shape)] = loaded.get(str(shape), 0) + blocks
    # The programs reach what they are for.
    if PROGRAMS >= 100:
        for route in ("g1_to_g2", "g2_to_g1", "g2_to_g3", "g3_to_g2"):
            assert moved[f"kvbm_transfer_blocks_total{{route={route}}}"] > 0, route
        for shape in SHAPES:
            assert loaded[str(shape)] > 0, shape
        for tier in ("g2", "g3"):
            assert moved[f"kvbm_forgotten_blocks_total{{tier={tier}}}"] > 0, tier
        for what in ("failed loads", "preemptions", "held", "kvbm_store_dropped_blocks_total{reason=backlog}"):
            assert moved[what] > 0, what


@pytest.mark.parametrize("seed", range(1, 7))
def test_what_the_scheduler_keeps_over_a_reset_is_not_stored(vllm_parts, tmp_path, monkeypatch, seed):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "100")
    engine = Engine(vllm_parts, random.Random(seed), tmp_path)
    scheduler = engine.scheduler
    prompt = list(range(1, 6 * BLOCK + 2))
    num_blocks = engine.native.statistics()["kvbm_blocks_free{pool=g2}"]  # of all groups

    def ask(max_tokens=1):
        """Whether anything was found for the prompt, by the engine or below it."""
        before = engine.loaded
        engine.add_request(prompt, max_tokens)
        engine.finish()
        return engine.loaded > before

    def num_stored():
        """When nothing is under way any more."""
        deadline = time.monotonic() + 20
        while engine.native.statistics()["kvbm_blocks_free{pool=g2}"] < num_blocks and time.monotonic() < deadline:
            pass
        return engine.native.statistics()["kvbm_inactive_pool_size{pool=g2}"]

    try:
        engine.add_request(prompt, 3 * BLOCK)
        for _ in range(4):
            engine.step()
        assert not scheduler.reset_prefix_cache(reset_connector=True), "the request holds its blocks"
        engine.finish()
        assert ask(2 * BLOCK), "the engine keeps its own"
        assert num_stored() == 0, "what the engine had kept was stored"
        assert scheduler.reset_prefix_cache()
        assert not ask()
        assert num_stored() > 0, "what is computed anew is stored"
        assert scheduler.reset_prefix_cache()
        assert ask()
    finally:
        engine.close()


def test_salts_adapters_and_images_share_nothing(vllm_parts, tmp_path, monkeypatch):
    from vllm.lora.request import LoRARequest
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    def image(name):
        return [MultiModalFeatureSpec(None, "image", name, PlaceholderRange(offset=BLOCK, length=BLOCK))]

    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "200")
    monkeypatch.setattr(sys.modules[__name__], "SHAPES", [[(BLOCK, None)]])
    engine = Engine(vllm_parts, random.Random(1), tmp_path)
    leader = engine.scheduler.connector._leader
    prompt = list(range(1, 6 * BLOCK + 2))

    def found(**values):
        request = engine.make_request(prompt, 1, **values)
        tokens, _ = leader.get_num_new_matched_tokens(request, 0)
        leader.request_finished(request)
        return tokens

    try:
        engine.add_request(prompt, 1)
        engine.finish()
        assert found() == 6 * BLOCK
        assert found(cache_salt="theirs") == 0
        assert found(lora_request=LoRARequest("adapter", 1, "path")) == 0
        # What lies before an image is the same.
        assert found(mm_features=image("cat")) == BLOCK
    finally:
        engine.close()
