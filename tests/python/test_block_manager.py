# SPDX-License-Identifier: Apache-2.0
"""kvbm.BlockManager and its tensors against NumPy, and torch where it is installed."""

import asyncio
import ctypes
import gc
import pathlib
import signal
import subprocess
import sys
import threading
import time
import tomllib

import numpy as np
import pytest

import kvbm
from kvbm._core import live_objects

SHAPE = (2, 2, 4, 2, 8)  # layers, outer, tokens of a block, heads, head size


def make(tmp_path, **values):
    """A small manager with three tiers: 4 blocks in G1, 4 in G2, 16 in G3."""
    config = dict(
        block_size=4,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        dtype="float32",
        num_blocks=4,
        host_blocks=4,
        disk_blocks=16,
        enable_offload=True,
        offload_path=str(tmp_path),
        log_level="warning",
    )
    config.update(values)
    return kvbm.BlockManager(**config)


def chain(manager, name, length):
    return manager.keys_from_identities([bytes([name, i + 1]) * 16 for i in range(length)])


def content(name, position):
    """Different in every element of every block."""
    first = (name * 100 + position) * 1000
    return np.arange(first, first + np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def compute(manager, name, length):
    """Writes a chain through its tensors, registers it and lets it go."""
    keys = chain(manager, name, length)
    blocks = manager.allocate_blocks(length)
    for position, block in enumerate(blocks):
        np.from_dlpack(block)[:] = content(name, position)
    manager.register_blocks(blocks, keys).release()
    manager.wait_idle(timeout=30)
    return keys


def test_a_tensor_has_the_documented_shape_strides_and_type(tmp_path):
    with make(tmp_path) as manager:
        block = manager.allocate_blocks(1)[0]
        tensor = np.from_dlpack(block)
        expected = np.empty(SHAPE, np.float32)
        assert (tensor.shape, tensor.strides, tensor.dtype) == (expected.shape, expected.strides, expected.dtype)
        assert block.shape == SHAPE and block[1].shape == SHAPE[1:]
        assert tensor.flags.writeable and tensor.flags.c_contiguous
        assert block.__dlpack_device__() == block[0].__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("width, name", [(1, "uint8"), (2, "uint16"), (4, "uint32"), (8, "uint64")])
def test_without_a_dtype_elements_are_unsigned_integers(tmp_path, width, name):
    with make(tmp_path, dtype=None, dtype_width_bytes=width) as manager:
        assert manager.dtype == name
        assert np.from_dlpack(manager.allocate_blocks(1)[0]).dtype == np.dtype(name)


@pytest.mark.parametrize("name", ["float16", "float64", "int8", "int64", "uint16"])
def test_dtype_names_the_elements(tmp_path, name):
    with make(tmp_path, dtype=name) as manager:
        assert manager.dtype == name
        assert np.from_dlpack(manager.allocate_blocks(1)[0]).dtype == np.dtype(name)


def test_dtype_and_its_width_agree(tmp_path):
    make(tmp_path, dtype="float16", dtype_width_bytes=2).close()
    with pytest.raises(kvbm.InvalidArgumentError, match="dtype has 4 bytes, and dtype_width_bytes says 2"):
        make(tmp_path, dtype="float32", dtype_width_bytes=2)
    with pytest.raises(kvbm.InvalidArgumentError, match="bfloat16"):
        make(tmp_path, dtype="half")


def test_layers_are_parts_of_the_block(tmp_path):
    with make(tmp_path) as manager:
        block = manager.allocate_blocks(1)[0]
        whole = np.from_dlpack(block)
        whole[:] = content(1, 0)
        assert len(block) == len(block.to_list()) == len(list(block)) == 2
        for i, layer in enumerate(block):
            part = np.from_dlpack(layer)
            np.testing.assert_array_equal(part, content(1, 0)[i])
            assert part.ctypes.data == whole[i].ctypes.data
        np.testing.assert_array_equal(np.from_dlpack(block[-1]), content(1, 0)[-1])
        for wrong in (2, -3):
            with pytest.raises(IndexError):
                block[wrong]


def test_a_list_is_indexed_sliced_and_walked(tmp_path):
    with make(tmp_path) as manager:
        blocks = manager.allocate_blocks(3)
        ids = blocks.block_ids
        assert len(blocks) == 3 and len(set(ids)) == 3
        assert [block.block_id for block in blocks] == ids == [block.block_id for block in blocks.to_list()]
        assert blocks[-1].block_id == ids[2]
        assert blocks[1:].block_ids == ids[1:] and blocks[::-1].block_ids == ids[::-1]
        with pytest.raises(IndexError):
            blocks[3]


def test_what_is_written_through_a_tensor_comes_back_from_host_and_disk(tmp_path):
    with make(tmp_path) as manager:
        for name in (1, 2, 3):
            compute(manager, name, 4)
        manager.allocate_blocks(4).release()  # evicts all from G1
        seen = set()
        for name in (3, 1, 2):
            hit = manager.match(chain(manager, name, 4))
            assert hit.num_blocks == len(hit) == 4
            seen.update(hit.tier(position) for position in range(4))
            arrived = manager.onboard(hit, timeout=30)
            assert (arrived.num_blocks, arrived.error, arrived.first) == (4, None, [0])
            for position, block in enumerate(arrived.blocks):
                np.testing.assert_array_equal(np.from_dlpack(block), content(name, position))
            arrived.blocks.release()
        assert seen == {"G2", "G3"}


def test_a_hit_in_g1_needs_no_copy(tmp_path):
    with make(tmp_path) as manager:
        keys = compute(manager, 1, 3)
        hit = manager.match(keys)
        assert (hit.num_blocks, hit.num_gpu_blocks, hit.tier(2)) == (3, 3, "G1")
        assert manager.onboard(hit).num_blocks == 3
        with pytest.raises(kvbm.ContractViolation, match="released or onboarded"):
            hit.num_blocks


def test_onboarding_fills_blocks_of_the_caller(tmp_path):
    with make(tmp_path) as manager:
        compute(manager, 1, 3)
        manager.allocate_blocks(4).release()
        keys = chain(manager, 1, 3)
        hit = manager.match(keys)
        into = manager.allocate_blocks(3)[::-1]
        ids = into.block_ids
        for wrong, message in (([], "0 lists of blocks for 1 layer groups"), ([into[:2]], "has 2 blocks, and onboarding fills 3")):
            with pytest.raises(kvbm.InvalidArgumentError, match=message):
                manager.begin_onboard(hit, wrong)
        writer = np.from_dlpack(into[1])
        with pytest.raises(kvbm.InvalidArgumentError, match="can still be written"):
            manager.begin_onboard(hit, [into])
        del writer
        with pytest.raises(kvbm.ContractViolation, match="a block comes twice"):
            manager.begin_onboard(hit, [kvbm.BlockList([into[0], into[1], into[0]])])
        assert hit.num_blocks == 3 and into.block_ids == ids
        arrived = manager.begin_onboard(hit, [into]).wait(timeout=30)
        assert arrived.blocks.block_ids == ids and [block.state for block in into] == ["released"] * 3
        for position, block in enumerate(arrived.blocks):
            np.testing.assert_array_equal(np.from_dlpack(block), content(1, position))


def test_a_hit_can_keep_what_is_in_g1_alone(tmp_path):
    with make(tmp_path) as manager:
        compute(manager, 1, 3)
        manager.allocate_blocks(4).release()
        manager.onboard(manager.match(chain(manager, 1, 1)), timeout=30).blocks.release()
        hit = manager.match(chain(manager, 1, 3))
        assert (hit.num_blocks, hit.num_gpu_blocks) == (3, 1)
        hit.keep_gpu_part()
        assert (hit.num_blocks, hit.num_gpu_blocks) == (1, 1)
        assert manager.begin_onboard(hit, [manager.allocate_blocks(0)]).wait().num_blocks == 1


def test_a_reset_empties_all_tiers(tmp_path):
    with make(tmp_path) as manager:
        assert manager.block_size == 4
        for name in (1, 2, 3):
            compute(manager, name, 4)
        held = manager.onboard(manager.match(chain(manager, 3, 1)))
        with pytest.raises(kvbm.UnavailableError, match="1 blocks of G1 are held"):
            manager.reset()
        assert all(manager.resident_blocks(tier) for tier in ("G1", "G2", "G3"))
        held.blocks.release()
        manager.reset()
        assert not any(manager.resident_blocks(tier) for tier in ("G1", "G2", "G3"))
        assert not any(len(manager.match(chain(manager, name, 4))) for name in (1, 2, 3))
        compute(manager, 1, 4)
        assert len(manager.match(chain(manager, 1, 4))) == 4


def test_tokens_and_salt_name_blocks(tmp_path):
    with make(tmp_path) as manager:
        tokens = np.arange(14, dtype=np.uint32)
        keys = manager.keys(tokens, salt="a")
        assert len(keys) == 3
        blocks = manager.allocate_blocks(3)
        manager.register_blocks(blocks, keys).release()
        assert len(manager.match(manager.keys(tokens.tolist()[:9], salt="a"))) == 2
        assert len(manager.match(manager.keys(tokens, salt="b"))) == 0
        for wrong in ([2**32], [-1], ["a"]):
            with pytest.raises((TypeError, OverflowError)):
                manager.keys(wrong)


def test_a_registered_block_is_copied_or_read_only(tmp_path):
    with make(tmp_path) as manager:
        keys = compute(manager, 1, 1)
        block = manager.onboard(manager.match(keys)).blocks[0]
        assert block.state == "immutable"
        copy = np.from_dlpack(block)
        copy[:] = 0
        view = np.from_dlpack(block, copy=False)
        assert not view.flags.writeable
        with pytest.raises(ValueError):
            view[:] = 0
        assert view.ctypes.data != copy.ctypes.data
        np.testing.assert_array_equal(view, content(1, 0))
        with pytest.raises(BufferError, match="read-only"):
            block.__dlpack__(copy=False)


def test_a_copy_of_a_mutable_block_is_apart_from_it(tmp_path):
    with make(tmp_path) as manager:
        block = manager.allocate_blocks(1)[0]
        np.from_dlpack(block)[:] = content(1, 0)
        copy = np.from_dlpack(block, copy=True)
        np.from_dlpack(block)[:] = 0
        np.testing.assert_array_equal(copy, content(1, 0))
        manager.register_blocks(kvbm_list(manager, block), chain(manager, 1, 1)).release()  # a copy is no writer


def kvbm_list(manager, block):
    """A BlockList of one block that is held elsewhere."""
    empty = manager.allocate_blocks(0)
    assert len(empty) == 0
    return type(empty)([block])


def test_an_exporter_refuses_what_it_cannot_do(tmp_path):
    with make(tmp_path) as manager:
        block = manager.allocate_blocks(1)[0]
        with pytest.raises(BufferError, match="stream"):
            block.__dlpack__(stream=1)
        with pytest.raises(BufferError, match="dl_device"):
            block.__dlpack__(dl_device=(2, 0))
        capsule = block.__dlpack__()
        assert '"dltensor"' in repr(capsule)
        assert '"dltensor_versioned"' in repr(block[0].__dlpack__(max_version=(1, 3)))


def test_register_refuses_while_a_tensor_can_write(tmp_path):
    with make(tmp_path) as manager:
        blocks = manager.allocate_blocks(2)
        keys = chain(manager, 1, 2)
        tensor = np.from_dlpack(blocks[1])
        row = tensor[1, 0]
        del tensor  # the view keeps it
        with pytest.raises(kvbm.InvalidArgumentError, match="written through a tensor"):
            manager.register_blocks(blocks, keys)
        assert [block.state for block in blocks] == ["mutable"] * 2  # nothing has changed
        del row
        registered = manager.register_blocks(blocks, keys)
        assert [block.state for block in registered] == ["immutable"] * 2
        assert [block.state for block in blocks] == ["released"] * 2
        with pytest.raises(kvbm.ContractViolation, match="released or registered"):
            np.from_dlpack(blocks[0])


def test_register_checks_what_it_is_given(tmp_path):
    with make(tmp_path) as manager, make(tmp_path) as other:
        blocks = manager.allocate_blocks(2)
        with pytest.raises(kvbm.InvalidArgumentError, match="keys of 1 blocks"):
            manager.register_blocks(blocks, chain(manager, 1, 1))
        with pytest.raises(kvbm.ContractViolation, match="another manager"):
            manager.register_blocks(blocks, chain(other, 1, 2))
        with pytest.raises(kvbm.ContractViolation, match="another manager"):
            other.register_blocks(blocks, chain(other, 1, 2))
        with pytest.raises(kvbm.ContractViolation, match="twice"):
            manager.register_blocks(type(blocks)([blocks[0], blocks[0]]), chain(manager, 1, 2))
        assert [block.state for block in blocks] == ["mutable"] * 2


def test_a_tensor_keeps_its_block_and_the_memory(tmp_path):
    manager = make(tmp_path)
    blocks = manager.allocate_blocks(4)
    tensor = np.from_dlpack(blocks[2])
    tensor[:] = 7
    blocks.release()
    assert manager.occupancy() == {"free": 3, "idle": 0, "active": 0, "mutable": 1}
    with pytest.raises(kvbm.ExhaustedError):
        manager.allocate_blocks(4)
    manager.close()
    del manager, blocks
    gc.collect()
    assert live_objects()["managers"] == 1
    tensor += 1
    assert (tensor == 8).all()
    del tensor
    gc.collect()
    assert live_objects()["managers"] == 0


def test_a_tensor_may_go_before_its_block(tmp_path):
    with make(tmp_path) as manager:
        blocks = manager.allocate_blocks(1)
        tensor = np.from_dlpack(blocks[0])
        tensor[:] = 5
        del tensor
        assert (np.from_dlpack(blocks[0]) == 5).all()
        assert manager.occupancy()["mutable"] == 1
        del blocks
        gc.collect()
        assert manager.occupancy()["mutable"] == 0


def test_a_tensor_may_go_on_another_thread(tmp_path):
    with make(tmp_path) as manager:
        tensors = [np.from_dlpack(block) for block in manager.allocate_blocks(4)]
        thread = threading.Thread(target=tensors.clear)
        thread.start()
        thread.join()
        assert manager.occupancy()["free"] == 4


def test_torch_shares_the_memory_and_cannot_harm_a_registered_block(tmp_path):
    torch = pytest.importorskip("torch")
    with make(tmp_path, dtype="bfloat16") as manager:
        blocks = manager.allocate_blocks(1)
        tensor = torch.from_dlpack(blocks[0])
        assert tensor.dtype == torch.bfloat16 and tuple(tensor.shape) == SHAPE
        assert tensor.stride() == torch.empty(SHAPE).stride()
        tensor.fill_(3)
        assert (torch.from_dlpack(blocks[0][1]) == 3).all()
        with pytest.raises(kvbm.InvalidArgumentError):
            manager.register_blocks(blocks, chain(manager, 1, 1))
        del tensor
        block = manager.register_blocks(blocks, chain(manager, 1, 1))[0]
        torch.from_dlpack(block).fill_(9)  # of a copy: torch does not heed the read-only flag
        assert (torch.from_dlpack(block) == 3).all()


def test_store_and_load_take_bytes(tmp_path):
    with make(tmp_path) as manager:
        blocks = manager.allocate_blocks(1)
        for layer in range(2):
            manager.store_kv(blocks[0], layer, content(1, 0)[layer])
        np.testing.assert_array_equal(np.from_dlpack(blocks[0]), content(1, 0))
        for layer, data in ((2, content(1, 0)[0]), (0, b"short")):
            with pytest.raises(kvbm.InvalidArgumentError, match="a layer of a block has 512 bytes"):
                manager.store_kv(blocks[0], layer, data)
        block = manager.register_blocks(blocks, chain(manager, 1, 1))[0]
        assert manager.load_kv(block, 1) == content(1, 0)[1].tobytes()
        with pytest.raises(kvbm.ContractViolation, match="not written"):
            manager.store_kv(block, 0, content(1, 0)[0])


def test_each_rank_has_bytes_of_its_own(tmp_path):
    with make(tmp_path, num_ranks=2) as manager:
        keys = chain(manager, 1, 1)
        blocks = manager.allocate_blocks(1)
        for rank in range(2):
            np.from_dlpack(blocks[0].on_rank(rank))[:] = content(rank, 0)
        manager.register_blocks(blocks, keys).release()
        manager.wait_idle(30)
        manager.allocate_blocks(4).release()  # evicts it from G1
        block = manager.onboard(manager.match(keys)).blocks[0]
        for rank in range(2):
            np.testing.assert_array_equal(np.from_dlpack(block.on_rank(rank)), content(rank, 0))
        with pytest.raises(kvbm.InvalidArgumentError):
            block.on_rank(2)


def test_layer_groups_have_blocks_of_their_own(tmp_path):
    with make(tmp_path, num_layers=3, groups="full:layers=2;window:layers=1,blocks=2") as manager:
        assert manager.num_groups == 2
        keys = chain(manager, 1, 4)
        for group, layers in enumerate((2, 1)):
            blocks = manager.allocate_blocks(4, group=group)
            assert blocks[0].shape[0] == layers and blocks[0].group == group
            for position, block in enumerate(blocks):
                np.from_dlpack(block)[:] = content(group, position)[:layers]
            manager.register_blocks(blocks, keys).release()
        manager.wait_idle(30)
        for group in range(2):
            manager.allocate_blocks(4, group=group).release()
        arrived = manager.onboard(manager.match(keys))
        assert (arrived.num_blocks, arrived.first) == (4, [0, 2])
        for group, layers in enumerate((2, 1)):
            for i, block in enumerate(arrived.groups[group]):
                expected = content(group, arrived.first[group] + i)[:layers]
                np.testing.assert_array_equal(np.from_dlpack(block), expected)


def test_configuration_comes_from_keywords_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "kvbm.toml"
    file.write_text("block_size = 8\nnum_layers = 3\nnum_heads = 1\nhead_dim = 4\nnum_blocks = 2\n")
    monkeypatch.setenv("KVBM_NUM_LAYERS", "5")
    with kvbm.BlockManager(config_file=str(file), num_blocks=1) as manager:
        text = manager.config_toml()
        values = tomllib.loads(text)
        assert (values["block_size"], values["num_layers"], values["num_blocks"]) == (8, 5, 1)
        assert "num_layers = 5  # KVBM_NUM_LAYERS" in text and "num_blocks = 1  # BlockManager()" in text
        assert values["gpu_memory_fraction"] == 0.9 and values["enable_offload"] is False
    monkeypatch.setenv("KVBM_CONFIG", str(file))
    with kvbm.BlockManager() as manager:
        assert tomllib.loads(manager.config_toml())["num_blocks"] == 2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"blok_size": 4}, 'no key "blok_size"; the nearest is block_size'),
        ({"block_size": 0}, "allowed is an integer from 1 to 65536"),
        ({"block_size": "many"}, "block_size"),
        ({"block_size": None}, "block_size is a NoneType"),
        ({"enable_offload": 2}, "true or false"),
    ],
)
def test_a_wrong_keyword_is_refused(tmp_path, values, message):
    with pytest.raises(kvbm.InvalidArgumentError, match=message):
        make(tmp_path, **values)
    with pytest.raises(ValueError, match=message):  # what Python calls it
        make(tmp_path, **values)


