# SPDX-License-Identifier: Apache-2.0
"""kvbm.KvbmWorker and kvbm.KvbmLeader by the constructors that Dynamo's have, and in a forked process."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import kvbm
from kvbm._core import MetricsReader, SecondaryTier, group_parts

BLOCKS, PAGE = 16, 4
MODEL = {"model": "m", "dtype": "u8", "scheme": "test", "block_tokens": PAGE, "window_blocks": [0], "host_blocks": 8}


def layers():
    """Two layers: [blocks, keys and values, tokens, elements], the second one with heads before tokens in memory."""
    plain = np.zeros((BLOCKS, 2, PAGE, 8), dtype=np.float16)
    swapped = np.zeros((BLOCKS, 8, PAGE, 2), dtype=np.float16).transpose(0, 3, 2, 1)
    return [plain, swapped]


def step(leader, worker, request, blocks, computed, scheduled, compute=None):
    worker.begin_step(leader.build_step([(request, [blocks], True, computed, scheduled)]))
    if worker.has_loads:
        worker.all_layers_needed()
    if compute is not None:
        compute()
    worker.end_step()


def goes_down_and_comes_back(leader, worker, tensors):
    """Stores blocks 0 to 2, loads them to 10 to 12, and compares every element."""
    parts = [np.asarray(tensor[:3]) for tensor in tensors]
    expected = [np.arange(part.size).reshape(part.shape) % 1000 + i for i, part in enumerate(parts)]

    def compute():
        for part, values in zip(parts, expected):
            part[:] = values

    hashes = [bytes([i]) * 32 for i in range(3)]
    leader.extend("a", hashes)
    step(leader, worker, "a", [0, 1, 2], 0, 3 * PAGE, compute)
    assert not leader.finished("a")
    deadline = time.monotonic() + 10
    while "stores are under way":
        leader.extend("b", hashes)
        tokens, _ = leader.match("b", 0, 3 * PAGE + 1)
        if tokens == 3 * PAGE or time.monotonic() > deadline:
            break
        leader.finished("b")
    leader.allocated("b", [[10, 11, 12, 13]], tokens)
    step(leader, worker, "b", [10, 11, 12, 13], tokens, 1)
    assert worker.take_failed_blocks() == []
    for tensor, values in zip(tensors, expected):
        np.testing.assert_array_equal(np.asarray(tensor[10:13]), values)
        assert not np.asarray(tensor[3:10]).any() and not np.asarray(tensor[13:]).any()  # nothing else was touched


def test_the_constructors_of_the_document(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "8")
    tensors = layers()
    worker = kvbm.KvbmWorker(BLOCKS, PAGE, tensors, 0, 2, None, False, None, None, None, 0, 1, None)
    leader = kvbm.KvbmLeader(1, None, workers=[worker])
    assert (leader.num_host_blocks, leader.num_disk_blocks, leader.metrics_port) == (8, 0, None)
    goes_down_and_comes_back(leader, worker, tensors)
    leader.stop()
    worker.stop()


def test_tensors_of_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "8")
    tensors = [torch.from_numpy(array) for array in layers()]
    worker = kvbm.KvbmWorker(BLOCKS, PAGE, tensors, dtype_width_bytes=2)
    leader = kvbm.KvbmLeader(world_size=1, workers=[worker])
    goes_down_and_comes_back(leader, worker, tensors)
    leader.stop()
    worker.stop()
    with pytest.raises(kvbm.InvalidArgumentError, match="tensors.0.: it is on meta"):
        kvbm.KvbmWorker(BLOCKS, PAGE, [torch.zeros(BLOCKS, PAGE, device="meta")])


def test_sizes_and_the_disk_come_from_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "4")
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "6")
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(tmp_path / "none"))
    worker = kvbm.KvbmWorker(BLOCKS, PAGE, layers())
    with pytest.raises(kvbm.NotFoundError, match="none"):
        kvbm.KvbmLeader(1, workers=[worker])
    worker.stop()
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(tmp_path))
    worker = kvbm.KvbmWorker(BLOCKS, PAGE, layers())
    leader = kvbm.KvbmLeader(1, workers=[worker])
    assert (leader.num_host_blocks, leader.num_disk_blocks) == (4, 6)
    leader.stop()
    worker.stop()


@pytest.mark.parametrize(
    "values",
    [
        {"drt": object()},
        {"device_id": 1},
        {"layout_blocking": True},
        {"device_layout_type": "FullyContiguous"},
        {"host_layout_type": "FullyContiguous"},
        {"disk_layout_type": "FullyContiguous"},
        {"nccl_comm_ptr": 4096},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_nothing_acts_on_is_refused(values):
    with pytest.raises(kvbm.UnsupportedError, match=next(iter(values))):
        kvbm.KvbmWorker(BLOCKS, PAGE, layers(), **values)


def read_only():
    array = np.zeros((BLOCKS, PAGE), np.uint8)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "tensors, values, message",
    [
        ([], {}, "has 0 runs"),
        ([np.zeros((BLOCKS, 6), np.uint8)], {}, r"tensors\[0\]: a block of shape \(6,\) does not hold 4 tokens"),
        ([np.zeros((2, BLOCKS, PAGE), np.uint8)], {}, r"shape is \(2, 16, 4\), and allowed are 16 blocks in front"),
        ([np.zeros((BLOCKS, PAGE), np.float32)], {"dtype_width_bytes": 2}, "elements have 4 bytes"),
        ([np.zeros((BLOCKS, PAGE)), np.zeros((BLOCKS, 2 * PAGE))], {}, "the layers differ"),
        ([np.lib.stride_tricks.as_strided(np.zeros(64, np.uint8), (BLOCKS, PAGE, 2), (4, 2, 1))[:, :, [0]][:, ::-1]],
         {}, "strides"),
        ([b"bytes"], {}, r"tensors\[0\]: a bytes is no tensor"),
        ([read_only()], {}, r"tensors\[0\]: the array is read-only"),
        ([np.zeros((BLOCKS, PAGE), np.uint8)], {"rank": 2, "world_size": 2}, "rank 2 of 2"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(tensors, values, message):
    with pytest.raises(kvbm.InvalidArgumentError, match=message):
        kvbm.KvbmWorker(BLOCKS, PAGE, tensors, **values)


def test_a_leader_and_its_workers_have_to_agree(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "8")
    told = kvbm.KvbmWorker(BLOCKS, PAGE, layers())
    untold = kvbm.KvbmWorker.create(0, BLOCKS, [(64, [(np.zeros((BLOCKS, 64), np.uint8).ctypes.data, 64)])])
    for arguments, values, message in (
        ((1,), {}, "world_size is 1, and there are 0 workers"),
        ((2,), {"workers": [told]}, "world_size is 2, and there are 1 workers"),
        ((1,), {"workers": [told], "page_size": 8}, "a block has 8 tokens, and 4 on a worker"),
        ((1,), {"workers": [untold]}, "page_size is missing"),
        ((1,), {"workers": [told], "endpoint": "ipc:///tmp/x"}, "either"),
    ):
        with pytest.raises(kvbm.InvalidArgumentError, match=message):
            kvbm.KvbmLeader(*arguments, **values)
    with pytest.raises(kvbm.UnsupportedError, match="drt"):
        kvbm.KvbmLeader(1, object(), workers=[told])
    told.stop()
    untold.stop()


def test_tensors_stay_until_the_worker_has_stopped():
    tensors = layers()
    counts = [sys.getrefcount(tensors[0])]
    worker = kvbm.KvbmWorker(BLOCKS, PAGE, tensors)
    counts.append(sys.getrefcount(tensors[0]))
    worker.stop()
    counts.append(sys.getrefcount(tensors[0]))
    assert counts[1] == counts[0] + 1 and counts[2] == counts[0]


@pytest.mark.parametrize(
    "block_tokens, window_blocks, parts",
    [
        ([4], [0], [1]),
        ([4, 4], [0, 3], [1, 1]),
        ([16, 4, 8], [0, 0, 0], [1, 4, 2]),
        ([16, 4, 4], [0, 3, 100], [1, 3, 4]),
        ([4, 16], [0, 1], [4, 1]),
    ],
)
def test_how_many_groups_each_is_to_a_worker(block_tokens, window_blocks, parts):
    assert group_parts(block_tokens, window_blocks) == parts


def test_groups_that_make_no_sense_are_refused():
    with pytest.raises(kvbm.UnsupportedError, match="blocks of 4 and of 6 tokens"):
        group_parts([6, 4], [0, 0])
    with pytest.raises(kvbm.InvalidArgumentError, match="0 tokens"):
        group_parts([4, 0], [0, 0])
    with pytest.raises(kvbm.InvalidArgumentError, match="block_tokens has 2 layer groups and window_blocks 1"):
        group_parts([4, 4], [0])
    with pytest.raises(kvbm.InvalidArgumentError, match="at least one"):
        group_parts([], [])


def test_groups_whose_blocks_hold_different_numbers_of_tokens():
    """One pool of blocks: those of group 0 hold 8 tokens, those of group 1 hold 4 and are half of a position."""
    pool = np.zeros((32, 64), dtype=np.uint8)
    block_tokens, window_blocks = [8, 4], [0, 3]
    parts = group_parts(block_tokens, window_blocks)
    groups = [(64, [(pool.ctypes.data, 64)]) for count in parts for _ in range(count)]
    worker = kvbm.KvbmWorker.create(0, len(pool), groups)
    sizes = {"block_tokens": block_tokens, "window_blocks": window_blocks}
    with pytest.raises(kvbm.InvalidArgumentError, match="3 layer groups or parts of them, the leader 2"):
        kvbm.KvbmLeader.create([worker], **{**MODEL, **sizes, "window_blocks": [0, 1]})
    leader = kvbm.KvbmLeader.create([worker], **{**MODEL, **sizes}, max_events=64)
    assert leader.num_host_blocks == 8  # of each part

    hashes = [bytes([i]) * 32 for i in range(6)]
    leader.extend("a", hashes)
    assert leader.num_identities("a") == 6
    written = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    worker.begin_step(leader.build_step([("a", written, True, 0, 24)]))
    for block in sum(written, []):
        pool[block] = block
    worker.end_step()
    assert not leader.finished("a")
    leader.extend("b", hashes)
    deadline = time.monotonic() + 10
    tokens = 0
    while tokens < 24 and time.monotonic() < deadline:  # stores are under way
        tokens, _ = leader.match("b", 0, 25)
    assert tokens == 24
    events = leader.take_events()
    of_group = [{identity for _, _, group, identity in events if group == number} for number in range(2)]
    assert of_group == [set(hashes[1::2]), set(hashes)]

    into = [[20, 21, 22, 23], [0, 0, 0, 24, 25, 26, 27]]  # 0 is no block: the window does not reach it
    leader.allocated("b", into, tokens)
    worker.begin_step(leader.build_step([("b", into, True, tokens, 1)]))
    worker.all_layers_needed()
    worker.end_step()
    assert worker.take_failed_blocks() == []
    for block, source in zip([20, 21, 22, 24, 25, 26], [1, 2, 3, 7, 8, 9]):
        assert (pool[block] == source).all()
    assert not pool[0].any() and not pool[23].any() and not pool[27].any()
    leader.stop()
    worker.stop()


def test_a_reader_of_a_stopped_leader_is_told():
    tensor = np.zeros((BLOCKS, 64), dtype=np.uint8)
    worker = kvbm.KvbmWorker.create(0, BLOCKS, [(64, [(tensor.ctypes.data, 64)])])
    leader = kvbm.KvbmLeader.create([worker], **MODEL)
    reader = MetricsReader(leader)
    reader.take()
    leader.stop()
    for call in (reader.take, lambda: MetricsReader(leader)):
        with pytest.raises(kvbm.UnavailableError, match="stopped"):
            call()
    worker.stop()


def test_a_stop_that_takes_too_long_raises_and_may_be_called_again(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "8")
    tensor = np.ones((8, 32 << 20), np.uint8)
    worker = kvbm.KvbmWorker(8, PAGE, [tensor])
    references = sys.getrefcount(tensor)
    leader = kvbm.KvbmLeader(1, workers=[worker])
    leader.extend("a", [bytes([i] * 32) for i in range(8)])
    worker.begin_step(leader.build_step([("a", [list(range(8))], True, 0, 8 * PAGE)]))
    worker.end_step()  # starts copies of 256 MiB
    with pytest.raises(kvbm.TimeoutError, match="memory must stay"):
        worker.stop(timeout=0)
    assert sys.getrefcount(tensor) == references
    with pytest.raises(kvbm.InvalidArgumentError, match="timeout is -1"):
        worker.stop(timeout=-1)
    worker.stop(timeout=60)
    assert sys.getrefcount(tensor) < references
    leader.stop()


def test_a_with_block_stops_both(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "4")
    tensors = layers()
    references = sys.getrefcount(tensors[0])
    with pytest.raises(ZeroDivisionError):
        with kvbm.KvbmWorker(BLOCKS, PAGE, tensors) as worker, kvbm.KvbmLeader(1, workers=[worker]) as leader:
            assert leader.num_host_blocks == 4
            running = sys.getrefcount(tensors[0])
            raise ZeroDivisionError
    with pytest.raises(kvbm.UnavailableError, match="stopped"):
        leader.num_host_blocks
    stopped = sys.getrefcount(tensors[0])
    assert running > references == stopped  # the worker lets go of its tensors when it stops
    with leader, worker:  # a stop is not the last one
        leader.stop()
        worker.stop()


@pytest.fixture
def many_switches():
    """Threads take the GIL from each other at every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def call_until(is_ended, call, threads):
    """Calls in threads that have begun to; what they raise but kvbm.UnavailableError is in the list."""
    raised = []
    calling = [threading.Event() for _ in range(threads)]

    def go_on(begun):
        try:
            while not is_ended.is_set():
                call()
                begun.set()
        except kvbm.UnavailableError:
            pass
        except BaseException as error:
            raised.append(error)
        begun.set()

    started = [threading.Thread(target=go_on, args=(begun,)) for begun in calling]
    for thread in started:
        thread.start()
    for begun in calling:
        begun.wait()
    return started, raised


