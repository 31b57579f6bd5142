# SPDX-License-Identifier: Apache-2.0
"""Where a block of a layer lies in an engine's KV tensor: from strides, never from a guess about axes."""

import ctypes
import random
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


def check_declared(kv_cache_config, runs: dict[str, Runs]):
    """Compares the layers' runs with the strides that the engine declares, where it declares any (vLLM 0.29 and newer).

    Raises ValueError, naming the layer.
    """
    layout = getattr(kv_cache_config, "kv_cache_layout", None)
    for declared in kv_cache_config.kv_cache_tensors:
        names = [name for name in getattr(declared, "layers", ()) if name in runs]
        for i, name in enumerate(names):
            found = runs[name]
            if found.block_stride != declared.block_stride:
                raise ValueError(
                    f"{name}: blocks are {found.block_stride} bytes apart in the tensor, "
                    f"{declared.block_stride} in the declared layout {layout}"
                )
            step = declared.layer_stride * (declared.layers.index(name) - declared.layers.index(names[0]))
            if found.addresses[0] - runs[names[0]].addresses[0] != step:
                apart = found.addresses[0] - runs[names[0]].addresses[0]
                raise ValueError(
                    f"{name}: lies {apart} bytes behind {names[0]} in memory, "
                    f"{step} in the declared layout {layout}"
                )


def check_canary(name: str, tensor, runs: Runs, num_blocks: int):
    """Writes patterns through the tensor's own indexing, reads them back through the runs, and restores what was there.

    tensor: a torch tensor in host memory whose first and last block nobody uses meanwhile. Raises ValueError where
    the two disagree.
    """
    import torch

    rows = tensor.shape[0] // num_blocks
    blocks = sorted({0, num_blocks - 1})
    parts = [tensor[block * rows : (block + 1) * rows] for block in blocks]
    kept = [part.clone() for part in parts]
    # The runs of a block hold its entries in the order of their addresses.
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    expected = []
    try:
        for block, part in zip(blocks, parts):
            noise = random.Random(block).randbytes(part.numel() * part.element_size())
            pattern = torch.frombuffer(bytearray(noise), dtype=part.dtype).reshape([part.shape[i] for i in order])
            part.copy_(pattern.permute([order.index(axis) for axis in range(tensor.dim())]))
            expected.append(noise)
        for block, noise in zip(blocks, expected):
            found = b"".join(
                ctypes.string_at(address + block * runs.block_stride, runs.run_bytes) for address in runs.addresses
            )
            if found != noise:
                raise ValueError(
                    f"{name}: what is written to block {block} of a tensor of shape {tuple(tensor.shape)} and strides "
                    f"{tuple(tensor.stride())} is not in the bytes that the strides give"
                )
    finally:
        for part, before in zip(parts, kept):
            part.copy_(before)
