# SPDX-License-Identifier: Apache-2.0
"""The releases of vLLM that are not installed here: DynamoConnector with the hooks, orders and signatures of each."""

import dataclasses
import inspect
import os
import pathlib
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support" / "python"))

import fake_vllm  # noqa: E402
from fake_vllm import ERAS, V0_26, V0_32, FakeEngine, installed  # noqa: E402

GROUPS = {
    "one group": [(4, None)],
    "a window": [(4, None), (4, 6)],
    "two sizes": [(8, None), (4, 6)],
}


def eras(test):
    return pytest.mark.parametrize("era", ERAS, ids=lambda era: era.name)(test)


@pytest.fixture
def play(monkeypatch):
    """play(era, groups, host_blocks=…, load_mode=…): an engine whose connector has the shape of that release."""
    engines = []
    contexts = []

    def start(era, groups, **extra):
        context = installed(era)
        connector = context.__enter__()
        contexts.append(context)
        engines.append(FakeEngine(era, connector.DynamoConnector, groups, extra))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
    for context in contexts:
        context.__exit__(None, None, None)


PROMPT = list(range(1, 34))  # 32 tokens can be found


@eras
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("load_mode", ["auto", "between_steps"])
def test_what_one_request_has_computed_the_next_one_loads(play, era, name, load_mode):
    groups = GROUPS[name]
    engine = play(era, groups, host_blocks=200, load_mode=load_mode)
    assert engine.run(PROMPT) == 0
    engine.settle()
    assert engine.run(PROMPT) == 32
    engine.settle()
    assert engine.run(PROMPT[:17] + [99] * 9) == 16
    is_sync = load_mode == "auto" and len(groups) == 1
    assert (engine.waits == 0) == is_sync
    engine.show_counts()
    assert engine.counted["kvbm_matched_tokens"] == 32 + 16
    stored = [event for event in engine.events if type(event).__name__ == "BlockStored"]
    assert {event.medium for event in stored} == {"CPU"}
    assert {(event.group_idx, event.block_size) for event in stored} == {(i, size) for i, (size, _) in enumerate(groups)}
    assert all(isinstance(name, int) for event in stored for name in event.block_hashes)


@eras
def test_a_reset_of_the_connector_empties_it(play, era):
    engine = play(era, GROUPS["one group"], host_blocks=200)
    engine.run(PROMPT)
    engine.settle()
    assert engine.scheduler.reset_cache() is True
    assert engine.run(PROMPT) == 0


