#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What kvbm adds to a step of vLLM, over a connector whose hooks do nothing, in the same run.

  step_cost.py [--json FILE] [--rounds N]

The real Scheduler and the hooks of the worker, with tensors so small that bytes do not matter and no model. Steps of both
connectors take turns; figures are differences of medians of the engine thread's CPU time, in which neighbours do not count.
The time that the engine waits for the copy of a load is printed by itself: it is bandwidth, not overhead. The exit status
tells only whether it ran: machines are noisy.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "engine"), str(ROOT / "tests" / "support" / "python"), str(ROOT / "bench")]

from engine_run import engine_environment  # noqa: E402

BLOCK = 16  # tokens
BLOCKS = 1000  # of a large step
LAYERS = 32
TOKEN_BYTES = 4  # of one layer


def make_config(connector: str, module: str):
    from tiny_model import make_tiny_model
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs

    model = make_tiny_model(ROOT / "build" / "models" / "long", max_position_embeddings=4 * BLOCK * BLOCKS)
    config = EngineArgs(
        model=str(model),
        enforce_eager=True,
        dtype="float32",
        max_model_len=2 * BLOCK * BLOCKS,
        max_num_seqs=64,
        max_num_batched_tokens=2 * BLOCK * BLOCKS,
        enable_prefix_caching=True,
        kv_transfer_config=KVTransferConfig(
            kv_connector=connector,
            kv_connector_module_path=module,
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
        ),
    ).create_engine_config()
    config.cache_config.block_size = BLOCK
    config.cache_config.num_gpu_blocks = NUM_BLOCKS
    return config


NUM_BLOCKS = 3 * BLOCKS


class Engine:
    def __init__(self, connector, module):
        import torch
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        self.hash_function = get_hash_fn_by_name("sha256")
        init_none_hash(self.hash_function)
        config = make_config(connector, module)
        self.names = [f"layer{i}" for i in range(LAYERS)]
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=TOKEN_BYTES // 2, dtype=torch.uint8)
        kv_config = KVCacheConfig(
            num_blocks=NUM_BLOCKS,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(self.names, spec)],
            hash_block_size=BLOCK,
        )
        self.tensors = {name: torch.zeros((NUM_BLOCKS, BLOCK, TOKEN_BYTES), dtype=torch.uint8) for name in self.names}
        self.worker = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, kv_config)
        self.worker.register_kv_caches(self.tensors)
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=kv_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=False,
        )
        self.num_requests = 0

    def add(self, prompt, max_tokens):
        from vllm import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        self.num_requests += 1
        request = Request(
            request_id=f"r{self.num_requests}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0),
            pooling_params=None,
            block_hasher=get_request_block_hasher(BLOCK, self.hash_function),
        )
        self.scheduler.add_request(request)
        return request

    def step(self):
        """One step: seconds of CPU, seconds of waiting for the first layer, and the tokens that it computed."""
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        worker = self.worker
        begin = time.thread_time()
        planned = self.scheduler.schedule()
        metadata = planned.kv_connector_metadata
        worker.handle_preemptions(metadata)
        worker.bind_connector_metadata(metadata)
        worker.start_load_kv(None)
        before_layers = time.perf_counter()
        if planned.num_scheduled_tokens:
            worker.wait_for_layer_load(self.names[0])
        after_first_layer = time.perf_counter()
        if planned.num_scheduled_tokens:
            for name in self.names[1:]:
                worker.wait_for_layer_load(name)
            for name in self.names:
                worker.save_kv_layer(name, None, None)
        worker.wait_for_save()
        results = worker.get_transfer_results(planned.finished_req_ids)
        failed = worker.get_block_ids_with_load_errors()
        worker.clear_connector_metadata()
        ids = list(planned.num_scheduled_tokens)
        sampled = []
        for request_id in ids:
            request = self.scheduler.requests[request_id]
            sampled.append([7] if request.num_computed_tokens >= request.num_tokens else [])
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=sampled,
            kv_connector_output=KVConnectorOutput(
                finished_recving=results.finished_recving,
                failed_recving=results.failed_recving,
                invalid_block_ids=failed,
            ),
        )
        self.scheduler.update_from_output(planned, output)
        wait = after_first_layer - before_layers
        return time.thread_time() - begin, wait, planned.total_num_scheduled_tokens

    def finish(self):
        while self.scheduler.has_unfinished_requests() or self.scheduler.has_finished_requests():
            self.step()
        self.step()

    def _num_open(self):
        counted = self.scheduler.connector._leader.native.statistics()
        return sum(value for name, value in counted.items() if name.startswith("kvbm_transfer_inflight"))

    def settle(self):
        """Waits until no copy is under way, so that none takes a core away from what is measured."""
        leader = getattr(self.scheduler.connector, "_leader", None)
        while leader is not None and self._num_open():
            time.sleep(0.001)

    def close(self):
        self.scheduler.shutdown()
        self.worker.shutdown()


