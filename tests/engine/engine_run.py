#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the real vLLM on a tiny model through conversations; prints one line of JSON.

  engine_run.py '{"connector": true, "load_mode": "auto", ...}'      (see Options)
  engine_run.py --serve FD      (imports the engine once, and runs each job of a socket in a fork; see serve())

The engine runs in this process, or with "processes" in one of its own and each worker in another. Each round plays all conversations turn by turn, and ends with a reset of the engine's own prefix cache.
"""

import dataclasses
import gc
import json
import os
import pathlib
import random
import resource
import signal
import socket
import sys
import time
import urllib.request

MAX_JOB_BYTES = 1 << 20
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support" / "python"))


@dataclasses.dataclass
class Options:
    connector: bool = True
    load_mode: str = "auto"
    hybrid: bool = False  # every other layer has a sliding window
    block_sizes: bool = False  # hybrid, and blocks of the layers with a window hold twice the tokens
    gpu_blocks: int = 512  # of the engine
    max_model_len: int = 2048
    conversations: int = 6
    turns: int = 3
    rounds: int = 2
    max_tokens: int = 16
    seed: int = 1
    extra: dict = dataclasses.field(default_factory=dict)  # further kv_connector_extra_config
    prefix_caching: bool = True
    events: bool = False  # reports what the engine publishes
    salts: list = dataclasses.field(default_factory=list)  # of the rounds, as many as rounds
    corrupt_disk: bool = False  # between rounds
    fill_disk: bool = False  # after the first turn: no file can be written any more
    stall_seconds: float = 0  # of the first step of every round but the first
    reset_connector_after: int = -1  # the round whose reset is kvbm's too
    processes: bool = False  # the engine's core and each worker in one of its own
    tensor_parallel: int = 1
    native_pool_bytes: int = 0  # of vLLM's own tiering, with kvbm as its secondary tier


def engine_environment(options: Options | None = None):
    """Has to be set before vLLM is imported; PYTHONHASHSEED before Python starts."""
    options = options or Options()
    several = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if options.tensor_parallel == 2 else {}
    return {
        **several,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(options.processes)),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
    }


class Conversations:
    """Some share a system prompt; questions have mixed lengths."""

    def __init__(self, options: Options):
        self._random = random.Random(options.seed)
        systems = [self._tokens(self._random.randrange(64, 320)) for _ in range(2)]
        self.questions = [
            [self._tokens(self._random.randrange(5, 150)) for _ in range(options.turns)]
            for _ in range(options.conversations)
        ]
        self.starts = [list(self._random.choice(systems)) for _ in range(options.conversations)]

    def _tokens(self, count):
        return [self._random.randrange(4, 1024) for _ in range(count)]


def make_engine(options: Options):
    from tiny_model import make_model_of_two_block_sizes, make_tiny_model
    from vllm import LLM
    from vllm.config import KVEventsConfig, KVTransferConfig

    models = ROOT / "build" / "models"
    if options.block_sizes:
        model = make_model_of_two_block_sizes(models / "block_sizes", sliding_window=128)
    else:
        name = "hybrid" if options.hybrid else "llama"
        model = make_tiny_model(models / name, sliding_window=128 if options.hybrid else None)
    transfer = None
    if options.native_pool_bytes:
        transfer = KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={
                "spec_name": "HostTieringSpec",
                "spec_module_path": "host_tiering",
                "cpu_bytes_to_use": options.native_pool_bytes,
                "secondary_tiers": [
                    {"type": "KvbmSecondaryTierManager", "module_path": "kvbm.vllm_integration.secondary_tier"}
                ],
            },
        )
    elif options.connector:
        transfer = KVTransferConfig(
            kv_connector="DynamoConnector",
            kv_connector_module_path="kvbm.vllm_integration.connector",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"load_mode": options.load_mode, **options.extra},
        )
    # Layers of different groups share memory; with two sizes of blocks each has twice the bytes.
    layers = 2 if options.hybrid else 4
    return LLM(
        model=str(model),
        enforce_eager=True,
        dtype="float32",
        max_model_len=options.max_model_len,
        block_size=32,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes=options.gpu_blocks * layers * 32768 // options.tensor_parallel,
        tensor_parallel_size=options.tensor_parallel,
        kv_transfer_config=transfer,
        enable_prefix_caching=options.prefix_caching,
        kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="null") if options.events else None,
        disable_log_stats=False,
    )


def leader_of(llm, options: Options):
    """kvbm's leader, or None where it is in another process or there is none."""
    if options.processes or not options.connector or options.native_pool_bytes:
        return None
    return llm.llm_engine.engine_core.engine_core.scheduler.connector._leader.native


def show_last_statistics(llm):
    """What was counted after the last look at it is shown with a later step: one that neither stores nor loads."""
    from kvbm.vllm_integration.connector.dynamo_connector import STATS_INTERVAL_SECONDS
    from vllm import SamplingParams

    time.sleep(2 * STATS_INTERVAL_SECONDS)  # until the connector looks again
    llm.generate([{"prompt_token_ids": [5]}], SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)


def tier_of(llm, options: Options):
    """kvbm below vLLM's own tiering, or None."""
    if not options.native_pool_bytes:
        return None
    (tier,) = llm.llm_engine.engine_core.engine_core.scheduler.connector.connector_scheduler.manager.secondary_tiers
    return tier.native


def counted_by_engine(llm, name):
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


