# SPDX-License-Identifier: Apache-2.0
"""kvbm.KvbmWorker and kvbm.KvbmLeader by the constructors that Dynamo's have, and in a forked process."""

import subprocess
import sys
import time

import numpy as np
import pytest

import kvbm
from kvbm._core import MetricsReader

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
        worker.layer_needed(0)
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
