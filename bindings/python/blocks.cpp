// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/blocks.hpp"

#include <optional>
#include <string>
#include <string_view>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "kvbm/base/text.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/runtime/devices.hpp"

#include "bindings/python/dlpack.hpp"
#include "bindings/python/errors.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {

std::shared_ptr<Writer> writer_of(const std::shared_ptr<HeldBlock>& held) {
  auto writer = std::make_shared<Writer>(held);
  if (held->may_be_written) return writer;
  const MutableBlock& guard = std::get<MutableBlock>(*held->guard);
  const Completion fenced = take(held->manager->use([&](BlockManager& manager) {
    return manager.launch({&guard, 1}, {}, [](const KvView&) -> Status { return {}; });
  }));
  (void)wait_in_slices(kNever, [&](TimePoint slice_end) {
    (void)fenced.wait(slice_end);
    return fenced.done();
  });
  check(fenced.status());
  held->may_be_written = true;
  return writer;
}

size_t index_in(Py_ssize_t index, size_t size) {
  const auto length = static_cast<Py_ssize_t>(size);
  if (index < -length || index >= length) {
    throw nb::index_error(format_text("index {} of {}", index, length).c_str());
  }
  return static_cast<size_t>(index < 0 ? index + length : index);
}

namespace {

/// kvbm.Layer: one layer of it.
struct Layer {
  Block block;
  uint16_t layer = 0;
};

std::string_view state_of(const Block& block) {
  if (!block.handle->held) return "released";
  return block.handle->held->is_mutable ? "mutable" : "immutable";
}

/// Axes [layers, outer, tokens, heads, head size] of one block, or of one layer without the first.
HostTensor tensor_of(const Block& block, std::optional<uint16_t> layer) {
  const std::shared_ptr<HeldBlock> kept = block.held();
  const HeldBlock& held = *kept;
  const LayoutConfig& shape = block.layout();
  const PhysicalLayout& where = held.manager->fixed().gpu_layout(RankId(block.rank), held.group);
  const LayerId first(layer.value_or(0));
  HostTensor tensor;
  tensor.data = where.region(held.block, first, 0).base();
  tensor.dtype = held.manager->dtype();
  const int64_t heads = shape.num_heads.value_or(1);
  const int64_t head_dim = shape.inner_dim / heads;
  const auto stride_to = [&](LayerId to, uint32_t outer) -> int64_t {
    return (where.region(held.block, to, outer).base() - tensor.data) / shape.dtype_width_bytes;
  };
  // An axis of one entry has the stride that it would have with more.
  const int64_t chunk = shape.page_size * heads * head_dim;
  const int64_t outer_stride = shape.outer_dim > 1 ? stride_to(first, 1) : chunk;
  tensor.shape = {shape.outer_dim, shape.page_size, heads, head_dim};
  tensor.strides = {outer_stride, heads * head_dim, head_dim, 1};
  if (!layer) {
    const int64_t layer_stride =
        shape.num_layers > 1 ? stride_to(LayerId(1), 0) : chunk * shape.outer_dim;
    tensor.shape.insert(tensor.shape.begin(), shape.num_layers);
    tensor.strides.insert(tensor.strides.begin(), layer_stride);
  }
  return tensor;
}

/// A tensor's hold on its block: the memory, and the right to write if it may.
struct TensorHold {
  Alive alive{live_objects().tensors};
  std::shared_ptr<HeldBlock> held;
  std::shared_ptr<Writer> writer;
  std::vector<std::byte> copy;
};

HostTensor copied(const HostTensor& from, TensorHold& hold) {
  HostTensor copy = from;
  int64_t elements = 1;
  for (size_t axis = copy.shape.size(); axis-- > 0;) {
    // What a tensor covers of a block is contiguous.
    KVBM_CONTRACT(copy.shape[axis] == 1 || copy.strides[axis] == elements,
                  "a block is not contiguous");
    elements *= copy.shape[axis];
  }
  hold.copy.assign(from.data, from.data + elements * (from.dtype.bits / 8));
  copy.data = hold.copy.data();
  copy.is_copy = true;
  return copy;
}

[[noreturn]] void raise_buffer_error(const char* message) {
  PyErr_SetString(PyExc_BufferError, message);
  throw nb::python_error();
}

/// DLPack's name of host memory. Refuses blocks that are elsewhere.
std::pair<int, int> dlpack_device(const Block& block) {
  const std::string& device = block.held()->manager->fixed().config().device;
  if (gpu_ordinal(device)) {
    raise_buffer_error(
        format_text("the block is in the memory of device = {}, which is not given out as a "
                    "tensor: use store_kv() and load_kv()",
                    device)
            .c_str());
  }
  return {1, 0};
}

nb::object export_tensor(const Block& block, std::optional<uint16_t> layer, nb::handle stream,
                         std::optional<nb::tuple> max_version,
                         std::optional<std::pair<int, int>> dl_device, std::optional<bool> copy) {
  (void)dlpack_device(block);
  if (!stream.is_none()) raise_buffer_error("host memory has no stream: stream must be None");
  if (dl_device && *dl_device != std::pair(1, 0)) {
    raise_buffer_error("the block is in host memory: dl_device must be (1, 0) or None");
  }
  // First: a number's __index__ may do anything, with the block too.
  const DlpackVersion version = max_version && nb::cast<int>((*max_version)[0]) >= 1
                                    ? DlpackVersion::kOne
                                    : DlpackVersion::kUnversioned;
  const std::shared_ptr<HeldBlock> held = block.held();
  held->manager->check_process();
  auto hold = std::make_shared<TensorHold>();
  hold->held = held;
  HostTensor tensor = tensor_of(block, layer);
  // A registered block is copied unless that is forbidden: not every consumer heeds the read-only
  // flag, and a write would be served to others.
  if (copy.value_or(!held->is_mutable)) {
    tensor = copied(tensor, *hold);
    hold->held.reset();
  } else if (held->is_mutable) {
    hold->writer = writer_of(held);
  } else if (version == DlpackVersion::kUnversioned) {
    raise_buffer_error(
        "a registered block is read-only, which an unversioned DLPack tensor cannot say: ask with "
        "max_version=(1, 0), or take a copy");
  } else {
    tensor.read_only = true;
  }
  tensor.owner = std::move(hold);
  return to_dlpack(std::move(tensor), version);
}

Layer layer_at(const Block& block, Py_ssize_t index) {
  return {block, static_cast<uint16_t>(index_in(index, block.layout().num_layers))};
}

std::vector<Layer> layers_of(const Block& block) {
  std::vector<Layer> layers;
  for (uint32_t i = 0; i < block.layout().num_layers; ++i) {
    layers.push_back({block, static_cast<uint16_t>(i)});
  }
  return layers;
}

nb::tuple shape_tuple(const std::vector<int64_t>& shape) {
  nb::list axes;
  for (const int64_t axis : shape) axes.append(axis);
  return nb::tuple(axes);
}

/// Deepest first, as eviction wants them.
void release(Blocks& list) {
  for (auto it = list.blocks.rbegin(); it != list.blocks.rend(); ++it) it->handle->held.reset();
}

}  // namespace

