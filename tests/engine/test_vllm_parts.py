# SPDX-License-Identifier: Apache-2.0
"""The parts of the vLLM face by themselves: options, warnings, events, and the canary at registration."""

import dataclasses
import logging
from types import SimpleNamespace

import pytest
import torch
from vllm.distributed.kv_events import BlockRemoved, BlockStored

import kvbm
from kvbm.vllm_integration import connector_leader, connector_worker
from kvbm.vllm_integration.connector_leader import priority_of
from kvbm.vllm_integration.connector_worker import settings_of
from kvbm.vllm_integration.events import to_kv_cache_events, wants_events
from kvbm.vllm_integration.layer_groups import layer_groups_of, window_blocks
from kvbm.vllm_integration.layout import check_canary, check_declared, runs_of
from kvbm.vllm_integration.start_checks import warn_at_start, warnings_of

# --- options


def settings(extra):
    return settings_of(SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra)))


def test_settings_have_defaults_and_take_what_is_given(monkeypatch, tmp_path):
    assert settings(None)["load_mode"] == "auto"
    assert settings(None)["timeout_seconds"] == 30.0
    assert settings({"weights_epoch": 7, "transfer_timeout_seconds": 2})["weights_epoch"] == 7
    file = tmp_path / "kvbm.toml"
    file.write_text("[connector]\nhost_blocks = 3\ndisk_blocks = 3\nmin_priority = 3\n")
    monkeypatch.setenv("KVBM_CONFIG", str(file))
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "2")
    monkeypatch.setenv("DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY", "2")
    found = settings({"min_priority": 1})
    assert (found["host_blocks"], found["disk_blocks"], found["min_priority"]) == (3, 2, 1)


