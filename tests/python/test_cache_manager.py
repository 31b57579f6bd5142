# SPDX-License-Identifier: Apache-2.0
"""kvbm.KvbmCacheManager, driven as Dynamo's cache manager for vLLM drives its own, with NumPy tensors as the engine's KV."""

import os

import numpy as np
import pytest

import kvbm
from kvbm.vllm_integration.rust import BlockState, BlockStates, KvbmCacheManager, KvbmRequest, SlotUpdate

PAGE = 4
SHAPE = (2, 2, PAGE, 1, 2)  # layers, outer, tokens of a block, heads, head size


def make(tmp_path, **values):
    config = dict(block_size=PAGE, num_layers=2, num_heads=1, head_dim=2, dtype="float32", num_blocks=6, host_blocks=8,
                  disk_blocks=32, enable_offload=True, offload_path=str(tmp_path), log_level="warning")
    config.update(values)
    return kvbm.BlockManager(**config)


class Request:
    """What an engine's scheduler knows of a request."""

    def __init__(self, name, tokens, **request):
        self.name = name
        self.tokens = list(tokens)
        self.computed = 0
        self.request = KvbmRequest(request_id=name, **request)


class Engine:
    def __init__(self, block_manager):
        self.block_manager = block_manager
        self.cache = KvbmCacheManager(block_manager)

    def schedule(self, request, most=None):
        """(tokens found in G1, tokens brought from below), or None if there is no room. Computes the rest, at most so much."""
        cache, name = self.cache, request.name
        found, blocks, external = 0, None, 0
        if request.computed == 0:
            hashes = cache.create_slot(request.request, request.tokens)
            if len(request.tokens) % PAGE == 0:
                hashes = hashes[:-1]  # the last token is computed
            blocks = cache.get_computed_blocks(hashes)
            found = blocks.block_count() * PAGE
            external, between_steps = cache.get_num_new_matched_tokens(name, len(request.tokens), found)
            assert between_steps is False
        num_new = min(len(request.tokens) - request.computed - found - external, most or len(request.tokens))
        before = cache.num_computed_tokens(name)
        update = SlotUpdate(
            request_id=name, request_num_tokens=len(request.tokens), request_num_computed_tokens=request.computed,
            tokens_to_append=request.tokens[before : request.computed + found], num_new_tokens=external + num_new,
            num_new_computed_tokens=found, new_computed_blocks=blocks, delay_cache_blocks=False)
        states = cache.allocate_slots(update)
        if states is None:
            return None
        assert cache.get_block_ids(name)[len(cache.get_block_ids(name)) - len(states) :] == states.block_ids()
        ids = cache.get_block_ids(name)
        cache.trigger_onboard(name)
        assert cache.get_block_ids(name) == ids  # the engine was told of them
        request.computed += found + external
        self.check(request)
        self.compute(request, request.computed + num_new)
        return found, external

    def compute(self, request, end):
        blocks = self.cache.blocks(request.name)
        values = self.values(request)
        for position in range(request.computed, end):
            tensor = np.from_dlpack(blocks[position // PAGE])
            tensor[:, :, position % PAGE] = values[position]
        request.computed = end

    def values(self, request):
        return np.cumsum(request.tokens).astype(np.float32)

    def check(self, request):
        blocks = self.cache.blocks(request.name)
        values = self.values(request)
        for position in range(request.computed):
            tensor = np.from_dlpack(blocks[position // PAGE], copy=True)
            np.testing.assert_array_equal(tensor[:, :, position % PAGE], values[position])

    def commit(self, request):
        """Tells what was computed, without new tokens: full blocks are registered."""
        before = self.cache.num_computed_tokens(request.name)
        states = self.cache.allocate_slots(SlotUpdate(
            request.name, len(request.tokens), request.computed, request.tokens[before : request.computed], 0))
        assert states.block_ids() == []

    def finish(self, request):
        self.commit(request)
        self.cache.free(request.name)
        self.cache.free_block_hashes(request.name)
        self.block_manager.wait_idle(timeout=30)


def test_a_prefix_comes_back_from_g1_and_from_below(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        prompt = list(range(1, 15))
        first = Request("a", prompt)
        assert engine.schedule(first) == (0, 0)
        assert engine.cache.usage() == 4 / 6
        engine.finish(first)
        assert engine.cache.usage() == 0
        second = Request("b", prompt)
        assert engine.schedule(second) == (12, 0)
        engine.finish(second)
        manager.allocate_blocks(6).release()  # evicts all from G1
        third = Request("c", prompt)
        assert engine.schedule(third) == (0, 12)
        assert engine.cache.num_computed_tokens("c") == 12
        engine.finish(third)
        half = Request("d", prompt[:8])
        assert engine.schedule(half) == (4, 0)  # the block of the last token is computed
        engine.finish(half)
        manager.allocate_blocks(6).release()
        half = Request("e", prompt[:8])
        assert engine.schedule(half) == (0, 4)
        engine.finish(half)


def test_what_is_in_g1_in_part_goes_on_below(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        for name, prompt in (("a", range(1, 13)), ("b", range(1, 5))):
            request = Request(name, [*prompt, 99])
            engine.schedule(request)
            engine.finish(request)
            if name == "a":
                manager.allocate_blocks(6).release()
        request = Request("c", [*range(1, 13), 99])
        assert engine.schedule(request) == (4, 8)
        engine.finish(request)


def test_decoding_fills_and_registers_blocks(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 7))
        engine.schedule(request)
        for token in (40, 41, 42, 43):
            request.tokens.append(token)
            assert engine.schedule(request) == (0, 0)
        assert len(engine.cache.get_block_ids("a")) == 3
        assert [block.state for block in engine.cache.blocks("a")] == ["immutable", "immutable", "mutable"]
        engine.finish(request)
        again = Request("b", [*range(1, 7), 40, 41, 42, 43])
        assert engine.schedule(again) == (8, 0)
        engine.finish(again)


def test_a_prompt_in_chunks(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 15))
        for expected in (1, 2, 3, 3, 4):
            engine.schedule(request, most=3)
            assert len(engine.cache.get_block_ids("a")) == expected
        assert request.computed == 14
        engine.finish(request)
        again = Request("b", range(1, 15))
        assert engine.schedule(again) == (12, 0)
        engine.finish(again)


def test_no_room_changes_nothing_but_gives_up_what_was_found(tmp_path):
    with make(tmp_path, num_blocks=4) as manager:
        engine = Engine(manager)
        first = Request("a", range(1, 8))
        engine.schedule(first)
        engine.finish(first)
        taken = manager.allocate_blocks(2)
        second = Request("b", range(1, 18))
        assert engine.schedule(second) is None
        assert engine.cache.get_block_ids("b") == [] and engine.cache.num_computed_tokens("b") == 0
        taken.release()
        running = Request("c", range(50, 64))
        assert engine.schedule(running) == (0, 0)
        running.tokens += [1, 2, 3]
        assert engine.schedule(running) is None
        assert len(engine.cache.get_block_ids("c")) == 4 and engine.cache.num_computed_tokens("c") == 14
        engine.cache.free("c")  # preempted
        assert engine.cache.has_slot("c") and engine.cache.num_computed_tokens("c") == 0
        engine.cache.free_block_hashes("c")
        assert not engine.cache.has_slot("c")
        engine.cache.free_block_hashes("c")
        engine.cache.free("nobody")


def test_a_preempted_request_begins_anew_with_what_it_has_decoded(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 7))
        engine.schedule(request)
        for token in (40, 41, 42):
            request.tokens.append(token)
            engine.schedule(request)
        engine.commit(request)
        engine.cache.free("a")
        request.computed = 0
        assert engine.schedule(request) == (8, 0)
        engine.finish(request)


def test_salt_and_adapter_keep_caches_apart(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        for name, values, found in (("a", {"salt_hash": "s"}, 0), ("b", {}, 0), ("c", {"lora_name": "s"}, 0),
                                    ("d", {"salt_hash": "s"}, 4)):
            request = Request(name, range(1, 8), **values)
            assert engine.schedule(request) == (found, 0)
            engine.finish(request)


def test_a_list_of_blocks_is_asked_and_taken_once(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 11))
        engine.schedule(request)
        engine.commit(request)
        ids = engine.cache.get_block_ids("a")
        hashes = engine.cache.create_slot(KvbmRequest("b"), range(1, 11))
        assert engine.cache.create_slot(KvbmRequest("b"), range(1, 11)) == hashes
        blocks = engine.cache.get_computed_blocks(hashes)
        assert (blocks.block_count(), blocks.get_block_ids(), blocks.get_block_hashes()) == (2, ids[:2], hashes)
        assert (blocks.get_block_id(1), blocks.get_block_hash(1)) == (ids[1], hashes[1])
        assert blocks.get_block_types() == ["ImmutableDevice"]
        update = SlotUpdate("b", 10, 0, list(range(1, 9)), 2, 8, blocks)
        assert len(engine.cache.allocate_slots(update).block_ids()) == 1
        assert (blocks.block_count(), blocks.get_block_ids(), blocks.get_block_hashes()) == (2, [], [])
        assert blocks.get_block_types() == []
        for call in (lambda: blocks.get_block_id(0), lambda: blocks.get_block_hash(0)):
            with pytest.raises(kvbm.NotFoundError):
                call()
        engine.cache.free("b")
        with pytest.raises(kvbm.InvalidArgumentError, match="taken before"):
            engine.cache.allocate_slots(update)
        engine.cache.free("a")
        assert engine.cache.get_computed_blocks([]).block_count() == 0
        with pytest.raises(kvbm.NotFoundError, match="no slot has these 1"):
            engine.cache.get_computed_blocks([1])


def test_a_reset_waits_for_requests_to_end(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 9))
        engine.schedule(request)
        assert engine.cache.reset_prefix_cache() is False
        assert len(engine.cache.get_block_ids("a")) == 2
        engine.finish(request)
        engine.cache.create_slot(KvbmRequest("b"), range(1, 10))
        manager.allocate_blocks(6).release()
        assert engine.cache.get_num_new_matched_tokens("b", 9, 0) == (8, False)  # pins
        assert engine.cache.reset_prefix_cache() is True
        assert [manager.resident_blocks(tier) for tier in ("G1", "G2", "G3")] == [0, 0, 0]
        assert engine.cache.get_num_new_matched_tokens("b", 9, 0) == (0, False)
        engine.cache.trigger_onboard("b")  # nothing was found
        engine.cache.free_block_hashes("b")


def test_events_are_those_of_the_manager(tmp_path):
    with make(tmp_path, max_events=64) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 6))
        engine.schedule(request)
        engine.finish(request)
        created = [event for event in engine.cache.take_events() if event.type == "created"]
        sequence = kvbm.TokenBlockSequence(range(1, 6), PAGE, KvbmRequest("a").salt_hash)
        assert [(event.tier, event.identity) for event in created] == [("G1", sequence.identities()[0])]