def test_a_missing_directory_or_file_is_not_found(tmp_path):
    with pytest.raises(kvbm.NotFoundError) as caught:
        make(tmp_path / "none")
    assert caught.value.code == "not_found" and str(caught.value).startswith("not_found: ")
    with pytest.raises(kvbm.NotFoundError):
        kvbm.BlockManager(config_file=str(tmp_path / "none.toml"))


def test_a_closed_manager_says_so(tmp_path):
    manager = make(tmp_path)
    keys = chain(manager, 1, 1)
    blocks = manager.register_blocks(manager.allocate_blocks(1), keys)
    assert not manager.closed
    manager.close()
    manager.close()
    assert manager.closed
    for call in (lambda: manager.match(keys), lambda: manager.allocate_blocks(1), manager.wait_idle, manager.poll):
        with pytest.raises(kvbm.UnavailableError, match="closed"):
            call()
    np.from_dlpack(blocks[0])  # what it holds can be read


def buffer_after(act, data):
    """An object with the buffer of data; whoever asks for it has act run first. As __buffer__, which Python 3.11 lacks."""

    class Acting:
        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
        def get(self, view, flags):
            act()
            return ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.c_void_p(view), flags)

    tp_as_buffer = ctypes.c_void_p.from_address(id(Acting) + 20 * ctypes.sizeof(ctypes.c_void_p)).value
    ctypes.c_void_p.from_address(tp_as_buffer).value = ctypes.cast(Acting.get, ctypes.c_void_p).value
    return Acting()