def idle_steps(engines, num_requests, steps):
    """Decoding steps in which no block becomes full, in microseconds."""
    found = {name: [] for name in engines}
    for engine in engines.values():
        for i in range(num_requests):
            engine.add([i + 3] * (BLOCK + 1), BLOCK * (steps // BLOCK + 2))
        engine.step()
    for i in range(steps):
        for name, engine in engines.items():
            seconds, _, _ = engine.step()
            if (i + 2) % BLOCK > 2:  # a block is full in every 16th step, and its store ends in the one behind
                found[name].append(seconds * 1e6)
            else:
                engine.settle()
    for engine in engines.values():
        for request_id in list(engine.scheduler.requests):
            from vllm.v1.request import RequestStatus

            engine.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        engine.finish()
        engine.settle()
    return found


def large_steps(engines, rounds):
    """Steps that store, and that load, BLOCKS blocks, in microseconds."""
    stores, loads, waits = ({name: [] for name in engines} for _ in range(3))
    rng = random.Random(1)
    for _ in range(rounds):
        prompt = [rng.randrange(4, 1000) for _ in range(BLOCK * BLOCKS)]
        for name, engine in engines.items():
            engine.add(prompt, 1)
            seconds, _, tokens = engine.step()
            assert tokens == BLOCK * BLOCKS, tokens
            stores[name].append(seconds * 1e6)
            engine.finish()
            engine.settle()
            assert engine.scheduler.reset_prefix_cache()
            engine.add([*prompt, 5], 1)
            seconds, wait, tokens = engine.step()
            assert tokens == (1 if name == "kvbm" else BLOCK * BLOCKS + 1), tokens
            loads[name].append(seconds * 1e6)
            waits[name].append(wait * 1e6)
            engine.finish()
            engine.settle()
            assert engine.scheduler.reset_prefix_cache()
    return stores, loads, waits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.update(engine_environment())
    os.environ["DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS"] = str(2 * BLOCKS)
    engines = {
        "empty": Engine("EmptyConnector", "empty_connector"),
        "kvbm": Engine("DynamoConnector", "kvbm.vllm_integration.connector"),
    }
    figures = []

    def take(what, found, bar):
        empty, kvbm = (statistics.median(found[name]) for name in ("empty", "kvbm"))
        figures.append({"what": what, "empty_us": empty, "kvbm_us": kvbm, "added_us": kvbm - empty, "bar_us": bar})

    take("nothing to do, 1 request", idle_steps(engines, 1, 40 * arguments.rounds), 20)
    take("nothing to do, 32 requests", idle_steps(engines, 32, 20 * arguments.rounds), 20)
    stores, loads, waits = large_steps(engines, arguments.rounds)
    take(f"a step that stores {BLOCKS} blocks", stores, 1000)
    take(f"a step that loads {BLOCKS} blocks", loads, 1000)
    for engine in engines.values():
        engine.close()

    print(f"{'median of steps, in us':<32} {'empty':>9} {'kvbm':>9} {'added':>9} {'bar':>7}")
    for figure in figures:
        met = "" if figure["added_us"] <= figure["bar_us"] else "  above"
        print(
            f"{figure['what']:<32} {figure['empty_us']:>9.1f} {figure['kvbm_us']:>9.1f} {figure['added_us']:>9.1f} "
            f"{figure['bar_us']:>7}{met}"
        )
    wait = statistics.median(waits["kvbm"])
    block_bytes = BLOCK * TOKEN_BYTES * LAYERS
    print(f"waiting for {BLOCKS} blocks of {block_bytes} bytes to arrive: {wait:.1f} us")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"figures": figures, "wait_us": wait}, indent=1) + "\n")


if __name__ == "__main__":
    main()