def test_a_full_block_is_not_registered_while_it_can_be_written(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 5))
        engine.schedule(request)
        tensor = np.from_dlpack(engine.cache.blocks("a")[0])
        request.tokens += [9]
        engine.cache.allocate_slots(SlotUpdate("a", 5, 0, [], 5))
        with pytest.raises(kvbm.InvalidArgumentError, match="can still be written"):
            engine.cache.allocate_slots(SlotUpdate("a", 5, 5, [*range(1, 5), 9], 0))
        assert engine.cache.num_computed_tokens("a") == 0
        del tensor
        engine.cache.allocate_slots(SlotUpdate("a", 5, 5, [*range(1, 5), 10], 0))
        assert engine.cache.num_computed_tokens("a") == 5
        engine.cache.free_block_hashes("a")


def update(**changes):
    values = {"request_id": "a", "request_num_tokens": 8, "request_num_computed_tokens": 0, "tokens_to_append": [],
              "num_new_tokens": 4, **changes}
    return SlotUpdate(**values)


def test_what_makes_no_sense_is_refused_and_changes_nothing(tmp_path):
    with make(tmp_path) as manager:
        cache = KvbmCacheManager(manager)
        with pytest.raises(kvbm.NotFoundError, match="request a has no slot"):
            cache.allocate_slots(update())
        for call in (cache.num_computed_tokens, cache.trigger_onboard, cache.blocks):
            with pytest.raises(kvbm.NotFoundError):
                call("a")
        assert cache.get_block_ids("a") == []
        cache.create_slot(KvbmRequest("a"), range(1, 9))
        cache.allocate_slots(update())
        blocks = cache.get_block_ids("a")
        other = cache.create_slot(KvbmRequest("b"), range(5, 9))
        for changes, message in (
            ({"request_num_computed_tokens": 1}, "1 tokens are computed, and by its slot 0"),
            ({"request_num_computed_tokens": 2, "tokens_to_append": [1, 3]}, "not the tokens of its slot"),
            ({"request_num_computed_tokens": 5, "tokens_to_append": [1, 2, 3, 4, 5]}, "no blocks for 5"),
            ({"request_num_tokens": 1, "request_num_computed_tokens": 2, "tokens_to_append": [1, 2]}, "2 of 1"),
            ({"new_computed_blocks": cache.get_computed_blocks(other)}, "has blocks already"),
        ):
            with pytest.raises(kvbm.InvalidArgumentError, match=message):
                cache.allocate_slots(update(**changes))
        for call, message in (
            (lambda: cache.create_slot(KvbmRequest("a"), [7]), "other tokens"),
            (lambda: cache.create_slot(KvbmRequest("a", "lora"), range(1, 9)), "another salt"),
            (lambda: cache.get_num_new_matched_tokens("a", 8, 3), "whole blocks"),
            (lambda: cache.get_num_new_matched_tokens("a", 8, 12), "12 of 8"),
        ):
            with pytest.raises(kvbm.InvalidArgumentError, match=message):
                call()
        for call, message in (
            (lambda: update(num_lookahead_blocks=1), "num_lookahead_blocks"),
            (lambda: update(delay_cache_blocks=True), "delay_cache_blocks"),
            (lambda: cache.create_slot(KvbmRequest("c"), [1], [None, 7]), "extra_block_hashes"),
        ):
            with pytest.raises(kvbm.UnsupportedError, match=message):
                call()
        assert (cache.get_block_ids("a"), cache.num_computed_tokens("a")) == (blocks, 0)
        cache.allocate_slots(update(request_num_computed_tokens=4, tokens_to_append=[1, 2, 3, 4]))
        cache.free("a")