def test_a_secondary_tier_is_closed_while_other_threads_wait_and_call(tmp_path, many_switches):
    pool = np.zeros((16, 65536), dtype=np.uint8)
    keys = [bytes([i]) * 32 + bytes(4) for i in range(16)]
    for round_ in range(20):
        tier = SecondaryTier.create(address=pool.ctypes.data, num_chunks=16, chunk_bytes=65536, chunk_stride=65536,
                                    disk_blocks=16, disk_directory=str(tmp_path))
        tier.store(1, keys, list(range(16)))
        ended = threading.Event()
        waiting, raised = call_until(ended, tier.drain, threads=2)
        calling, also_raised = call_until(ended, lambda: (tier.contains(keys[0]), tier.take_finished()), threads=2)
        if round_ % 2:
            tier.drain()
        tier.close()
        ended.set()
        for thread in (*waiting, *calling):
            thread.join()
        assert not raised and not also_raised
        with pytest.raises(kvbm.UnavailableError, match="closed"):
            tier.drain()


def test_the_end_of_a_secondary_tier_is_waited_for_with_a_timeout(tmp_path):
    size = 8 << 20  # long beside a call
    pool = np.zeros((8, size), dtype=np.uint8)
    keys = [bytes([i]) * 32 + bytes(4) for i in range(8)]
    tier = SecondaryTier.create(address=pool.ctypes.data, num_chunks=8, chunk_bytes=size, chunk_stride=size,
                                disk_blocks=8, disk_directory=str(tmp_path))
    tier.store(1, keys, list(range(8)))
    for wait in (tier.drain, tier.close):
        with pytest.raises(kvbm.TimeoutError):
            wait(timeout=0)
    tier.drain(timeout=60)
    assert tier.contains(keys[0]), "it is still open"
    tier.close(timeout=60)
    with pytest.raises(kvbm.UnavailableError, match="closed"):
        tier.drain(timeout=60)
    tier.close(timeout=0)


