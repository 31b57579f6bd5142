# SPDX-License-Identifier: Apache-2.0
"""An engine's KV tensors as KvbmWorker.create takes them."""

import math

from kvbm.errors import InvalidArgumentError
from kvbm.vllm_integration.layout import runs_of


class _Array:
    """A NumPy array in torch's words."""

    def __init__(self, array):
        if not array.flags.writeable:
            raise ValueError("the array is read-only")
        if any(stride % array.itemsize for stride in array.strides):
            raise ValueError(f"strides of {array.strides} bytes are no elements of {array.itemsize} bytes")
        self.shape = array.shape
        self._array = array

    def stride(self):
        return tuple(stride // self._array.itemsize for stride in self._array.strides)

    def element_size(self):
        return self._array.itemsize

    def data_ptr(self):
        return self._array.__array_interface__["data"][0]


def groups_of(tensors, num_blocks, page_size, dtype_width_bytes):
    """[(run_bytes, [(address, block_stride), ...])] of one group: a tensor a layer, each [num_blocks, ...]."""
    layers = []
    for i, tensor in enumerate(tensors):
        name = f"tensors[{i}]"
        try:
            layers.append(_layer_of(name, tensor, num_blocks, page_size, dtype_width_bytes))
        except ValueError as error:
            said = str(error)
            raise InvalidArgumentError(said if said.startswith(name) else f"{name}: {said}") from None
    if len({layer.run_bytes for layer in layers}) > 1:
        raise InvalidArgumentError("the tensors of the layers differ in how they hold a block")
    return [(layers[0].run_bytes if layers else 0, [(at, one.block_stride) for one in layers for at in one.addresses])]


def _layer_of(name, tensor, num_blocks, page_size, dtype_width_bytes):
    if not hasattr(tensor, "data_ptr"):
        if not hasattr(tensor, "__array_interface__"):
            raise ValueError(f"a {type(tensor).__name__} is no tensor of torch or NumPy")
        tensor = _Array(tensor)
    elif tensor.device.type != "cpu":
        raise ValueError(f"it is on {tensor.device}, and allowed is host memory")
    width = tensor.element_size()
    if dtype_width_bytes not in (None, width):
        raise ValueError(f"its elements have {width} bytes, and dtype_width_bytes is {dtype_width_bytes}")
    shape = tuple(tensor.shape)
    if not shape or num_blocks < 1 or shape[0] != num_blocks:
        raise ValueError(f"its shape is {shape}, and allowed are {num_blocks} blocks in front")
    if page_size < 1 or math.prod(shape[1:]) % page_size:
        raise ValueError(f"a block of shape {shape[1:]} does not hold {page_size} tokens")
    return runs_of(name, tensor, num_blocks, math.prod(shape[1:]) * width)