def test_blocks_of_other_tokens_are_not_taken(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 9))
        engine.schedule(request)
        engine.commit(request)
        blocks = engine.cache.get_computed_blocks(engine.cache.create_slot(KvbmRequest("a"), range(1, 9)))
        assert blocks.block_count() == 2
        engine.cache.create_slot(KvbmRequest("b"), range(2, 10))
        for changes in ({"tokens_to_append": []}, {"tokens_to_append": list(range(2, 10))}):
            with pytest.raises(kvbm.InvalidArgumentError, match="other tokens"):
                engine.cache.allocate_slots(
                    update(request_id="b", num_new_computed_tokens=8, new_computed_blocks=blocks, **changes))
        engine.cache.create_slot(KvbmRequest("c"), range(1, 9))
        with pytest.raises(kvbm.InvalidArgumentError, match="not those of its blocks"):
            engine.cache.allocate_slots(update(request_id="c", num_new_computed_tokens=8, new_computed_blocks=blocks,
                                               tokens_to_append=[1]))
        assert blocks.get_block_ids() == engine.cache.get_block_ids("a")
        engine.cache.free("a")


def test_what_was_found_has_to_fit_the_request(tmp_path):
    with make(tmp_path) as manager:
        engine = Engine(manager)
        request = Request("a", range(1, 9))
        engine.schedule(request)
        engine.finish(request)
        manager.allocate_blocks(6).release()
        cache = engine.cache
        cache.create_slot(KvbmRequest("b"), range(1, 10))
        assert cache.get_num_new_matched_tokens("b", 9, 0) == (8, False)
        cache.allocate_slots(update(request_id="b", request_num_tokens=9, num_new_tokens=4))
        with pytest.raises(kvbm.InvalidArgumentError, match="2 blocks were found, and it has 1"):
            cache.trigger_onboard("b")
        cache.allocate_slots(update(request_id="b", request_num_tokens=9, num_new_tokens=9))
        cache.trigger_onboard("b")
        assert cache.num_computed_tokens("b") == 8
        assert cache.create_slot(KvbmRequest("c"), range(1, 10))
        assert cache.get_num_new_matched_tokens("c", 9, 0) == (0, False)  # it has come to G1 since
        cache.free("b")
        manager.allocate_blocks(6).release()
        assert cache.get_num_new_matched_tokens("b", 9, 0) == (8, False)
        cache.allocate_slots(update(request_id="b", request_num_tokens=9, num_new_tokens=9))
        cache.allocate_slots(update(request_id="b", request_num_tokens=9, request_num_computed_tokens=2,
                                    tokens_to_append=[1, 2], num_new_tokens=7))
        with pytest.raises(kvbm.InvalidArgumentError, match="2 tokens are computed, and what was found goes on behind 0"):
            cache.trigger_onboard("b")
        cache.free("b")
        cache.get_num_new_matched_tokens("b", 9, 0)
        cache.free_block_hashes("b")  # unpins


