# SPDX-License-Identifier: Apache-2.0
"""kvbm.LayoutConfig, kvbm.PhysicalLayout and kvbm.TransferManager over memory of their own, of NumPy and of torch."""

import asyncio
import ctypes
import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import kvbm
from kvbm._core import live_objects

SHAPE = {"num_blocks": 6, "num_layers": 3, "outer_dim": 2, "page_size": 4, "inner_dim": 10}
KINDS = ("fully_contiguous", "layer_separate_block_first", "layer_separate_block_second")
NUMPY = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def config(**changes):
    return kvbm.LayoutConfig(**{**SHAPE, **changes})


def content(config, block, layer):
    """[outer_dim, page_size, inner_dim], different in every element."""
    shape = (config.outer_dim, config.page_size, config.inner_dim)
    first = ((block * config.num_layers + layer) * np.prod(shape) * 7 + 3) % 251
    values = (np.arange(np.prod(shape)) * 5 + first) % 2 ** min(16, 8 * config.dtype_width_bytes)
    return values.astype(NUMPY[config.dtype_width_bytes]).reshape(shape)


def fill(layout):
    for i in range(len(layout)):
        tensor = np.from_dlpack(layout[i])
        for block in range(tensor.shape[0]):
            tensor[block] = content(layout.config, block, i)


def check(layout, blocks, layers=None):
    """blocks: {block: the block whose content it has}; all others are zero."""
    for i in range(len(layout)):
        tensor = np.from_dlpack(layout[i])
        for block in range(tensor.shape[0]):
            has = block in blocks and (layers is None or i in layers)
            expected = content(layout.config, blocks[block], i) if has else 0
            np.testing.assert_array_equal(tensor[block], np.broadcast_to(expected, tensor[block].shape))


def copy(source, destination, src_ids, dst_ids, **options):
    """What has arrived, in bytes."""
    with kvbm.TransferManager() as manager:
        src, dst = manager.register_layout(source), manager.register_layout(destination)
        return manager.execute_transfer(src, src_ids, dst, dst_ids, **options).wait(timeout=30)


def test_a_config_has_all_fields():
    values = {**SHAPE, "dtype_width_bytes": 4, "num_heads": 5, "alignment": 256}
    made = kvbm.LayoutConfig(**values)
    assert {name: getattr(made, name) for name in values} == values
    assert (made.chunk_bytes, made.layer_bytes, made.block_bytes) == (160, 320, 960)
    assert (config().dtype_width_bytes, config().num_heads, config().alignment) == (2, None, 1)
    assert made == kvbm.LayoutConfig(**values) and hash(made) == hash(kvbm.LayoutConfig(**values))
    for name, value in {**{name: value * 2 for name, value in SHAPE.items() if name != "outer_dim"}, "outer_dim": 1,
                        "dtype_width_bytes": 8, "num_heads": None, "alignment": 64}.items():
        assert kvbm.LayoutConfig(**{**values, name: value}) != made
    assert made != 1 and eval(repr(made), {"LayoutConfig": kvbm.LayoutConfig}) == made
    with pytest.raises(AttributeError):
        made.num_blocks = 1