@pytest.mark.parametrize(
    "extra",
    [
        {"weight_epoch": 1},
        {"weights_epoch": -1},
        {"weights_epoch": True},
        {"weights_epoch": "1"},
        {"weights_epoch": 2**64},
        {"weights_epoch": None},
        {"load_mode": "later"},
        {"transfer_timeout_seconds": 0},
        {"transfer_timeout_seconds": float("nan")},
        {"transfer_timeout_seconds": "2"},
        {"place_timeout_seconds": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(extra):
    with pytest.raises(ValueError, match=f"{next(iter(extra))}.*kv_connector_extra_config|kv_connector_extra_config.*{next(iter(extra))}"):
        settings(extra)


@pytest.mark.parametrize("params, priority", [(None, None), ({}, None), ({"priority": 20}, 20), ({"priority": 100}, 100)])
def test_a_request_may_say_what_its_blocks_are_worth(params, priority):
    assert priority_of(SimpleNamespace(request_id="r", kv_transfer_params=params)) == priority


@pytest.mark.parametrize("priority", [-1, 101, "20", True, 0.5])
def test_a_priority_that_makes_no_sense_is_told_and_left_out(priority, caplog):
    request = SimpleNamespace(request_id="r1", kv_transfer_params={"priority": priority})
    assert priority_of(request) is None
    assert f"request r1: kv_transfer_params priority is {priority!r}, not 0 to 100" in caplog.text


# --- layer groups


def spec(name, **values):
    return type(name, (), {"block_size": 32, **values})()


def test_a_window_is_so_many_blocks_that_the_next_token_sees_it():
    for kind in ("FullAttentionSpec", "MLAAttentionSpec"):
        assert window_blocks(spec(kind, sliding_window=128), 32) == 0  # the engine keeps all of it
    for kind in ("SlidingWindowSpec", "SlidingWindowMLASpec"):
        assert [window_blocks(spec(kind, sliding_window=n), 32) for n in (1, 2, 33, 34, 129)] == [1, 1, 1, 2, 4]
    assert window_blocks(spec("SlidingWindowSpec", sliding_window=33, extra_retained_tokens=1), 32) == 2


@pytest.mark.parametrize("kind", ["MambaSpec", "ChunkedLocalAttentionSpec", "CrossAttentionSpec", "NobodyKnowsSpec"])
def test_a_group_of_another_kind_is_refused_by_its_name(kind):
    groups = [SimpleNamespace(kv_cache_spec=spec(name)) for name in ("FullAttentionSpec", kind)]
    with pytest.raises(NotImplementedError, match=f"layers with a {kind} are not supported: full attention and sliding"):
        layer_groups_of(SimpleNamespace(kv_cache_groups=groups))


# --- warnings


def config_of(prefix_caching=True, world_size=1, algorithm="sha256", events=None):
    return SimpleNamespace(
        cache_config=SimpleNamespace(enable_prefix_caching=prefix_caching, prefix_caching_hash_algo=algorithm),
        parallel_config=SimpleNamespace(
            world_size=world_size, data_parallel_size=1, distributed_executor_backend="uni"
        ),
        kv_events_config=events,
    )


GPU_BLOCKS = SimpleNamespace(num_blocks=100)


def test_a_start_as_it_should_be_warns_of_nothing(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    assert warnings_of(config_of(), GPU_BLOCKS, 100, 0) == []
    assert warnings_of(config_of(world_size=2), GPU_BLOCKS, 100, 0) == []
    assert warnings_of(config_of(algorithm="xxhash"), GPU_BLOCKS, 100, 0) == []
    assert warnings_of(config_of(), GPU_BLOCKS, 24, 500) == []
    assert warnings_of(config_of(), GPU_BLOCKS, 0, 500) == []


class KeptMessages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def test_each_trap_is_one_warning(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    config = config_of(prefix_caching=False, world_size=2, algorithm="xxhash")
    texts = warnings_of(config, GPU_BLOCKS, 99, 0)
    assert len(texts) == 3
    assert "prefix caching is off" in texts[0]
    assert "PYTHONHASHSEED" in texts[1]
    assert "99 blocks" in texts[2]
    kept = KeptMessages()
    logger = logging.getLogger("vllm.kvbm")
    monkeypatch.setattr(logger, "handlers", [kept])
    before = logger.level
    logger.setLevel(logging.WARNING)  # the engine's own level may be higher, and is remembered by the logger
    try:
        warn_at_start(config, GPU_BLOCKS, 99, 0)
    finally:
        logger.setLevel(before)
    assert kept.messages == [f"kvbm: {text}" for text in texts]
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(warnings_of(config, GPU_BLOCKS, 99, 0)) == 2


# --- events


def test_events_are_wanted_when_the_engine_publishes_them():
    assert not wants_events(config_of())
    assert not wants_events(config_of(events=SimpleNamespace(enable_kv_cache_events=False)))
    assert wants_events(config_of(events=SimpleNamespace(enable_kv_cache_events=True)))


def test_consecutive_events_of_one_kind_become_one(monkeypatch):
    monkeypatch.setenv("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "0")
    a, b, c = (bytes([i]) * 16 for i in (1, 2, 3))
    padded = [name + bytes(15) + bytes([16]) for name in (a, b, c)]
    events = [(True, 1, 0, padded[0]), (True, 1, 0, padded[1]), (False, 1, 0, padded[0]), (True, 2, 0, padded[0])]
    events.append((True, 2, 1, padded[2]))
    made = list(to_kv_cache_events(events, 16, [32, 64]))
    assert [(type(e), e.block_hashes, e.medium, e.group_idx) for e in made] == [
        (BlockStored, [a, b], "CPU", 0),
        (BlockRemoved, [a], "CPU", 0),
        (BlockStored, [a], "STORAGE", 0),
        (BlockStored, [c], "STORAGE", 1),
    ]
    assert [event.block_size for event in made if isinstance(event, BlockStored)] == [32, 32, 64]
    assert list(to_kv_cache_events([], 16, [32])) == []


# --- the canary

LAYOUTS = {
    "contiguous": lambda: torch.zeros(6, 2, 4, 8),
    "tokens before heads": lambda: torch.zeros(6, 4, 2, 8).permute(0, 2, 1, 3),
    "layers inside of blocks": lambda: torch.zeros(6, 3, 2, 4, 8)[:, 1],
    "halves apart": lambda: torch.zeros(2, 6, 4, 8).permute(1, 0, 2, 3),
    "heads outside": lambda: torch.zeros(3, 6, 4, 8).permute(1, 0, 2, 3),
    "several rows a block": lambda: torch.zeros(12, 2, 4),
    "bf16": lambda: torch.zeros(6, 2, 4, 8, dtype=torch.bfloat16),
    "bytes": lambda: torch.zeros(6, 2, 4, 8, dtype=torch.uint8),
    "fp8": lambda: torch.zeros(6, 2, 4, 8, dtype=torch.uint8).view(torch.float8_e4m3fn),
    "one block": lambda: torch.zeros(1, 2, 4, 8),
}


def runs_for(tensor, num_blocks):
    rows = tensor.shape[0] // num_blocks
    return runs_of("layer", tensor, num_blocks, tensor[:rows].numel() * tensor.element_size())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_canary_agrees_with_every_layout_and_restores_it(name):
    tensor = LAYOUTS[name]()
    num_blocks = 1 if name == "one block" else 6
    tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) % 100)
    before = tensor.clone()
    check_canary("layer", tensor, runs_for(tensor, num_blocks), num_blocks)
    assert torch.equal(tensor.float(), before.float())


def test_the_canary_refuses_runs_that_are_elsewhere():
    tensor = torch.zeros(8, 2, 4, 8)
    good = runs_for(tensor, 8)
    half = good.run_bytes // 2
    address = good.addresses[0]
    for bad in (
        dataclasses.replace(good, block_stride=good.block_stride // 2),
        dataclasses.replace(good, addresses=(address + 4,)),
        dataclasses.replace(good, run_bytes=half, addresses=(address + half, address)),
    ):
        with pytest.raises(ValueError, match="layer3: what is written to block"):
            check_canary("layer3", tensor, bad, 8)
        assert not tensor.any()


def test_declared_strides_have_to_agree_with_the_tensors():
    memory = torch.zeros(2, 6, 4, 8)
    runs = {f"layer{i}": runs_for(memory[i], 6) for i in range(2)}
    page = 4 * 8 * 4

    def declared(**changes):
        tensor = SimpleNamespace(
            **{"layers": ["layer0", "layer1"], "layer_stride": 6 * page, "block_stride": page, **changes}
        )
        return SimpleNamespace(kv_cache_tensors=[tensor], kv_cache_layout="LBNHC")

    check_declared(declared(), runs)
    with pytest.raises(ValueError, match="layer0: blocks are 128 bytes apart in the tensor, 256 in .* LBNHC"):
        check_declared(declared(block_stride=2 * page), runs)
    with pytest.raises(ValueError, match="layer1: lies 768 bytes behind layer0 in memory, 128 in"):
        check_declared(declared(layer_stride=page), runs)
    check_declared(SimpleNamespace(kv_cache_tensors=[]), runs)


# --- what the leader is made of


def test_the_weights_epoch_and_the_timeout_reach_the_core(monkeypatch):
    given = {}

    class Made(Exception):
        pass

    def create(workers, **arguments):
        given.update(arguments)
        raise Made

    monkeypatch.setattr(connector_leader, "KvbmLeader", SimpleNamespace(create=create))
    monkeypatch.setitem(connector_leader.LOCAL_WORKERS, ("engine", 0), object())
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_GB", "1")
    spec = type("FullAttentionSpec", (), {"block_size": 32})()
    config = config_of(events=SimpleNamespace(enable_kv_cache_events=True))
    config.model_config = SimpleNamespace(model="m", revision=None, dtype="float32")
    config.cache_config.cache_dtype = "auto"
    config.kv_transfer_config = SimpleNamespace(
        engine_id="engine", kv_connector_extra_config={"weights_epoch": 5, "transfer_timeout_seconds": 3}
    )
    groups = SimpleNamespace(
        num_blocks=10, hash_block_size=16, kv_cache_groups=[SimpleNamespace(layer_names=["l"], kv_cache_spec=spec)]
    )
    with pytest.raises(Made):
        connector_leader.KvConnectorLeader(config, groups)
    assert (given["weights_epoch"], given["timeout_seconds"]) == (5, 3.0)
    assert (given["block_tokens"], given["window_blocks"]) == ([32], [0])
    assert given["max_events"] > 0
    groups.hash_block_size = 24
    with pytest.raises(ValueError, match="32 tokens do not fit hashes over 24"):
        connector_leader.KvConnectorLeader(config, groups)
    # Of several groups each has its own size, and a window counts in its own blocks.
    window = type("SlidingWindowSpec", (), {"block_size": 64, "sliding_window": 130})()
    groups.hash_block_size = 16
    groups.kv_cache_groups.append(SimpleNamespace(layer_names=["w"], kv_cache_spec=window))
    with pytest.raises(Made):
        connector_leader.KvConnectorLeader(config, groups)
    assert (given["block_tokens"], given["window_blocks"]) == ([32, 64], [0, 3])
    assert given["load_mode"] == "between_steps"


def test_the_worker_refuses_block_sizes_that_do_not_divide_each_other(monkeypatch):
    def group(name, block_size):
        spec = type("FullAttentionSpec", (), {"block_size": block_size, "page_size_bytes": 4096})()
        return SimpleNamespace(layer_names=[name], kv_cache_spec=spec)

    config = config_of()
    config.kv_transfer_config = SimpleNamespace(engine_id="engine")
    config.parallel_config.rank = 0
    groups = SimpleNamespace(num_blocks=4, kv_cache_groups=[group("a", 32), group("b", 48)])
    worker = connector_worker.KvConnectorWorker(config, groups)
    with pytest.raises(kvbm.UnsupportedError, match="blocks of 32 and of 48 tokens"):
        worker.register_kv_caches({name: torch.zeros(4, 1024) for name in "ab"})


# --- the testers


def test_metrics_are_read_as_they_stand():
    from metrics_text import kvbm_metrics, parse_metrics, total

    values = parse_metrics(
        "# HELP kvbm_a what\n# TYPE kvbm_a counter\n"
        'kvbm_a{route="g1_to_g2"} 3\nkvbm_a{route="g2_to_g3"} 4.5e1 1700000000\n\nkvbm_ab 1\nvllm:b NaN\n'
    )
    assert values['kvbm_a{route="g1_to_g2"}'] == 3
    assert total(values, "kvbm_a") == 48
    assert len(kvbm_metrics(values)) == 3
    with pytest.raises(KeyError):
        total(values, "kvbm_")
    with pytest.raises(ValueError, match="no line of metrics: 'kvbm_a'"):
        parse_metrics("kvbm_a")


def test_the_determinism_tester_tells_what_differs():
    from determinism_tester import DeterminismTester

    class Api:
        resets = 0

        def complete_all(self, prompts, max_tokens, concurrency):
            return [prompt.upper() if self.resets == 0 else prompt for prompt in prompts]

        def reset_prefix_cache(self):
            self.resets += 1

    tester = DeterminismTester(Api(), ["one two", "three four"])
    report = tester.check(["ONE TWO", "THREE FOUR"], rounds=2, noise=3)
    assert tester.api.resets == 2
    assert (report.compared, report.success_rate) == (4, 0.5)
    assert sorted(report.different) == [(1, 0, "ONE TWO", "one two"), (1, 1, "THREE FOUR", "three four")]
    assert "2 of 4 answers" in str(report)
    with pytest.raises(ValueError, match="1 answers are expected for 2"):
        tester.check(["ONE TWO"], rounds=1)