def test_a_copy_that_fails_leaves_the_request_without_blocks(tmp_path):
    with make(tmp_path, num_blocks=4, host_blocks=4) as manager:
        engine = Engine(manager)
        for name, first in (("a", 1), ("b", 100), ("c", 200)):
            request = Request(name, range(first, first + 16))
            engine.schedule(request)
            engine.finish(request)
        manager.allocate_blocks(4).release()
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        (file,) = [link for link in links if os.path.islink(link) and os.readlink(link).startswith(str(tmp_path))]
        with open(file, "r+b") as slots:
            slots.write(b"\xff" * os.path.getsize(file))
        request = Request("d", [*range(1, 14)])
        with pytest.raises(kvbm.Error):
            engine.schedule(request)
        assert engine.cache.get_block_ids("d") == [] and engine.cache.num_computed_tokens("d") == 0
        request.computed = 0
        assert engine.schedule(request) == (0, 0)
        engine.finish(request)


def test_states_are_a_list():
    states = BlockStates()
    states.emplace_back(3)
    states.push_back(BlockState(5, [1, 2]))
    assert states.block_ids() == [3, 5] and states.len() == len(states) == 2
    assert BlockState(5, [1, 2]).tokens == [1, 2] and BlockState(5).block_id() == 5


def test_several_groups_are_refused(tmp_path):
    with make(tmp_path, groups="full:layers=1;window:layers=1,blocks=2") as manager:
        with pytest.raises(kvbm.UnsupportedError, match="2 layer groups"):
            KvbmCacheManager(manager)
