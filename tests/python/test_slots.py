# SPDX-License-Identifier: Apache-2.0
"""The connector cores of Dynamo's names, kvbm.KvConnectorLeader and kvbm.KvConnectorWorker: a pretended engine of theirs."""

import json
import os
import time

import numpy as np
import pytest

import kvbm
from kvbm.vllm_integration import rust

BLOCKS, PAGE, LAYERS = 24, 4, 2


def kv_of(layer, tokens):
    """What a layer computes: a function of the layer and of all tokens so far."""
    return np.cumsum(np.asarray(tokens, dtype=np.uint32) + 1).astype(np.uint16)[:, None] * 3 + layer


class Engine:
    """Gives blocks out, computes prompts and tokens, and drives both halves as Dynamo's vLLM face does."""

    def __init__(self, monkeypatch, host_blocks=16, disk=None, **values):
        monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", str(host_blocks))
        if disk is not None:
            monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "32")
            monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(disk))
            monkeypatch.setenv("DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER", "true")
        self.tensors = {f"layer.{i}": np.zeros((BLOCKS, PAGE, 1), dtype=np.uint16) for i in range(LAYERS)}
        self.worker = rust.KvConnectorWorker(None, "engine-0")
        self.worker.register_kv_caches(BLOCKS, PAGE, 0, 2, list(self.tensors.items()), [])
        self.native = rust.KvbmLeader(1, workers=[self.worker.worker], **values)
        self.leader = rust.KvConnectorLeader("engine-0", None, PAGE, self.native)
        self.free = list(range(BLOCKS))
        self.blocks = {}
        self.tokens = {}
        self.computed = {}
        self.received = set()

    def stop(self):
        self.native.stop()
        self.worker.stop()
        self.__dict__.clear()  # a fixture's value outlives its test

    def look_up(self, name, tokens, **request):
        self.tokens[name] = list(tokens)
        if not self.leader.has_slot(name):
            self.leader.create_slot(rust.KvbmRequest(request_id=name, **request), self.tokens[name])
        return self.leader.get_num_new_matched_tokens(name, len(self.tokens[name]), 0)

    def take_blocks(self, name, num_tokens):
        """The new ones, so that all hold so many tokens."""
        have = self.blocks.setdefault(name, [])
        new = [self.free.pop(0) for _ in range(-(-num_tokens // PAGE) - len(have))]
        have += new
        return new

    def compute(self, name, end):
        for layer, tensor in enumerate(self.tensors.values()):
            values = kv_of(layer, self.tokens[name])
            for position in range(self.computed[name], end):
                tensor[self.blocks[name][position // PAGE], position % PAGE] = values[position]
        self.computed[name] = end

    def check(self, name):
        """Every element of what the request has in its blocks."""
        for layer, tensor in enumerate(self.tensors.values()):
            held = tensor[self.blocks[name]].reshape(-1, 1)[: self.computed[name]]
            np.testing.assert_array_equal(held, kv_of(layer, self.tokens[name])[: self.computed[name]])

    def step(self, output, work=()):
        """work: (request, tokens that are computed afterwards)"""
        step = self.leader.build_connector_metadata(output)
        assert type(step) is bytes
        self.worker.bind_connector_metadata(step)
        assert not self.worker.worker.has_loads  # all have arrived
        for name, end in work:
            self.compute(name, end)
        for name, tensor in self.tensors.items():
            with pytest.raises(kvbm.ContractViolation, match="has not ended"):
                self.worker.worker.begin_step(b"")
            self.worker.save_kv_layer(name, tensor)
        with pytest.raises(kvbm.CorruptError):
            self.worker.worker.begin_step(b"")  # the last layer has ended the step
        self.worker.clear_connector_metadata()
        sending, received = self.worker.get_finished(set())
        assert sending == set() and self.worker.get_block_ids_with_load_errors() == set()
        self.received |= received

    def run(self, name, tokens, **request):
        """A whole prompt in one step. How many tokens were loaded for it."""
        loaded, between_steps = self.look_up(name, tokens, **request)
        self.take_blocks(name, len(tokens))
        self.leader.update_state_after_alloc(name, self.blocks[name], loaded)
        if between_steps:
            deadline = time.monotonic() + 30
            while name not in self.received:
                self.step(rust.SchedulerOutput())
                assert time.monotonic() < deadline
            self.leader.update_state_after_alloc(name, self.blocks[name], 0)
        self.computed[name] = loaded
        output = rust.SchedulerOutput()
        output.add_new_request(name, self.tokens[name], self.blocks[name], loaded)
        output.add_num_scheduled_tokens({name: len(tokens) - loaded})
        assert output.get_num_scheduled_tokens() == len(tokens) - loaded
        self.step(output, [(name, len(tokens))])
        self.check(name)
        return loaded

    def finish(self, name):
        held = self.leader.request_finished(name, self.blocks[name])
        self.free += self.blocks.pop(name)
        return held

    def settle(self, tokens, expected, **request):
        """Until so many tokens of a prompt can be loaded: what was stored arrives in the background."""
        deadline = time.monotonic() + 30
        while True:
            found, _ = self.look_up("probe", tokens, **request)
            assert not self.leader.request_finished("probe", [])
            if found == expected:
                for tensor in self.tensors.values():
                    tensor[self.free] = 0xFFFF  # no store reads them any more
                return
            assert time.monotonic() < deadline, f"{found} of {expected} tokens"


@pytest.fixture
def engine(monkeypatch):
    engine = Engine(monkeypatch)
    yield engine
    engine.stop()


def test_what_was_computed_comes_back(engine):
    prompt = list(range(100, 114))
    assert engine.run("a", prompt) == 0
    assert engine.finish("a") is False
    engine.settle(prompt, 12)
    assert engine.run("b", prompt) == 12
    assert engine.run("c", prompt[:8] + [1, 2, 3]) == 8
    assert engine.run("d", prompt[:8]) == 4  # the block of the last token is computed
    for name in "bcd":
        assert engine.finish(name) is False
        assert not engine.leader.has_slot(name)
    assert engine.native.num_requests == 0


def test_decoded_tokens_are_stored_once_they_are_told(engine):
    prompt = list(range(6))
    engine.run("a", prompt)
    output = rust.SchedulerOutput()
    output.add_cached_request("a", False, [], [], 6)
    output.add_num_scheduled_tokens({"a": 3})
    with pytest.raises(kvbm.InvalidArgumentError, match="2 blocks do not hold 6 computed and 3 scheduled"):
        engine.leader.build_connector_metadata(output)
    for token in (50, 51, 52):
        engine.tokens["a"].append(token)
        new = engine.take_blocks("a", len(engine.tokens["a"]))
        output = rust.SchedulerOutput()
        output.add_cached_request(request_id="a", resumed_from_preemption=False, new_token_ids=[token], new_block_ids=new,
                                  num_computed_tokens=engine.computed["a"])
        output.add_num_scheduled_tokens({"a": 1})
        engine.step(output, [("a", len(engine.tokens["a"]))])
    engine.finish("a")
    engine.settle(prompt + [50, 51, 9], 8)
    assert engine.run("b", prompt + [50, 51, 9]) == 8


def test_a_preempted_request_gets_its_own_blocks_back(engine):
    prompt = list(range(12))
    engine.run("a", prompt)
    before = engine.blocks.pop("a")
    engine.free += before
    engine.settle(prompt + [77], 12)
    engine.tokens["a"] += [77]
    loaded, between_steps = engine.leader.get_num_new_matched_tokens("a", 13, 0)
    assert (loaded, between_steps) == (12, False)
    engine.take_blocks("a", 13)
    engine.leader.update_state_after_alloc("a", engine.blocks["a"], loaded)
    engine.computed["a"] = loaded
    output = rust.SchedulerOutput()
    output.add_cached_request("a", True, [77], engine.blocks["a"], loaded)
    output.add_num_scheduled_tokens({"a": 5})
    with pytest.raises(kvbm.InvalidArgumentError, match="4 blocks do not hold 12 computed and 5 scheduled"):
        engine.leader.build_connector_metadata(output)  # the blocks that it had before are gone
    output.add_num_scheduled_tokens({"a": 1})
    engine.step(output, [("a", 13)])
    engine.check("a")
    with pytest.raises(kvbm.InvalidArgumentError, match="are not its own"):
        engine.leader.request_finished("a", before)
    engine.finish("a")


def test_a_prompt_in_chunks(engine):
    prompt = list(range(300, 312))
    assert engine.look_up("a", prompt) == (0, False)
    new = engine.take_blocks("a", 6)
    engine.leader.update_state_after_alloc("a", engine.blocks["a"], 0)
    engine.computed["a"] = 0
    output = rust.SchedulerOutput()
    output.add_new_request("a", prompt, new, 0)
    output.add_num_scheduled_tokens({"a": 6})
    engine.step(output, [("a", 6)])
    new = engine.take_blocks("a", 12)
    output = rust.SchedulerOutput()
    output.add_cached_request("a", False, [], new, 6)
    output.add_num_scheduled_tokens({"a": 6})
    engine.step(output, [("a", 12)])
    engine.finish("a")
    engine.settle(prompt + [0], 12)
    assert engine.run("b", prompt + [0]) == 12


def test_salt_and_adapter_keep_caches_apart(engine):
    prompt = list(range(9))
    engine.run("a", prompt, salt_hash="tenant")
    engine.finish("a")
    engine.settle(prompt, 8, salt_hash="tenant")
    assert engine.look_up("b", prompt) == (0, False)
    assert engine.look_up("c", prompt, lora_name="tenant") == (0, False)
    for name in "bc":
        engine.leader.request_finished(name, [])


def test_loads_from_disk_run_between_steps(monkeypatch, tmp_path):
    engine = Engine(monkeypatch, host_blocks=4, disk=tmp_path)
    prompts = [[1000 * (i + 1) + j for j in range(17)] for i in range(3)]
    for i, prompt in enumerate(prompts):
        engine.run(f"a{i}", prompt)
        engine.finish(f"a{i}")
        engine.settle(prompt, 16)
    loaded, between_steps = engine.look_up("probe", prompts[0])
    assert loaded == 16 and between_steps
    engine.leader.request_finished("probe", [])
    assert engine.run("b", prompts[0]) == 16
    assert engine.received == {"b"}
    engine.finish("b")
    engine.stop()


def test_an_aborted_load_holds_its_blocks_until_it_is_told(monkeypatch, tmp_path):
    engine = Engine(monkeypatch, host_blocks=4, disk=tmp_path)
    prompts = [[1000 * (i + 1) + j for j in range(17)] for i in range(3)]
    for i, prompt in enumerate(prompts):
        engine.run(f"a{i}", prompt)
        engine.finish(f"a{i}")
        engine.settle(prompt, 16)
    loaded, between_steps = engine.look_up("b", prompts[0])
    assert between_steps
    engine.take_blocks("b", 17)
    engine.leader.update_state_after_alloc("b", engine.blocks["b"], loaded)
    assert engine.leader.request_finished("b", engine.blocks["b"]) is True
    deadline = time.monotonic() + 30
    while engine.received != {"b"}:
        engine.step(rust.SchedulerOutput())
        assert time.monotonic() < deadline
    engine.stop()


def test_a_priority_below_the_least_is_not_stored(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY", "50")
    engine = Engine(monkeypatch)
    for name, priority in (("low", 49), ("high", 50)):
        tokens = list(range(9)) if name == "low" else list(range(50, 59))
        engine.leader.create_slot(rust.KvbmRequest(name), tokens, priority=priority)
        engine.run(name, tokens)
        engine.finish(name)
    engine.settle(list(range(50, 59)), 8)
    assert engine.look_up("probe", list(range(9))) == (0, False)
    engine.leader.request_finished("probe", [])
    with pytest.raises(kvbm.InvalidArgumentError, match="priority is 101"):
        engine.leader.create_slot(rust.KvbmRequest("x"), [1], priority=101)
    assert not engine.leader.has_slot("x")
    engine.stop()


def test_a_reset_empties_the_tiers(engine):
    prompt = list(range(9))
    engine.run("a", prompt)
    engine.finish("a")
    engine.settle(prompt, 8)
    assert engine.leader.reset_cache() is True
    assert engine.look_up("b", prompt) == (0, False)
    engine.leader.request_finished("b", [])


def test_the_output_of_a_scheduler_is_kept_and_serialised():
    output = rust.SchedulerOutput()
    output.add_new_request("a", [1, 2, 3], [7], 0)
    output.add_cached_request("b", True, [4], [8, 9], 5)
    output.add_num_scheduled_tokens({"x": 100})
    output.add_num_scheduled_tokens({"a": 3, "b": 1})
    assert output.get_num_scheduled_tokens() == 4
    assert json.loads(output.serialize()) == {
        "new_requests": [
            {"request_id": "a", "prompt_token_ids": [1, 2, 3], "block_ids": [7], "num_computed_tokens": 0}
        ],
        "cached_requests": [
            {
                "request_id": "b",
                "resumed_from_preemption": True,
                "new_token_ids": [4],
                "new_block_ids": [8, 9],
                "num_computed_tokens": 5,
            }
        ],
        "num_scheduled_tokens": {"a": 3, "b": 1},
    }
    assert output.new_requests[0].block_ids == (7,) and output.cached_requests[0].resumed_from_preemption
    for add in (lambda: output.add_new_request("a", [], [], 0, [1]),
                lambda: output.add_cached_request("a", False, [], [], 0, priorities=[1])):
        with pytest.raises(kvbm.UnsupportedError, match="priorities"):
            add()


def new(**changes):
    """An output with one new request that is as it should be, apart from changes."""
    values = {"name": "a", "tokens": [1, 2, 3, 4, 5], "blocks": [0, 1], "computed": 0, "scheduled": {"a": 5}, **changes}
    output = rust.SchedulerOutput()
    output.add_new_request(values["name"], values["tokens"], values["blocks"], values["computed"])
    output.add_num_scheduled_tokens(values["scheduled"])
    return output


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"name": "b"}, kvbm.NotFoundError, "request b has no slot"),
        ({"tokens": [1, 2, 4]}, kvbm.InvalidArgumentError, "prompt_token_ids"),
        ({"blocks": [0]}, kvbm.InvalidArgumentError, "1 blocks do not hold 0 computed and 5 scheduled"),
        ({"scheduled": {"a": 5, "z": 1}}, kvbm.InvalidArgumentError, "'z'"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused_and_changes_nothing(engine, changes, error, message):
    engine.look_up("a", [1, 2, 3, 4, 5])
    with pytest.raises(error, match=message):
        engine.leader.build_connector_metadata(new(**changes))
    engine.worker.bind_connector_metadata(engine.leader.build_connector_metadata(new()))  # of the next number
    engine.worker.clear_connector_metadata()
    twice = new()
    twice.add_new_request("a", [], [0, 1], 0)
    with pytest.raises(kvbm.InvalidArgumentError, match="twice"):
        engine.leader.build_connector_metadata(twice)
    engine.leader.request_finished("a", [0, 1])


def test_calls_that_make_no_sense_are_refused(engine):
    leader = engine.leader
    for call in (lambda: leader.get_num_new_matched_tokens("a", 4, 0), lambda: leader.update_state_after_alloc("a", [], 0)):
        with pytest.raises(kvbm.NotFoundError, match="engine-0: request a has no slot"):
            call()
    assert leader.request_finished("a", [1]) is False
    request = rust.KvbmRequest("a")
    leader.create_slot(request, [1, 2, 3, 4, 5])
    leader.create_slot(request, [1, 2, 3, 4, 5])
    for call, message in (
        (lambda: leader.create_slot(request, [1, 2, 3, 4, 6]), "other tokens"),
        (lambda: leader.create_slot(rust.KvbmRequest("a", salt_hash="s"), [1, 2, 3, 4, 5]), "another salt"),
        (lambda: leader.get_num_new_matched_tokens("a", 5, 8), "8 of 5"),
        (lambda: leader.get_num_new_matched_tokens("a", 4, 0), "4 tokens, and its slot 5"),
        (lambda: leader.update_state_after_alloc("a", [0, 1], 4), "0 were offered"),
        (lambda: leader.request_finished("a", [5]), r"\[5\] are not its own"),
    ):
        with pytest.raises(kvbm.InvalidArgumentError, match=message):
            call()
    assert leader.request_finished("a", []) is False
    engine.native.extend("other", [bytes(32)])
    with pytest.raises(kvbm.InvalidArgumentError, match="somebody else"):
        leader.create_slot(rust.KvbmRequest("other"), [1])
    engine.native.finished("other")


def test_an_offer_has_to_fit(engine):
    prompt = list(range(9))
    engine.run("a", prompt)
    engine.finish("a")
    engine.settle(prompt, 8)
    assert engine.look_up("b", prompt) == (8, False)
    for blocks, tokens, message in (([0, 1, 2], 4, "8 were offered"), ([0], 8, "1 blocks do not hold 8")):
        with pytest.raises(kvbm.InvalidArgumentError, match=message):
            engine.leader.update_state_after_alloc("b", blocks, tokens)
    assert engine.run("b", prompt) == 8
    engine.finish("b")


def test_leaders_that_do_not_fit_are_refused(engine):
    for values, error, message in (
        ({"drt": object()}, kvbm.UnsupportedError, "drt"),
        ({"page_size": PAGE + 1}, kvbm.InvalidArgumentError, "page_size is 5, and the leader's is 4"),
        ({"consolidator_vllm_endpoint": "tcp://"}, kvbm.UnsupportedError, "consolidator_vllm_endpoint"),
        ({"consolidator_output_endpoint": "tcp://"}, kvbm.UnsupportedError, "consolidator_output_endpoint"),
        ({"consolidator_mode": "dedup"}, kvbm.UnsupportedError, "consolidator_mode"),
    ):
        arguments = {"worker_id": "w", "drt": None, "page_size": PAGE, "leader": engine.native, **values}
        with pytest.raises(error, match=message):
            rust.KvConnectorLeader(**arguments)
    two = kvbm.KvbmWorker.create(
        0, 4, [(4, [(np.zeros((4, 4), np.uint8).ctypes.data, 4)]), (4, [(np.zeros((4, 4), np.uint8).ctypes.data, 4)])])
    hybrid = kvbm.KvbmLeader.create([two], model="m", dtype="u8", scheme="s", block_tokens=PAGE, window_blocks=[0, 1],
                                    host_blocks=4)
    assert (hybrid.num_groups, hybrid.page_size) == (2, PAGE)
    with pytest.raises(kvbm.UnsupportedError, match="2 layer groups"):
        rust.KvConnectorLeader("w", None, PAGE, hybrid)
    hybrid.stop()
    two.stop()


def test_a_worker_refuses_what_makes_no_sense(engine):
    worker = engine.worker
    tensors = list(engine.tensors.items())
    with pytest.raises(kvbm.UnsupportedError, match="py_drt"):
        rust.KvConnectorWorker(object(), "w")
    with pytest.raises(kvbm.InvalidArgumentError, match="registered already"):
        worker.register_kv_caches(BLOCKS, PAGE, 0, 2, tensors, [])
    bare = rust.KvConnectorWorker(None, "w")
    for call in (lambda: bare.worker, lambda: bare.bind_connector_metadata(b""), lambda: bare.get_finished(set())):
        with pytest.raises(kvbm.UnavailableError, match="no KV tensors"):
            call()
    with pytest.raises(kvbm.UnsupportedError, match="raw_event_handles"):
        bare.register_kv_caches(BLOCKS, PAGE, 0, 2, tensors, [1, 2])
    with pytest.raises(kvbm.UnsupportedError, match="device_layout_type"):
        bare.register_kv_caches(BLOCKS, PAGE, 0, 2, tensors, [], "FullyContiguous")
    with pytest.raises(kvbm.InvalidArgumentError, match="twice"):
        bare.register_kv_caches(BLOCKS, PAGE, 0, 2, tensors[:1] * 2, [])
    bare.stop()
    with pytest.raises(kvbm.InvalidArgumentError, match="no step is bound"):
        worker.save_kv_layer("layer.0", tensors[0][1])
    worker.bind_connector_metadata(engine.leader.build_connector_metadata(rust.SchedulerOutput()))
    for call, error, message in (
        (lambda: worker.bind_connector_metadata(b""), kvbm.InvalidArgumentError, "not cleared"),
        (lambda: worker.save_kv_layer("layer.9", tensors[0][1]), kvbm.NotFoundError, "layer.9"),
        (lambda: worker.save_kv_layer("layer.0", tensors[1][1]), kvbm.InvalidArgumentError, "another tensor"),
    ):
        with pytest.raises(error, match=message):
            call()
    worker.clear_connector_metadata()
    worker.clear_connector_metadata()


def files_below(folder):
    """What this process has open there: the disk tier's files, which have no name any more."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.islink(link) and os.readlink(link).startswith(str(folder))]


def test_a_failed_load_is_told_by_block(monkeypatch, tmp_path):
    engine = Engine(monkeypatch, host_blocks=4, disk=tmp_path)
    prompts = [[1000 * (i + 1) + j for j in range(17)] for i in range(3)]
    for i, prompt in enumerate(prompts):
        engine.run(f"a{i}", prompt)
        engine.finish(f"a{i}")
        engine.settle(prompt, 16)
    (file,) = files_below(tmp_path)
    with open(file, "r+b") as slots:
        slots.write(b"\xff" * os.path.getsize(file))
    loaded, between_steps = engine.look_up("b", prompts[0])
    assert between_steps
    engine.take_blocks("b", 17)
    engine.leader.update_state_after_alloc("b", engine.blocks["b"], loaded)
    received, failed = set(), set()
    deadline = time.monotonic() + 30
    while not received:
        engine.worker.bind_connector_metadata(engine.leader.build_connector_metadata(rust.SchedulerOutput()))
        engine.worker.clear_connector_metadata()
        received |= engine.worker.get_finished(set())[1]
        failed |= engine.worker.get_block_ids_with_load_errors()
        assert time.monotonic() < deadline
    assert received == {"b"} and failed == set(engine.blocks["b"][:4])
    assert engine.worker.get_block_ids_with_load_errors() == set()
    assert engine.leader.request_finished("b", engine.blocks["b"]) is False
    engine.stop()