FORKED = """
import gc, os, signal, sys, time
import numpy as np
import kvbm
from kvbm._core import MetricsReader, SecondaryTier

tensor = np.zeros((16, 64), dtype=np.uint8)
worker = kvbm.KvbmWorker.create(0, 16, [(64, [(tensor.ctypes.data, 64)])])
leader = kvbm.KvbmLeader.create([worker], model="m", dtype="u8", scheme="t", block_tokens=4, window_blocks=[0],
                                host_blocks=8)
pool = np.zeros((4, 4096), dtype=np.uint8)
tier = SecondaryTier.create(address=pool.ctypes.data, num_chunks=4, chunk_bytes=4096, chunk_stride=4096, disk_blocks=4,
                            disk_directory=sys.argv[1])
key = bytes(36)
of_leader, of_worker = MetricsReader(leader), MetricsReader(worker)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang ends as a failure
    calls = {
        "KvbmWorker": [
            lambda: worker.begin_step(b""), lambda: worker.has_loads, lambda: worker.layer_needed(0), worker.statistics,
            worker.end_step, worker.take_ended_loads, worker.take_failed_blocks, worker.stop,
            lambda: worker.connect("ipc:///tmp/x"), of_worker.take, lambda: MetricsReader(worker),
            lambda: kvbm.KvbmLeader.create([worker], model="m", dtype="u8", scheme="t", block_tokens=4,
                                           window_blocks=[0], host_blocks=8),
        ],
        "KvbmLeader": [
            lambda: leader.extend("a", []), lambda: leader.match("a", 0, 1), lambda: leader.allocated("a", [[]], 0),
            lambda: leader.build_step([]), lambda: leader.finished("a"), lambda: leader.num_requests,
            lambda: leader.num_identities("a"), lambda: leader.num_open_loads, lambda: leader.num_host_blocks,
            lambda: leader.num_disk_blocks, leader.reset, leader.take_events, lambda: leader.metrics_port,
            leader.statistics, leader.stop, of_leader.take, lambda: MetricsReader(leader),
        ],
        "SecondaryTier": [
            lambda: tier.contains(key), lambda: tier.store(1, [key], [0]), lambda: tier.load(1, [key], [0]),
            tier.take_finished, lambda: tier.num_open_jobs, lambda: tier.num_disk_blocks,
            lambda: tier.num_resident_blocks, tier.statistics, tier.drain, tier.close,
        ],
    }
    for name, of_name in calls.items():
        for i, call in enumerate(of_name):
            try:
                call()
            except kvbm.UnsupportedError as error:
                for word in (name, str(os.getpid()), str(os.getppid())):
                    if word not in str(error):
                        sys.exit(f"{name} {i}: {error}")
            else:
                sys.exit(f"{name} {i} was not refused")
    del calls, of_name, call, of_leader, of_worker, leader, worker, tier
    gc.collect()
    anew = kvbm.KvbmWorker.create(0, 16, [(64, [(tensor.ctypes.data, 64)])])
    anew.stop()
    del anew
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
worker.begin_step(leader.build_step([]))
worker.end_step()
of_leader.take()
leader.stop()
worker.stop()
assert not tier.contains(key)
tier.close()
"""


def test_a_forked_child_is_told(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