@pytest.mark.parametrize(
    "changes",
    [{"num_blocks": 0}, {"num_layers": 0}, {"outer_dim": 3}, {"page_size": 0}, {"inner_dim": 0}, {"dtype_width_bytes": 3},
     {"num_heads": 3}, {"alignment": 3}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_that_makes_no_sense_is_refused(changes):
    with pytest.raises(kvbm.InvalidArgumentError, match=next(iter(changes))):
        config(**changes)


@pytest.mark.parametrize("alignment", [1, 4096])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_allocated_memory_is_zero_and_has_the_documented_strides(kind, width, alignment):
    made = config(dtype_width_bytes=width, alignment=alignment)
    layout = kvbm.PhysicalLayout.allocate(made, kind)
    assert (layout.config, layout.kind, layout.storage_kind, len(layout)) == (made, kind, "system", 3)

    def aligned(size):
        return -(-size // alignment) * alignment

    chunk = made.chunk_bytes
    outer, block = {
        "fully_contiguous": (chunk, aligned(made.block_bytes)),
        "layer_separate_block_first": (chunk, aligned(made.layer_bytes)),
        "layer_separate_block_second": (aligned(chunk) * 6, aligned(chunk)),
    }[kind]
    for i, layer in enumerate(layout):
        tensor = np.from_dlpack(layer)
        assert layer.index == i and layer.__dlpack_device__() == (1, 0)
        assert (tensor.shape, tensor.dtype) == ((6, 2, 4, 10), NUMPY[width])
        assert tensor.strides == (block, outer, 10 * width, width)
        assert tensor.flags.writeable and not tensor.any()
    assert np.from_dlpack(layout[-1]).ctypes.data == np.from_dlpack(layout[2]).ctypes.data
    fill(layout)
    check(layout, {block: block for block in range(6)})
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            layout[wrong]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_copied_between_all_kinds(kind, to):
    source = kvbm.PhysicalLayout.allocate(config(num_heads=5), kind)
    destination = kvbm.PhysicalLayout.allocate(config(num_blocks=9, alignment=64), to)
    fill(source)
    assert copy(source, destination, [5, 0, 2, 2], [1, 8, 0, 4]) == 4 * config().block_bytes
    check(destination, {1: 5, 8: 0, 0: 2, 4: 2})
    assert copy(source, destination, np.array([3], np.uint32), (5,), layer_range=(1, 2)) == 2 * config().layer_bytes
    for i, expected in enumerate((0, content(config(), 3, 1), content(config(), 3, 2))):
        np.testing.assert_array_equal(np.from_dlpack(destination[i])[5], np.broadcast_to(expected, (2, 4, 10)))


def numpy_tensors(kind, made, dtype):
    """Tensors of a kind, and the same blocks as [num_blocks, num_layers, outer_dim, page_size, inner_dim]."""
    blocks, layers, inner = made.num_blocks, made.num_layers, (made.page_size, 2, made.inner_dim // 2)
    if kind == "fully_contiguous":
        # Layers first in memory, with a block between each two that nobody uses.
        whole = np.zeros((layers, 2 * blocks, made.outer_dim, *inner), dtype)
        tensors = [whole[:, ::2].transpose(1, 0, 2, 3, 4, 5)]
        return tensors, whole, lambda block, layer: tensors[0][block, layer]
    if kind == "layer_separate_block_first":
        whole = np.zeros((layers, made.outer_dim, blocks, *inner), dtype)
        tensors = [whole[i].transpose(1, 0, 2, 3, 4) for i in range(layers)]
        return tensors, whole, lambda block, layer: tensors[layer][block]
    whole = np.zeros((blocks, layers, made.outer_dim, *inner), dtype)
    tensors = [whole[:, i].transpose(1, 0, 2, 3, 4) for i in range(layers)]
    return tensors, whole, lambda block, layer: tensors[layer][:, block]


def brought_there_and_back(kind, made, tensors, part):
    """part(block, layer): that part of the tensors as NumPy."""
    source = kvbm.PhysicalLayout.allocate(made)
    fill(source)
    theirs = kvbm.PhysicalLayout.from_tensors(made, tensors, kind)
    assert (theirs.kind, len(theirs)) == ("page_maps", made.num_layers)
    assert copy(source, theirs, [1, 4], [0, 3]) == 2 * made.block_bytes
    for block in range(made.num_blocks):
        for layer in range(made.num_layers):
            found = np.asarray(part(block, layer)).view(NUMPY[made.dtype_width_bytes])
            expected = content(made, {0: 1, 3: 4}[block], layer) if block in (0, 3) else 0
            np.testing.assert_array_equal(found.reshape(2, 4, 10), np.broadcast_to(expected, (2, 4, 10)))
            view = np.from_dlpack(theirs[layer])[block]
            np.testing.assert_array_equal(view.reshape(-1), found.reshape(-1))
            assert view.ctypes.data == np.asarray(part(block, layer)).ctypes.data
    back = kvbm.PhysicalLayout.allocate(made, "layer_separate_block_second")
    copy(theirs, back, [0, 3], [5, 2])
    check(back, {5: 1, 2: 4})


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_numpy_are_used_where_they_are(kind, dtype):
    made = config(dtype_width_bytes=np.dtype(dtype).itemsize)
    tensors, whole, part = numpy_tensors(kind, made, dtype)
    brought_there_and_back(kind, made, tensors, part)
    assert np.count_nonzero(whole.view(np.uint8)) < 3 * made.block_bytes  # nothing beside the two blocks was written


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_torch_are_used_where_they_are(kind):
    torch = pytest.importorskip("torch")
    made = config()
    arrays, _, _ = numpy_tensors(kind, made, np.uint16)
    tensors = [torch.from_numpy(array).view(torch.bfloat16) for array in arrays]
    arrays = [tensor.view(torch.int16).numpy() for tensor in tensors]

    def part(block, layer):
        if kind == "fully_contiguous":
            return arrays[0][block, layer]
        return arrays[layer][block] if kind == "layer_separate_block_first" else arrays[layer][:, block]

    brought_there_and_back(kind, made, tensors, part)
    layout = kvbm.PhysicalLayout.from_tensors(made, tensors, kind)
    with pytest.raises(BufferError):
        layout[0].__dlpack__(copy=True)
    view = torch.from_dlpack(layout[0])
    assert (tuple(view.shape), view.dtype) == ((6, 2, 4, 10), torch.uint16)


def read_only():
    array = np.zeros((6, 3, 2, 4, 10), np.uint16)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "tensors, kind, message",
    [
        ([np.zeros((6, 3, 2, 4, 10), np.uint16)], "contiguous", 'no kind of layout "contiguous"'),
        ([], "fully_contiguous", "0 tensors, and fully_contiguous takes 1"),
        ([np.zeros((6, 2, 4, 10), np.uint16)] * 2, "layer_separate_block_first", "takes 3"),
        ([b"bytes"], "fully_contiguous", r"tensors\[0\]: a bytes is no writable tensor"),
        ([None], "fully_contiguous", r"tensors\[0\]: a NoneType is no writable tensor"),
        ([read_only()], "fully_contiguous", r"tensors\[0\]: a ndarray is no writable tensor"),
        ([np.zeros((6, 3, 2, 4, 10), np.uint8)], "fully_contiguous", "elements have 1 bytes"),
        ([np.zeros((3, 6, 2, 4, 10), np.uint16)], "fully_contiguous", r"\[3, 6, 2, 4, 10\], and allowed is \[num_blocks 6, num"),
        ([np.zeros((6, 3, 2, 4, 11), np.uint16)], "fully_contiguous", "10 elements together"),
        ([np.zeros((6, 3, 2, 40), np.uint16)], "fully_contiguous", "page_size 4"),
        ([np.zeros((6, 3, 2, 4, 5), np.uint16)], "fully_contiguous", "10 elements together"),
        ([np.zeros((6, 3, 2, 10, 4), np.uint16).swapaxes(3, 4)], "fully_contiguous", "not contiguous"),
        ([np.zeros((6, 3, 2, 4, 20), np.uint16)[..., ::2]], "fully_contiguous", "not contiguous"),
        ([np.zeros((6, 3, 2, 4, 10), np.uint16)[::-1]], "fully_contiguous", "stride of num_blocks is negative"),
        ([np.lib.stride_tricks.as_strided(np.zeros(1200, np.uint16), (6, 3, 2, 4, 10), (160, 160, 80, 20, 2))],
         "fully_contiguous", r"tensors\[0\]"),
        ([np.zeros((6, 2, 4, 10), np.uint16)] * 3, "layer_separate_block_first", "overlap"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(tensors, kind, message):
    with pytest.raises(kvbm.InvalidArgumentError, match=message):
        kvbm.PhysicalLayout.from_tensors(config(), tensors, kind)


def test_tensors_of_torch_that_make_no_sense_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(kvbm.InvalidArgumentError, match=r"tensors\[0\]: a torch.Tensor is no writable tensor"):
        kvbm.PhysicalLayout.from_tensors(config(), [torch.zeros(6, 3, 2, 4, 10, device="meta")], "fully_contiguous")


class OnDevice:
    """A tensor that says that it is on a GPU: DLPack's DLManagedTensor, whose memory nobody may read."""

    class Managed(ctypes.Structure):
        _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                    ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                    ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
                    ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]

    def __init__(self):
        self.shape = (ctypes.c_int64 * 5)(6, 3, 2, 4, 10)
        self.managed = self.Managed(4096, 2, 1, 5, 1, 16, 1, ctypes.addressof(self.shape))

    def __dlpack__(self):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor", None)


def test_a_tensor_on_a_gpu_is_refused():
    with pytest.raises(kvbm.InvalidArgumentError, match="on device 1 of DLPack's type 2, and allowed is host memory"):
        kvbm.PhysicalLayout.from_tensors(config(), [OnDevice()], "fully_contiguous")


def test_an_exporter_refuses_what_it_cannot_do():
    layer = kvbm.PhysicalLayout.allocate(config())[0]
    for wrong in ({"stream": 1}, {"dl_device": (2, 0)}, {"copy": True}):
        with pytest.raises(BufferError):
            layer.__dlpack__(**wrong)
    assert "dltensor_versioned" in repr(layer.__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=False))
    assert '"dltensor"' in repr(layer.__dlpack__())


def test_requests_that_make_no_sense_are_refused():
    first, second = (kvbm.PhysicalLayout.allocate(config()) for _ in range(2))
    other = kvbm.PhysicalLayout.allocate(config(page_size=8))
    array = np.zeros((6, 3, 2, 4, 10), np.uint16)
    same, again = (kvbm.PhysicalLayout.from_tensors(config(), [array], "fully_contiguous") for _ in range(2))
    with kvbm.TransferManager(worker_id=7, max_transfers=1) as manager:
        a, b, c, d, e = (manager.register_layout(layout) for layout in (first, second, other, same, again))
        strange = kvbm.LayoutHandle.from_bits(8, a.high)
        for arguments, options, error, message in (
            ((strange, [0], b, [0]), {}, kvbm.NotFoundError, "worker 8 layout 0"),
            ((a, [0, 1], b, [0]), {}, kvbm.InvalidArgumentError, "2 source blocks and 1"),
            ((a, [6], b, [0]), {}, kvbm.InvalidArgumentError, "source block 6"),
            ((a, [0], b, [6]), {}, kvbm.InvalidArgumentError, "destination block 6"),
            ((a, [0, 1], b, [2, 2]), {}, kvbm.InvalidArgumentError, "twice"),
            ((a, [0], a, [0]), {}, kvbm.InvalidArgumentError, "a source and a destination"),
            ((a, [0], c, [0]), {}, kvbm.InvalidArgumentError, "page_size 4 and 8"),
            ((a, [0], b, [0]), {"layer_range": (1, 3)}, kvbm.InvalidArgumentError, "3 layers from layer 1"),
            ((d, [0], e, [1]), {}, kvbm.UnsupportedError, "share bytes"),
        ):
            with pytest.raises(error, match=message):
                manager.execute_transfer(*arguments, **options)
        for wrong in ([-1], [2**32], ["a"], None):
            with pytest.raises(TypeError):
                manager.execute_transfer(a, wrong, b, [0])
        assert manager.in_flight == 0
        nothing = manager.execute_transfer(a, [], b, [])
        assert nothing.done() and nothing.wait() == 0 and nothing.failed == []
    for values in ({"copy_threads": 0}, {"max_transfers": 0}):
        with pytest.raises(kvbm.InvalidArgumentError):
            kvbm.TransferManager(**values)


def test_handles_are_names():
    with kvbm.TransferManager(worker_id=2**63 + 5) as manager:
        assert manager.worker_id == 2**63 + 5
        handles = [manager.register_layout(kvbm.PhysicalLayout.allocate(config())) for _ in range(2)]
    assert [(handle.worker_id, handle.layout) for handle in handles] == [(2**63 + 5, 0), (2**63 + 5, 1)]
    again = kvbm.LayoutHandle.from_bits(handles[1].low, handles[1].high)
    assert again == handles[1] != handles[0] and len({again, *handles}) == 2 and again != 1
    assert "worker 9223372036854775813 layout 1" in repr(again)
    with pytest.raises(kvbm.InvalidArgumentError):
        kvbm.LayoutHandle.from_bits(0, 2**16)


class Large:
    """Copies that take a while: of 512 MiB in many small pieces, several times."""

    def __init__(self):
        made = kvbm.LayoutConfig(4096, 32, 2, 16, 64)
        self.source = kvbm.PhysicalLayout.allocate(made, "layer_separate_block_second")
        self.destination = kvbm.PhysicalLayout.allocate(made, "layer_separate_block_first")
        self.last = np.from_dlpack(self.source[31])
        self.last[4095] = 7
        self.bytes = made.block_bytes * made.num_blocks

    def start(self, manager, times=6):
        """The last one."""
        src, dst = (manager.register_layout(layout) for layout in (self.source, self.destination))
        blocks = np.arange(4096, dtype=np.uint32)
        for _ in range(times):
            running = manager.execute_transfer(src, blocks, dst, blocks)
        return running


def test_a_wait_has_a_timeout_and_lets_others_run():
    with kvbm.TransferManager(copy_threads=1) as manager:
        large = Large()
        running = large.start(manager)
        with pytest.raises(kvbm.TimeoutError, match="still under way"):
            running.wait(timeout=0)
        assert not running.done() and manager.in_flight > 0
        with pytest.raises(kvbm.UnavailableError, match="still under way"):
            running.failed
        with pytest.raises(kvbm.TimeoutError):
            manager.close(timeout=0)
        assert not manager.closed
        for wrong in (-1, float("nan")):
            with pytest.raises(kvbm.InvalidArgumentError, match="timeout"):
                running.wait(timeout=wrong)
        results = []
        waiters = [threading.Thread(target=lambda: results.append(running.wait())) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        assert not running.done()  # a thread that waits does not hold the GIL
        assert running.wait(timeout=60) == large.bytes and running.failed == []
        for waiter in waiters:
            waiter.join()
        assert results == [large.bytes] * 3
    assert np.from_dlpack(large.destination[31])[4095, 1, 15, 63] == 7


def test_a_manager_is_closed_while_other_threads_copy():
    layouts = [kvbm.PhysicalLayout.allocate(config()) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(20):
            manager = kvbm.TransferManager(copy_threads=1)
            src, dst = (manager.register_layout(layout) for layout in layouts)
            started = [threading.Event() for _ in range(4)]
            ended = []

            def copy_on(has_started, waits):
                try:
                    while True:
                        running = manager.execute_transfer(src, [0], dst, [0])
                        has_started.set()
                        if waits:
                            running.wait()
                except kvbm.ExhaustedError:
                    ended.append("full")
                except BaseException as error:
                    ended.append(str(error))

            threads = [threading.Thread(target=copy_on, args=(started[i], i < 2)) for i in range(4)]
            for thread in threads:
                thread.start()
            for has_started in started:
                has_started.wait()
            manager.close(timeout=60)
            for thread in threads:
                thread.join()
            for message in ended:
                assert message == "full" or "closed" in message
    finally:
        sys.setswitchinterval(before)


def test_nothing_new_is_taken_while_a_manager_is_being_closed():
    manager = kvbm.TransferManager(copy_threads=1)
    large = Large()
    source, destination = (manager.register_layout(layout) for layout in (large.source, large.destination))
    running = large.start(manager)
    closing = threading.Thread(target=manager.close)
    closing.start()
    with pytest.raises(kvbm.UnavailableError, match="being closed"):
        while not running.done():
            manager.execute_transfer(source, [0], destination, [0])
            time.sleep(0.001)
    assert not running.done() and not manager.closed
    closing.join()
    assert running.wait() == large.bytes


def test_a_transfer_is_awaited():
    async def run():
        with kvbm.TransferManager() as manager:
            large = Large()
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    await asyncio.sleep(0)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            assert await large.start(manager, times=1) == large.bytes
            ticking.cancel()
            return ticks

    assert asyncio.run(run()) > 0


def test_a_closed_manager_is_told_and_its_notifications_stay():
    with kvbm.TransferManager() as manager:
        layout, other = (kvbm.PhysicalLayout.allocate(config()) for _ in range(2))
        a, b = manager.register_layout(layout), manager.register_layout(other)
        done = manager.execute_transfer(a, [0], b, [1])
    assert manager.closed and done.done() and done.wait() == config().block_bytes
    manager.close()
    for call in (lambda: manager.register_layout(layout), lambda: manager.execute_transfer(a, [0], b, [0]),
                 lambda: manager.in_flight, lambda: manager.worker_id):
        with pytest.raises(kvbm.UnavailableError, match="closed"):
            call()


def test_a_manager_keeps_memory_and_tensors_until_it_is_closed():
    array = np.zeros((6, 3, 2, 4, 10), np.uint16)
    kept = weakref.ref(array)
    manager = kvbm.TransferManager()
    theirs = manager.register_layout(kvbm.PhysicalLayout.from_tensors(config(), [array], "fully_contiguous"))
    address, size = array[2, 1].ctypes.data, array[2, 1].nbytes
    del array
    ours = kvbm.PhysicalLayout.allocate(config())
    fill(ours)
    handle = manager.register_layout(ours)
    del ours
    gc.collect()
    assert kept() is not None and live_objects()["layouts"] == 2
    manager.execute_transfer(handle, [4], theirs, [2]).wait()
    assert ctypes.string_at(address, size) == content(config(), 4, 1).tobytes()
    manager.close()
    assert live_objects()["layouts"] == 0
    gc.collect()
    assert kept() is None


def test_a_tensor_keeps_the_memory_and_a_layout_the_tensors():
    layout = kvbm.PhysicalLayout.allocate(config())
    fill(layout)
    tensor = np.from_dlpack(layout[1])
    del layout
    gc.collect()
    assert live_objects()["layouts"] == live_objects()["tensors"] == 1
    np.testing.assert_array_equal(tensor[3], content(config(), 3, 1))
    del tensor
    gc.collect()
    assert live_objects()["layouts"] == live_objects()["tensors"] == 0
    array = np.zeros((6, 3, 2, 4, 10), np.uint16)
    kept = weakref.ref(array)
    layout = kvbm.PhysicalLayout.from_tensors(config(), [array], "fully_contiguous")
    del array
    tensor = np.from_dlpack(layout[0])
    del layout
    gc.collect()
    assert kept() is not None
    del tensor
    gc.collect()
    assert kept() is None


def test_a_running_transfer_keeps_its_memory():
    manager = kvbm.TransferManager(copy_threads=1)
    large = Large()
    running = large.start(manager)
    tensor = np.from_dlpack(large.destination[31])
    del large, manager
    gc.collect()
    assert not running.done()
    running.wait(timeout=60)
    assert tensor[4095, 1, 15, 63] == 7
    # Nobody waits: it ends before the memory goes.
    manager = kvbm.TransferManager(copy_threads=1)
    large = Large()
    tensor = np.from_dlpack(large.destination[31])
    large.start(manager)
    del large, manager
    gc.collect()
    assert tensor[4095, 1, 15, 63] == 7
    assert live_objects()["transfer_managers"] == 1  # that of `running`


def test_a_tensor_is_let_go_of_in_another_thread():
    layout = kvbm.PhysicalLayout.from_tensors(config(), [np.zeros((6, 3, 2, 4, 10), np.uint16)], "fully_contiguous")
    holder = [np.from_dlpack(layout[0])]
    del layout
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert live_objects()["layouts"] == 0


def test_managers_come_and_go():
    layout, other = (kvbm.PhysicalLayout.allocate(config()) for _ in range(2))
    before = len(threading.enumerate())
    for _ in range(20):
        with kvbm.TransferManager() as manager:
            manager.execute_transfer(manager.register_layout(layout), [0], manager.register_layout(other), [0])
    assert len(threading.enumerate()) == before


INTERRUPTED = """
import os, signal, threading, time
import numpy as np
import kvbm

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
made = kvbm.LayoutConfig(4096, 32, 2, 16, 64)
source = kvbm.PhysicalLayout.allocate(made, "layer_separate_block_second")
destination = kvbm.PhysicalLayout.allocate(made, "layer_separate_block_first")
with kvbm.TransferManager(copy_threads=1) as manager:
    src, dst = manager.register_layout(source), manager.register_layout(destination)
    blocks = np.arange(4096, dtype=np.uint32)
    running = [manager.execute_transfer(src, blocks, dst, blocks) for _ in range(8)]
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        running[-1].wait()
    except KeyboardInterrupt:
        assert not running[-1].done()
        print("interrupted")
"""

FORKED = """
import gc, os, signal, sys
import kvbm

made = kvbm.LayoutConfig(4, 1, 1, 1, 8)
layout, other = kvbm.PhysicalLayout.allocate(made), kvbm.PhysicalLayout.allocate(made)
manager = kvbm.TransferManager()
a, b = manager.register_layout(layout), manager.register_layout(other)
done = manager.execute_transfer(a, [0], b, [0])
done.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang ends as a failure
    for i, call in enumerate((
        lambda: manager.register_layout(layout), lambda: manager.execute_transfer(a, [0], b, [0]),
        lambda: manager.in_flight, lambda: manager.worker_id, manager.close, done.done, done.wait, lambda: done.failed,
    )):
        try:
            call()
        except kvbm.UnsupportedError as error:
            if "TransferManager" not in str(error) or str(os.getppid()) not in str(error):
                sys.exit(f"{i}: {error}")
        else:
            sys.exit(f"{i} was not refused")
    del call, manager, done
    gc.collect()
    with kvbm.TransferManager() as anew:
        anew.execute_transfer(anew.register_layout(layout), [0], anew.register_layout(other), [0]).wait()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
manager.execute_transfer(a, [1], b, [1]).wait()
manager.close()
"""


@pytest.mark.parametrize("program, output", [(INTERRUPTED, "interrupted\n"), (FORKED, "")], ids=["interrupted", "forked"])
def test_ctrl_c_and_forks(program, output):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, output), done.stdout + done.stderr