def test_a_block_is_not_registered_while_it_is_stored_to(tmp_path):
    with make(tmp_path) as manager:
        keys = chain(manager, 1, 1)
        blocks = manager.allocate_blocks(1)
        refused = []

        def register():
            try:
                manager.register_blocks(blocks, keys)
            except kvbm.InvalidArgumentError as error:
                refused.append(str(error))

        for layer in range(SHAPE[0]):
            manager.store_kv(blocks[0], layer, buffer_after(register, content(1, 0)[layer].tobytes()))
        assert len(refused) == SHAPE[0] and "can still be written" in refused[0]
        registered = manager.register_blocks(blocks, keys)
        np.testing.assert_array_equal(np.from_dlpack(registered[0]), content(1, 0))
        for block in registered:
            block.release()


def test_a_tensor_is_not_made_of_a_block_that_its_version_registers(tmp_path):
    with make(tmp_path) as manager:
        keys = chain(manager, 1, 1)
        blocks = manager.allocate_blocks(1)

        class Registers:
            def __index__(self):
                manager.register_blocks(blocks, keys).release()
                return 1

        with pytest.raises(kvbm.ContractViolation, match="released or registered"):
            blocks[0].__dlpack__(max_version=(Registers(), 0))


@pytest.fixture
def many_switches():
    """Threads take the GIL from each other at every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


CALLS = {
    "resident_blocks": lambda manager: manager.resident_blocks("G1"),
    "occupancy": lambda manager: manager.occupancy(),
    "poll": lambda manager: manager.poll(),
    "reset": lambda manager: manager.reset(),
    "wait_idle": lambda manager: manager.wait_idle(timeout=30),
    "take_events": lambda manager: manager.take_events(),
    "allocate_blocks": lambda manager: manager.allocate_blocks(1).release(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_manager_is_closed_while_other_threads_call_it(tmp_path, many_switches, call):
    for _ in range(15):
        manager = make(tmp_path, max_events=10)
        others = []
        calling = threading.Event()

        def go_on():
            while not manager.closed:
                calling.set()
                try:
                    call(manager)
                except (kvbm.UnavailableError, kvbm.ExhaustedError):
                    pass  # closed; or another thread has the blocks
                except BaseException as error:
                    others.append(error)
                    return

        threads = [threading.Thread(target=go_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        calling.wait()
        manager.close(timeout=30)
        for thread in threads:
            thread.join()
        assert not others


def large(tmp_path):
    """256 MiB that are about to be copied to the host, which takes far longer than some milliseconds."""
    manager = make(
        tmp_path,
        block_size=1024,
        head_dim=1024,
        num_heads=2,
        num_blocks=8,
        host_blocks=8,
        disk_blocks=0,
        offload_path="/tmp",
    )
    blocks = manager.register_blocks(manager.allocate_blocks(8), chain(manager, 1, 8))
    blocks.release()
    return manager


@pytest.mark.parametrize("wait", ["wait_idle", "close"])
def test_a_wait_has_a_timeout(tmp_path, wait):
    with large(tmp_path) as manager:
        started = time.monotonic()
        with pytest.raises(kvbm.TimeoutError) as caught:
            getattr(manager, wait)(timeout=0.002)
        assert time.monotonic() - started < 5
        assert isinstance(caught.value, TimeoutError) and caught.value.code == "timeout"
        assert manager.resident_blocks("G2") < 8  # it goes on
        manager.wait_idle(timeout=60)
        assert manager.resident_blocks("G2") == 8


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(tmp_path, timeout):
    with make(tmp_path) as manager:
        with pytest.raises(kvbm.InvalidArgumentError, match="timeout"):
            manager.wait_idle(timeout=timeout)


def test_ctrl_c_ends_a_wait(tmp_path):
    def interrupt(signum, frame):
        raise KeyboardInterrupt

    with large(tmp_path) as manager:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                manager.wait_idle()
        finally:
            signal.signal(signal.SIGALRM, before)
        assert manager.resident_blocks("G2") < 8  # the wait did not run to its end first
        manager.wait_idle(timeout=60)


def test_a_wait_lets_other_threads_run(tmp_path):
    with large(tmp_path) as manager:
        turns = []
        stop = threading.Event()

        def count():
            while not stop.is_set():
                turns.append(manager.occupancy()["free"])  # a call of the same manager
                time.sleep(0.0005)

        thread = threading.Thread(target=count)
        thread.start()
        before = len(turns)
        manager.wait_idle(timeout=60)
        during = len(turns) - before
        stop.set()
        thread.join()
        assert during > 0


def test_an_onboarding_is_awaited(tmp_path):
    async def bring_back(manager, keys):
        return await manager.begin_onboard(manager.match(keys))

    with make(tmp_path) as manager:
        keys = compute(manager, 1, 3)
        manager.allocate_blocks(4).release()
        arrived = asyncio.run(bring_back(manager, keys))
        assert arrived.num_blocks == 3
        for position, block in enumerate(arrived.blocks):
            np.testing.assert_array_equal(np.from_dlpack(block), content(1, position))


def test_the_result_of_an_onboarding_is_taken_once(tmp_path):
    with make(tmp_path) as manager:
        keys = compute(manager, 1, 2)
        manager.allocate_blocks(4).release()
        onboarding = manager.begin_onboard(manager.match(keys))
        assert onboarding.wait(timeout=30).num_blocks == 2
        with pytest.raises(kvbm.ContractViolation, match="was taken"):
            onboarding.wait()


def test_an_onboarding_that_nobody_waits_for_still_arrives(tmp_path):
    with make(tmp_path) as manager:
        keys = compute(manager, 1, 3)
        manager.allocate_blocks(4).release()
        assert manager.match(keys).num_gpu_blocks == 0
        manager.begin_onboard(manager.match(keys))
        manager.wait_idle(timeout=30)
        manager.poll()
        assert manager.match(keys).num_gpu_blocks == 3
        assert manager.occupancy()["mutable"] == 0


def test_a_hit_that_cannot_be_onboarded_stays(tmp_path):
    with make(tmp_path) as manager:
        keys = compute(manager, 1, 3)
        manager.allocate_blocks(4).release()
        taken = manager.allocate_blocks(3)
        hit = manager.match(keys)
        with pytest.raises(kvbm.ExhaustedError):
            manager.begin_onboard(hit)
        taken.release()
        assert manager.onboard(hit).num_blocks == 3


def test_events_tell_what_comes_and_goes(tmp_path):
    before = time.time()
    with make(tmp_path, max_events=100) as manager:
        compute(manager, 1, 3)
        events = manager.take_events()
        identities = [bytes([1, i + 1]) * 16 for i in range(3)]
        for type, tier, from_tier in (("created", "G1", None), ("migrated", "G2", "G1")):
            found = [event for event in events if (event.type, event.tier) == (type, tier)]
            assert [event.identity for event in found] == identities
            assert {(event.from_tier, event.group) for event in found} == {(from_tier, 0)}
            assert len({event.block_id for event in found}) == 3
            assert all(before <= event.timestamp <= time.time() for event in found)
        assert len(events) == 6 and "created" in repr(events[0])
        assert manager.take_events() == []
        manager.allocate_blocks(4).release()  # evicts them from G1
        assert {(event.type, event.tier) for event in manager.take_events()} == {("deleted", "G1")}
        assert manager.num_dropped_events == 0


def test_events_that_nobody_takes_are_counted(tmp_path):
    with make(tmp_path, max_events=4) as manager:
        compute(manager, 1, 3)
        assert len(manager.take_events()) == 4
        assert manager.num_dropped_events == 2
    with make(tmp_path) as manager:
        compute(manager, 1, 3)
        assert manager.take_events() == [] and manager.num_dropped_events == 0


def run_python(code, **options):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


MAKE = """
import gc, os, sys, kvbm
manager = kvbm.BlockManager(block_size=4, num_layers=1, num_heads=1, head_dim=4, num_blocks=4, host_blocks=4,
                            enable_offload=True)