def damage(folder):
    """Writes nonsense over the nameless files of the disk tier."""
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        try:
            is_tier = os.readlink(descriptor).startswith(str(folder))
        except FileNotFoundError:
            continue
        if is_tier:
            with open(descriptor, "r+b", buffering=0) as file:
                num_bytes = file.seek(0, os.SEEK_END)
                file.seek(0)
                file.write(b"nonsense" * (num_bytes // 8))


def on_disk(tmp_path):
    return {"disk_blocks": 200, "disk_directory": str(tmp_path), "disk_direct_io": False}


@eras
def test_a_load_that_fails_is_told_by_block_where_there_is_one_group(play, era, tmp_path):
    engine = play(era, GROUPS["one group"], **on_disk(tmp_path))
    engine.run(PROMPT)
    engine.settle()
    damage(tmp_path)
    assert engine.run(PROMPT) == 32  # were offered; all of it is computed, or the bytes would be wrong
    assert engine.native.statistics()["kvbm_transfer_failed_blocks_total{route=g3_to_g1}"] == 8


def test_a_load_that_fails_as_a_whole_is_told_where_the_release_can_be_told(play, tmp_path):
    engine = play(V0_32, GROUPS["a window"], **on_disk(tmp_path))
    engine.run(PROMPT)
    engine.settle()
    damage(tmp_path)
    assert engine.run(PROMPT) == 32


def test_a_load_that_fails_as_a_whole_ends_the_engine_where_the_release_cannot_be_told(play, tmp_path):
    engine = play(V0_26, GROUPS["a window"], **on_disk(tmp_path))
    engine.run(PROMPT)
    engine.settle()
    damage(tmp_path)
    with pytest.raises(RuntimeError, match="this vLLM cannot be told of it"):
        engine.run(PROMPT)


@eras
def test_a_first_hook_that_brings_no_plan_leaves_it_to_the_next(play, era):
    """As releases before 0.26 did: it named the requests that were preempted."""
    engine = play(era, GROUPS["one group"], host_blocks=200)
    first = engine.worker.handle_preemptions
    engine.worker.handle_preemptions = lambda metadata: first({"r7"})
    engine.run(PROMPT)
    engine.settle()
    assert engine.run(PROMPT) == 32


@eras
def test_hashes_of_several_processes_are_warned_of_where_they_differ(play, era, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    engine = play(era, GROUPS["one group"], host_blocks=200)
    from kvbm.vllm_integration.start_checks import warnings_of

    engine.config.parallel_config.world_size = 2
    warned = any("PYTHONHASHSEED" in text for text in warnings_of(engine.config, engine.kv_config, 200, 0))
    assert warned == (not era.agrees_on_hashes)


@eras
def test_a_release_that_gives_no_kv_cache_config_is_refused(era):
    with installed(era) as connector:
        config = types.SimpleNamespace(kv_transfer_config=None)
        with pytest.raises(RuntimeError, match=r"kvbm needs 0\.26 or newer"):
            connector.DynamoConnector(config, fake_vllm.Role.WORKER)


# --- the shapes are those of the release


def era_of_installed():
    import vllm

    found = [era for era in ERAS if vllm.__version__.startswith(era.name + ".")]
    assert found, f"no era is of vLLM {vllm.__version__}"
    return found[0]


def members(cls):
    """Public ones by name: whether abstract, what kind, and the names of parameters."""
    found = {}
    for owner in reversed(cls.__mro__):
        for name, member in vars(owner).items():
            if name.startswith("_") and name != "__init__" or owner in (object,):
                continue
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(function):
                parameters = list(inspect.signature(function).parameters)
                found[name] = (name in cls.__abstractmethods__, type(member).__name__, parameters)
    return found


def test_the_fake_has_the_shapes_of_the_installed_release():
    import importlib

    era = era_of_installed()
    fakes = fake_vllm.modules_of(era)
    real = {name: importlib.import_module(name) for name in (fake_vllm.BASE, "vllm.distributed.kv_events")}
    base, fake_base = real[fake_vllm.BASE], fakes[fake_vllm.BASE]
    for name in ("KVConnectorBase_V1", "SupportsHMA"):
        assert members(getattr(base, name)) == members(getattr(fake_base, name))
    assert {role.name: role.value for role in base.KVConnectorRole} == {role.name: role.value for role in fake_vllm.Role}
    assert hasattr(base, "KVConnectorTransferResults") == era.tells_failed_loads
    if era.tells_failed_loads:
        fields = [{f.name for f in dataclasses.fields(m.KVConnectorTransferResults)} for m in (base, fake_base)]
        assert fields[0] == fields[1]
    events = real["vllm.distributed.kv_events"]
    assert {name for name in vars(events) if name.startswith("MEDIUM_")} == {f"MEDIUM_{name}" for name in era.media}
    for name in ("BlockStored", "BlockRemoved"):
        fields = [f.name for f in dataclasses.fields(getattr(fake_vllm, name))]
        assert list(getattr(events, name).__struct_fields__)[: len(fields)] == fields

    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheTensor, SlidingWindowSpec
    from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

    def fields_of(cls):
        return {field.name for field in dataclasses.fields(cls)}

    assert hasattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED") == era.agrees_on_hashes
    assert list(inspect.signature(kv_cache_utils.resolve_kv_cache_block_sizes).parameters) == ["kv_cache_config", "vllm_config"]
    assert ("hash_block_size" in fields_of(KVCacheConfig)) == era.says_hash_tokens
    assert ("kv_cache_layout" in fields_of(KVCacheConfig)) == era.says_strides
    fake_tensor = fake_vllm.NewKVCacheTensor if era.says_strides else fake_vllm.OldKVCacheTensor
    assert fields_of(fake_tensor) <= fields_of(KVCacheTensor)
    assert ("layers" in fields_of(KVCacheTensor)) == era.says_strides
    assert ("extra_retained_tokens" in fields_of(SlidingWindowSpec)) == era.retains_more
    assert ("has_sync_kv_loads" in fields_of(SchedulerOutput)) == era.starts_loads_late
    assert {"finished_req_ids", "num_scheduled_tokens", "scheduled_new_reqs", "scheduled_cached_reqs"} <= fields_of(SchedulerOutput)
    assert {"req_id", "block_ids", "num_computed_tokens"} <= fields_of(NewRequestData)
    assert {"req_ids", "resumed_req_ids", "new_block_ids", "num_computed_tokens"} <= fields_of(CachedRequestData)
    lifecycle = inspect.signature(KVConnectorModelRunnerMixin._get_kv_connector_output).parameters
    assert ("wait_for_save" not in lifecycle) == era.ends_empty_steps