def corrupt_disk():
    """Writes nonsense all over the nameless files of the disk tier."""
    folder = os.environ["DYN_KVBM_DISK_CACHE_DIR"]
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        try:
            is_tier = os.readlink(descriptor).startswith(folder)
        except FileNotFoundError:
            continue
        if not is_tier:
            continue
        with open(descriptor, "r+b", buffering=0) as file:
            for offset in range(0, file.seek(0, os.SEEK_END), 16384):
                file.seek(offset)
                file.write(b"nonsense" * 512)


def limit_files(num_bytes):
    """No file can be written beyond that many bytes; -1: any can."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def stall_next_step(seconds):
    """The workers hear of the next step that late."""
    from kvbm.vllm_integration.connector_worker import KvConnectorWorker

    begin_step = KvConnectorWorker.begin_step

    def late(self, step):
        KvConnectorWorker.begin_step = begin_step
        time.sleep(seconds)
        self.begin_step(step)

    KvConnectorWorker.begin_step = late


def record_events(llm):
    """The list of the events that the engine publishes from now on."""
    publisher = llm.llm_engine.engine_core.engine_core.scheduler.kv_event_publisher
    published = []
    publisher.publish = lambda batch: published.extend(batch.events)
    return published


def play(llm, options: Options, salt=None):
    """One round: the outputs by conversation and turn, and what the engine did not have to compute."""
    from vllm import SamplingParams

    conversations = Conversations(options)
    sampling = SamplingParams(temperature=0, max_tokens=options.max_tokens, ignore_eos=True)
    texts = [list(start) for start in conversations.starts]
    outputs = [[] for _ in texts]
    prompt_tokens = cached_tokens = 0
    start = time.perf_counter()
    for turn in range(options.turns):
        for text, questions in zip(texts, conversations.questions):
            text.extend(questions[turn])
        salted = {} if salt is None else {"cache_salt": salt}
        prompts = [{"prompt_token_ids": text, **salted} for text in texts]
        for i, result in enumerate(llm.generate(prompts, sampling, use_tqdm=False)):
            answer = list(result.outputs[0].token_ids)
            prompt_tokens += len(texts[i])
            cached_tokens += result.num_cached_tokens or 0
            outputs[i].append(answer)
            texts[i].extend(answer)
        if options.fill_disk:
            limit_files(0)
    return {
        "outputs": outputs,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "seconds": time.perf_counter() - start,
    }


def serve(connection):
    """Forks for each message, a job as JSON with the files of standard output and error, and answers with the exit code.

    Gives the options to the child. A job: "options", "environment", "seconds" until it is killed.
    """
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401

    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(connection, MAX_JOB_BYTES, 2)
        if not message:
            return None
        job = json.loads(message)
        child = os.fork()
        if not child:
            signal.alarm(job["seconds"])
            os.environ.clear()
            os.environ.update(job["environment"])
            for stream, file in zip((1, 2), files):
                os.dup2(file, stream)
        for file in files:
            os.close(file)
        if not child:
            connection.close()
            return job["options"]
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def main():
    if sys.argv[1:2] == ["--serve"]:
        options = serve(socket.socket(fileno=int(sys.argv[2])))
        if options is None:
            return
    else:
        options = json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")
    run(Options(**options))


def run(options: Options):
    import msgspec

    os.environ.update(engine_environment(options))
    llm = make_engine(options)
    leader = leader_of(llm, options)
    tier = tier_of(llm, options)
    counting = leader or tier
    hits = "vllm:external_prefix_cache_hits"
    rounds = []
    published = record_events(llm) if options.events else []
    for number in range(options.rounds):
        before = counting.statistics() if counting else {}
        hits_before = counted_by_engine(llm, hits)
        if number > 0 and options.stall_seconds:
            stall_next_step(options.stall_seconds)
        played = play(llm, options, options.salts[number] if options.salts else None)
        if not llm.reset_prefix_cache(reset_connector=number == options.reset_connector_after):
            raise RuntimeError("the engine still holds blocks after its requests have ended")
        if options.corrupt_disk:
            corrupt_disk()
        after = counting.statistics() if counting else {}
        played["external_tokens"] = counted_by_engine(llm, hits) - hits_before
        played["statistics"] = {name: value - before.get(name, 0) for name, value in after.items()}
        rounds.append(played)
    limit_files(-1)
    show_last_statistics(llm)
    report = {"rounds": rounds, "preemptions": counted_by_engine(llm, "vllm:num_preemptions")}
    report["events"] = [[type(event).__name__, msgspec.to_builtins(event)] for event in published]
    report["vllm_metrics"] = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:kvbm_"):
            sums = report["vllm_metrics"]
            sums[metric.name] = sums.get(metric.name, 0) + metric.value
    if leader:
        report["open_requests"] = leader.num_requests
        report["open_loads"] = leader.num_open_loads
        groups = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups
        report["block_tokens"] = [group.kv_cache_spec.block_size for group in groups]
        if leader.metrics_port:
            with urllib.request.urlopen(f"http://127.0.0.1:{leader.metrics_port}/metrics", timeout=10) as page:
                report["metrics_page"] = page.read().decode()
        from kvbm.vllm_integration.connector_worker import LOCAL_WORKERS

        (worker,) = LOCAL_WORKERS.values()
        report["worker_statistics"] = worker.statistics()
    if tier:
        report["open_jobs"] = tier.num_open_jobs
    print("RESULT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
