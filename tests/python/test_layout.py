# SPDX-License-Identifier: Apache-2.0
"""Blocks of a layer as byte runs, against NumPy's own view of the same memory."""

import ctypes

import numpy as np
import pytest

from kvbm.vllm_integration.layout import runs_of


class Tensor:
    """A NumPy array with the names that torch gives."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape

    def stride(self):
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def element_size(self):
        return self.array.itemsize

    def data_ptr(self):
        return self.array.ctypes.data


def bytes_of(runs, block):
    return b"".join(ctypes.string_at(address + block * runs.block_stride, runs.run_bytes) for address in runs.addresses)


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def check(array, num_blocks, expected_runs):
    """The runs of a block hold the bytes of the block, each once."""
    rows = array.shape[0] // num_blocks
    page_bytes = array[:rows].size * array.itemsize
    runs = runs_of("layer", Tensor(array), num_blocks, page_bytes)
    assert len(runs.addresses) == expected_runs
    for block in range(num_blocks):
        found = sorted(np.frombuffer(bytes_of(runs, block), dtype=array.dtype))
        assert found == sorted(array[block * rows : (block + 1) * rows].ravel())


def test_a_contiguous_block_is_one_run():
    check(numbered(6, 2, 4, 8), 6, 1)


def test_axes_inside_a_block_may_come_in_any_order():
    check(numbered(6, 4, 2, 8).transpose(0, 2, 1, 3), 6, 1)


def test_blocks_may_lie_apart():
    check(numbered(6, 3, 2, 4, 8)[:, 1], 6, 1)


def test_halves_that_lie_apart_are_two_runs():
    # [2, blocks, ...] in memory, seen as [blocks, 2, ...].
    check(numbered(2, 6, 4, 8).transpose(1, 0, 2, 3), 6, 2)


def test_heads_outside_of_blocks_are_a_run_each():
    check(numbered(3, 6, 4, 8).transpose(1, 0, 2, 3), 6, 3)


def test_several_rows_may_make_a_block():
    check(numbered(12, 2, 4), 6, 1)


def test_axes_of_one_entry_do_not_matter():
    check(numbered(6, 1, 4, 1), 6, 1)


def test_what_disagrees_with_the_specification_is_refused():
    with pytest.raises(ValueError, match="layer7: .*256 bytes in the tensor, 512 in the specification"):
        runs_of("layer7", Tensor(numbered(6, 2, 4, 8)), 6, 512)
    with pytest.raises(ValueError, match="no axis of 5 blocks"):
        runs_of("layer7", Tensor(numbered(6, 2, 4, 8)), 5, 256)


def test_entries_that_share_bytes_are_refused():
    array = np.lib.stride_tricks.as_strided(numbered(64), shape=(4, 3, 8), strides=(64, 16, 4))
    with pytest.raises(ValueError, match="share bytes"):
        runs_of("layer", Tensor(array), 4, 96)