keys = manager.keys(range(8))
"""


def test_a_forked_child_is_told(tmp_path):
    code = MAKE + """
blocks = manager.allocate_blocks(2)
hit = manager.match(keys)
child = os.fork()
if child == 0:
    refused = 0
    for call in (lambda: manager.match(keys), lambda: manager.allocate_blocks(1), manager.close, manager.poll,
                 lambda: hit.num_blocks, lambda: blocks[0].__dlpack__()):
        try:
            call()
        except kvbm.UnsupportedError as error:
            refused += str(os.getpid()) in str(error) and str(os.getppid()) in str(error)
    del call, blocks, hit, keys, manager
    gc.collect()
    kvbm.BlockManager(block_size=4, num_layers=1, num_heads=1, head_dim=4, num_blocks=4).close()
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
blocks.release()
manager.close()
"""
    run_python(code)


def test_nothing_is_left_at_exit():
    clean = run_python(MAKE + "blocks = manager.allocate_blocks(2)\ncapsule = blocks[0].__dlpack__()\n")
    assert "nanobind" not in clean.stderr, clean.stderr
    assert clean.stderr == ""


def test_importing_starts_no_thread():
    run_python("import kvbm, os, sys; assert len(os.listdir('/proc/self/task')) == 1")


def test_stubs_are_up_to_date():
    nanobind = pytest.importorskip("nanobind")
    pyproject = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())
    if f"nanobind=={nanobind.__version__}" not in pyproject["project"]["optional-dependencies"]["dev"]:
        pytest.skip(f"nanobind {nanobind.__version__} writes stubs in its own way")
    script = pathlib.Path(__file__).parents[2] / "scripts" / "make_stubs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, "run scripts/make_stubs.py\n" + done.stdout + done.stderr


def test_every_code_has_its_class():
    codes = {made.code: made for made in kvbm.Error.__subclasses__()}
    assert len(codes) == 12 and "" not in codes
    for code, made in codes.items():
        assert getattr(kvbm, made.__name__) is made and made.__doc__
        assert made.__name__.removesuffix("Error").lower() == code.replace("_", "")
    documented = (pathlib.Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    for made in codes.values():
        assert f"`{made.__name__}`" in documented