void bind_blocks(nb::module_& module) {
  nb::class_<Layer>(module, "Layer",
                    "One layer of a block on one rank. As a tensor: [outer, block_size, num_heads, "
                    "head_dim], in host memory, contiguous; outer is 2 for keys and values.")
      .def_prop_ro("index", [](const Layer& self) { return self.layer; })
      .def_prop_ro(
          "shape",
          [](const Layer& self) { return shape_tuple(tensor_of(self.block, self.layer).shape); },
          nb::sig("def shape(self) -> tuple[int, int, int, int]"),
          "(outer, block_size, num_heads, head_dim)")
      .def(
          "__dlpack__",
          [](const Layer& self, nb::object stream, std::optional<nb::tuple> max_version,
             std::optional<std::pair<int, int>> dl_device, std::optional<bool> copy) {
            return export_tensor(self.block, self.layer, stream, std::move(max_version), dl_device,
                                 copy);
          },
          nb::kw_only(), "stream"_a = nb::none(), "max_version"_a = nb::none(),
          "dl_device"_a = nb::none(), "copy"_a = nb::none(), "As Block.__dlpack__.")
      .def("__dlpack_device__", [](const Layer& self) { return dlpack_device(self.block); });

  nb::class_<Block>(
      module, "Block",
      "A block of GPU memory (G1) that is held: its layers by index, and as a tensor.\n\n"
      "The tensor is the block's memory on one rank: [num_layers, outer, block_size, num_heads, "
      "head_dim], contiguous in this order, of the manager's dtype. A tensor keeps the block, "
      "whatever becomes of this object. What a registered block holds does not change: its tensor "
      "is "
      "a copy, or read-only.")
      .def_prop_ro(
          "block_id", [](const Block& self) { return self.held()->block.value(); },
          "Its slot in G1.")
      .def_prop_ro(
          "group", [](const Block& self) { return self.held()->group; },
          "Its layer group, by index.")
      .def_prop_ro("rank", [](const Block& self) { return self.rank; })
      .def_prop_ro("state", &state_of, "mutable, immutable or released")
      .def_prop_ro(
          "shape",
          [](const Block& self) { return shape_tuple(tensor_of(self, std::nullopt).shape); },
          nb::sig("def shape(self) -> tuple[int, int, int, int, int]"),
          "(num_layers, outer, block_size, num_heads, head_dim)")
      .def(
          "on_rank",
          [](const Block& self, uint16_t rank) {
            if (rank >= self.held()->manager->fixed().config().num_ranks) {
              raise(Error(ErrorCode::kInvalidArgument,
                          format_text("rank {} of {}", rank,
                                      self.held()->manager->fixed().config().num_ranks)));
            }
            return Block{self.handle, rank};
          },
          "rank"_a, "The same block, seen on another rank.")
      .def(
          "release", [](Block& self) { self.handle->held.reset(); },
          "Lets go of the block, in every object of it; tensors keep it. May be called again.")
      .def("__len__", [](const Block& self) { return self.layout().num_layers; })
      .def("__getitem__", &layer_at, "layer"_a)
      .def(
          "__iter__", [](const Block& self) { return nb::iter(nb::cast(layers_of(self))); },
          nb::sig("def __iter__(self) -> collections.abc.Iterator[Layer]"))
      .def("to_list", &layers_of, "Its layers.")
      .def(
          "__dlpack__",
          [](const Block& self, nb::object stream, std::optional<nb::tuple> max_version,
             std::optional<std::pair<int, int>> dl_device, std::optional<bool> copy) {
            return export_tensor(self, std::nullopt, stream, std::move(max_version), dl_device,
                                 copy);
          },
          nb::kw_only(), "stream"_a = nb::none(), "max_version"_a = nb::none(),
          "dl_device"_a = nb::none(), "copy"_a = nb::none(),
          "A mutable block: its memory, without a copy. A registered block: a copy, or with "
          "copy=False its memory, flagged as read-only, which NumPy heeds and torch does not. "
          "Waits "
          "until copies have ended that still read what the slot held before.\n\n"
          "Raises BufferError for another device, a stream, or copy=False from a consumer that "
          "asks without max_version.")
      .def(
          "__dlpack_device__", [](const Block& self) { return dlpack_device(self); },
          "(1, 0): host memory.");

  nb::class_<Blocks>(module, "BlockList", "Blocks of one layer group, in the order of a prefix.")
      .def(
          "__init__",
          [](Blocks* self, const std::vector<Block>& blocks) { new (self) Blocks{blocks}; },
          "blocks"_a)
      .def("__len__", [](const Blocks& self) { return self.blocks.size(); })
      .def(
          "__getitem__",
          [](const Blocks& self, Py_ssize_t index) {
            return self.blocks[index_in(index, self.blocks.size())];
          },
          "index"_a)
      .def(
          "__getitem__",
          [](const Blocks& self, nb::slice slice) {
            const auto [start, stop, step, length] = slice.compute(self.blocks.size());
            Blocks part;
            for (size_t i = 0; i < length; ++i) {
              part.blocks.push_back(
                  self.blocks[static_cast<size_t>(start + static_cast<Py_ssize_t>(i) * step)]);
            }
            return part;
          },
          "slice"_a)
      .def(
          "__iter__", [](const Blocks& self) { return nb::iter(nb::cast(self.blocks)); },
          nb::sig("def __iter__(self) -> collections.abc.Iterator[Block]"))
      .def(
          "to_list", [](const Blocks& self) { return self.blocks; }, "The blocks.")
      .def("release", &release, "Lets go of all of them, deepest first. May be called again.")
      .def_prop_ro(
          "block_ids",
          [](const Blocks& self) {
            std::vector<uint32_t> ids;
            for (const Block& block : self.blocks) ids.push_back(block.held()->block.value());
            return ids;
          },
          "Their slots in G1.");
}

}  // namespace kvbm
