# SPDX-License-Identifier: Apache-2.0
"""Where a block of a layer lies in an engine's KV tensor: from strides, never from a guess about axes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Runs:
    """A layer's part of every block: `addresses[i] + block * block_stride`, `run_bytes` bytes each."""

    run_bytes: int
    block_stride: int
    addresses: tuple[int, ...]


def runs_of(name: str, tensor, num_blocks: int, page_bytes: int) -> Runs:
    """The runs of a layer whose first axis counts blocks, or rows of which several make a block.

    tensor: has shape, stride(), element_size(), data_ptr(). page_bytes: of one block in this layer, from the engine's
    specification. Raises ValueError, naming the layer, where tensor and specification disagree.
    """
    shape, strides, width = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    rows = shape[0]
    if rows % num_blocks:
        raise ValueError(f"{name}: a tensor of shape {shape} has no axis of {num_blocks} blocks in front")
    rows_per_block = rows // num_blocks
    # All axes inside a block, innermost first; axes of one entry have no stride that matters.
    axes = [(rows_per_block, strides[0] * width)] + [(n, s * width) for n, s in zip(shape[1:], strides[1:])]
    axes = sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: axis[1])
    run_bytes = width
    while axes and axes[0][1] == run_bytes:
        run_bytes *= axes.pop(0)[0]
    offsets = [0]
    for extent, stride in axes:
        if stride < run_bytes:
            raise ValueError(f"{name}: entries of a tensor with strides {strides} share bytes")
        offsets = [offset + i * stride for i in range(extent) for offset in offsets]
    offsets.sort()
    found = run_bytes * len(offsets)
    if found != page_bytes:
        raise ValueError(f"{name}: a block has {found} bytes in the tensor, {page_bytes} in the specification")
    if len(offsets) > 1024:
        raise ValueError(f"{name}: a block lies in {len(offsets)} pieces; at most 1024 are supported")
    block_stride = strides[0] * width * rows_per_block
    return Runs(run_bytes, block_stride, tuple(tensor.data_ptr() + offset for offset in offsets))
