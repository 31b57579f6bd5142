// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/layout.hpp"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "kvbm/base/text.hpp"
#include "kvbm/layout/layout_config.hpp"

#include "bindings/python/dlpack.hpp"
#include "bindings/python/errors.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {
namespace {

using Tensor = nb::ndarray<>;

[[noreturn]] void raise_invalid(std::string message) {
  raise(Error(ErrorCode::kInvalidArgument, std::move(message)));
}

[[noreturn]] void raise_buffer_error(const char* message) {
  PyErr_SetString(PyExc_BufferError, message);
  throw nb::python_error();
}

/// Those that are made of memory with an address and of nothing else.
LayoutKind kind_named(const std::string& name) {
  constexpr LayoutKind kKinds[] = {LayoutKind::kFullyContiguous,
                                   LayoutKind::kLayerSeparateBlockFirst,
                                   LayoutKind::kLayerSeparateBlockSecond};
  std::string known;
  for (const LayoutKind kind : kKinds) {
    if (to_string(kind) == name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(to_string(kind));
  }
  raise_invalid(format_text("there is no kind of layout \"{}\": allowed are {}", name, known));
}

Result<PhysicalLayout> layout_over(const LayoutConfig& config, LayoutKind kind,
                                   const std::vector<MemoryRegion>& regions) {
  switch (kind) {
    case LayoutKind::kFullyContiguous:
      return PhysicalLayout::fully_contiguous(config, regions.front());
    case LayoutKind::kLayerSeparateBlockFirst:
      return PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsFirst, regions);
    default:
      return PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsSecond, regions);
  }
}

Layout allocate(const LayoutConfig& config, const std::string& kind_name) {
  const LayoutKind kind = kind_named(kind_name);
  const MemoryNeed need = take(required_memory(config, kind));
  std::vector<SystemMemory> memory;
  std::vector<MemoryRegion> regions;
  for (size_t i = 0; i < need.num_regions; ++i) {
    memory.push_back(take(
        SystemMemory::create({.size_bytes = need.region_bytes, .alignment = config.alignment})));
    regions.push_back(memory.back().region());
  }
  PhysicalLayout layout = take(layout_over(config, kind, regions));
  return {std::make_shared<const HeldLayout>(std::move(layout), std::move(memory),
                                             std::vector<Tensor>())};
}

// --- tensors of others
// ----------------------------------------------------------------------------

Tensor import_tensor(const std::string& name, nb::handle object) {
  Tensor tensor;
  if (!nb::try_cast(object, tensor) || !tensor.is_valid()) {
    raise_invalid(
        format_text("{}: a {} is no writable tensor that NumPy, torch or others give by DLPack",
                    name, nb::type_name(object.type()).c_str()));
  }
  if (tensor.device_type() != nb::device::cpu::value) {
    raise_invalid(
        format_text("{}: it is on device {} of DLPack's type {}, and allowed is host "
                    "memory",
                    name, tensor.device_id(), tensor.device_type()));
  }
  return tensor;
}

/// Axis `axis` of a tensor, in bytes. An axis of one entry has no stride that matters.
uint64_t stride_of(const Tensor& tensor, size_t axis) {
  if (tensor.shape(axis) == 1) return 0;
  return static_cast<uint64_t>(tensor.stride(axis)) * tensor.itemsize();
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (size_t axis = 0; axis < tensor.ndim(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(tensor.shape(axis));
  }
  return text + "]";
}

/// The leading axes of each tensor of a kind, by name; page_size and the elements follow.
struct Axis {
  const char* name;
  uint64_t extent;
};
std::vector<Axis> leading_axes(const LayoutConfig& config, LayoutKind kind) {
  const Axis blocks{"num_blocks", config.num_blocks};
  const Axis outer{"outer_dim", config.outer_dim};
  switch (kind) {
    case LayoutKind::kFullyContiguous:
      return {blocks, {"num_layers", config.num_layers}, outer};
    case LayoutKind::kLayerSeparateBlockFirst:
      return {blocks, outer};
    default:
      return {outer, blocks};
  }
}

/// Requires: axes as leading_axes says.
void check_shape(const std::string& name, const Tensor& tensor, const LayoutConfig& config,
                 const std::vector<Axis>& axes) {
  if (tensor.itemsize() != config.dtype_width_bytes) {
    raise_invalid(format_text("{}: its elements have {} bytes, and dtype_width_bytes is {}", name,
                              tensor.itemsize(), config.dtype_width_bytes));
  }
  bool fits = tensor.ndim() > axes.size() + 1;
  std::string expected;
  for (size_t axis = 0; axis < axes.size(); ++axis) {
    fits = fits && tensor.shape(axis) == axes[axis].extent;
    expected += format_text("{} {}, ", axes[axis].name, axes[axis].extent);
  }
  fits = fits && tensor.shape(axes.size()) == config.page_size;
  uint64_t inner = 1;
  for (size_t axis = axes.size() + 1; axis < tensor.ndim(); ++axis) inner *= tensor.shape(axis);
  if (!fits || inner != config.inner_dim) {
    raise_invalid(
        format_text("{}: its shape is {}, and allowed is [{}page_size {}, then axes of "
                    "{} elements together]",
                    name, shape_text(tensor), expected, config.page_size, config.inner_dim));
  }
  uint64_t contiguous = tensor.itemsize();
  for (size_t axis = tensor.ndim(); axis-- > axes.size();) {
    if (tensor.shape(axis) > 1 && stride_of(tensor, axis) != contiguous) {
      raise_invalid(format_text("{}: page_size and the axes behind it are not contiguous", name));
    }
    contiguous *= tensor.shape(axis);
  }
  for (size_t axis = 0; axis < axes.size(); ++axis) {
    if (tensor.shape(axis) > 1 && tensor.stride(axis) < 0) {
      raise_invalid(format_text("{}: the stride of {} is negative", name, axes[axis].name));
    }
  }
}

PageMap page_map_of(const std::string& name, const Tensor& tensor, const LayoutConfig& config,
                    const std::vector<Axis>& axes, LayerRange layers) {
  PageMapSpec spec;
  spec.num_blocks = config.num_blocks;
  spec.layers = layers;
  spec.outer_dim = config.outer_dim;
  spec.run_bytes = config.chunk_bytes();
  uint64_t size_bytes = spec.run_bytes;
  for (size_t axis = 0; axis < axes.size(); ++axis) {
    const std::string_view of = axes[axis].name;
    const uint64_t stride = stride_of(tensor, axis);
    if (of == "num_blocks") spec.block_stride = stride;
    if (of == "num_layers") spec.layer_stride = stride;
    if (of == "outer_dim") spec.outer_stride = stride;
    size_bytes += (axes[axis].extent - 1) * stride;
  }
  spec.region = MemoryRegion::of_bytes(StorageKind::kSystem, static_cast<std::byte*>(tensor.data()),
                                       size_bytes);
  Result<PageMap> map = PageMap::create(spec);
  if (!map) raise(std::move(map).error().with_context(name));
  return *std::move(map);
}

Layout from_tensors(const LayoutConfig& config, nb::sequence objects,
                    const std::string& kind_name) {
  const LayoutKind kind = kind_named(kind_name);
  const bool is_one = kind == LayoutKind::kFullyContiguous;
  const size_t expected = is_one ? 1 : config.num_layers;
  const size_t found = nb::len(objects);
  if (found != expected) {
    raise_invalid(format_text("{} tensors, and {} takes {}", found, kind_name, expected));
  }
  const std::vector<Axis> axes = leading_axes(config, kind);
  std::vector<Tensor> tensors;
  std::vector<PageMap> maps;
  for (nb::handle object : objects) {
    const std::string name = format_text("tensors[{}]", tensors.size());
    const LayerId first(static_cast<uint16_t>(tensors.size()));
    tensors.push_back(import_tensor(name, object));
    check_shape(name, tensors.back(), config, axes);
    maps.push_back(page_map_of(name, tensors.back(), config, axes,
                               is_one ? config.all_layers() : LayerRange{first, 1}));
  }
  PhysicalLayout layout = take(PhysicalLayout::from_page_maps(config, std::move(maps)));
  return {std::make_shared<const HeldLayout>(std::move(layout), std::vector<SystemMemory>(),
                                             std::move(tensors))};
}

// --- a layer as a tensor
// --------------------------------------------------------------------------

/// kvbm.LayoutLayer
struct LayoutLayer {
  std::shared_ptr<const HeldLayout> held;
  uint16_t layer = 0;
};

/// A tensor's hold on the memory.
struct LayerHold {
  Alive alive{live_objects().tensors};
  std::shared_ptr<const HeldLayout> held;
};

HostTensor tensor_of(const LayoutLayer& self) {
  const PhysicalLayout& layout = self.held->layout;
  const LayoutConfig& config = layout.config();
  const PageMap& map = layout.page_maps()[layout.page_map_of(LayerId(self.layer))];
  const int64_t width = config.dtype_width_bytes;
  const int64_t chunk = int64_t{config.page_size} * config.inner_dim;
  const auto elements = [width](uint64_t bytes) { return static_cast<int64_t>(bytes) / width; };
  HostTensor tensor;
  tensor.data = layout.region(BlockId(0), LayerId(self.layer), 0).base();
  tensor.dtype = {static_cast<uint8_t>(nb::dlpack::dtype_code::UInt),
                  static_cast<uint8_t>(width * 8), 1};
  tensor.shape = {config.num_blocks, config.outer_dim, config.page_size, config.inner_dim};
  // An axis of one entry has the stride that it would have if it were contiguous.
  tensor.strides = {config.num_blocks > 1 ? elements(map.block_stride()) : chunk * config.outer_dim,
                    config.outer_dim > 1 ? elements(map.strides().outer) : chunk, config.inner_dim,
                    1};
  return tensor;
}

nb::object export_layer(const LayoutLayer& self, nb::object stream,
                        std::optional<nb::tuple> max_version,
                        std::optional<std::pair<int, int>> dl_device, std::optional<bool> copy) {
  if (!stream.is_none()) raise_buffer_error("host memory has no stream: stream must be None");
  if (dl_device && *dl_device != std::pair(1, 0)) {
    raise_buffer_error("the layout is in host memory: dl_device must be (1, 0) or None");
  }
  if (copy.value_or(false)) {
    raise_buffer_error("the tensor is the layout's memory: copy it where it has come to");
  }
  HostTensor tensor = tensor_of(self);
  auto hold = std::make_shared<LayerHold>();
  hold->held = self.held;
  tensor.owner = std::move(hold);
  return to_dlpack(std::move(tensor), max_version && nb::cast<int>((*max_version)[0]) >= 1
                                          ? DlpackVersion::kOne
                                          : DlpackVersion::kUnversioned);
}

void construct_config(LayoutConfig* self, uint32_t num_blocks, uint32_t num_layers,
                      uint32_t outer_dim, uint32_t page_size, uint32_t inner_dim,
                      uint32_t dtype_width_bytes, std::optional<uint32_t> num_heads,
                      uint64_t alignment) {
  const LayoutConfig config{.num_blocks = num_blocks,
                            .num_layers = num_layers,
                            .outer_dim = outer_dim,
                            .page_size = page_size,
                            .inner_dim = inner_dim,
                            .dtype_width_bytes = dtype_width_bytes,
                            .num_heads = num_heads,
                            .alignment = alignment};
  check(config.validate());
  new (self) LayoutConfig(config);
}

std::string text_of(const LayoutConfig& config) {
  return format_text(
      "LayoutConfig(num_blocks={}, num_layers={}, outer_dim={}, page_size={}, inner_dim={}, "
      "dtype_width_bytes={}, num_heads={}, alignment={})",
      config.num_blocks, config.num_layers, config.outer_dim, config.page_size, config.inner_dim,
      config.dtype_width_bytes, config.num_heads ? std::to_string(*config.num_heads) : "None",
      config.alignment);
}

void bind_config(nb::module_& module) {
  nb::class_<LayoutConfig>(
      module, "LayoutConfig",
      "The shape of the blocks of one layer group: a block is [num_layers, outer_dim, page_size, "
      "inner_dim] elements. Does not change.")
      .def("__init__", &construct_config, "num_blocks"_a, "num_layers"_a, "outer_dim"_a,
           "page_size"_a, "inner_dim"_a, "dtype_width_bytes"_a = 2, "num_heads"_a = nb::none(),
           "alignment"_a = 1, "Raises kvbm.InvalidArgumentError, naming what is wrong.")
      .def_ro("num_blocks", &LayoutConfig::num_blocks)
      .def_ro("num_layers", &LayoutConfig::num_layers)
      .def_ro("outer_dim", &LayoutConfig::outer_dim, "2: keys and values; 1: one tensor.")
      .def_ro("page_size", &LayoutConfig::page_size, "Tokens of a block.")
      .def_ro("inner_dim", &LayoutConfig::inner_dim,
              "Elements of a token in one layer and one of outer_dim: heads times head size, where "
              "there are heads.")
      .def_ro("dtype_width_bytes", &LayoutConfig::dtype_width_bytes,
              "Bytes of an element: 1, 2, 4 or 8.")
      .def_ro("num_heads", &LayoutConfig::num_heads,
              "Divides inner_dim; None: unknown. Two layouts that both know it have to agree.")
      .def_ro(
          "alignment", &LayoutConfig::alignment,
          "Bytes, a power of two: each part of a block that is stored apart starts at a multiple "
          "of it.")
      .def_prop_ro("chunk_bytes", &LayoutConfig::chunk_bytes, "Of [page_size, inner_dim].")
      .def_prop_ro("layer_bytes", &LayoutConfig::layer_bytes,
                   "Of [outer_dim, page_size, inner_dim].")
      .def_prop_ro("block_bytes", &LayoutConfig::block_bytes, "Of a block, without padding.")
      .def(
          "__eq__",
          [](const LayoutConfig& self, nb::handle other) {
            return nb::isinstance<LayoutConfig>(other) && self == nb::cast<LayoutConfig&>(other);
          },
          "other"_a.none(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__",
           [](const LayoutConfig& self) { return std::hash<std::string>()(text_of(self)); })
      .def("__repr__", &text_of);
}

}  // namespace

void bind_layout(nb::module_& module) {
  bind_config(module);

  nb::class_<LayoutLayer>(
      module, "LayoutLayer",
      "One layer of a layout. As a tensor: [num_blocks, outer_dim, page_size, inner_dim] unsigned "
      "integers of dtype_width_bytes, in host memory, with the layout's strides; it is the memory, "
      "and keeps it.")
      .def_prop_ro("index", [](const LayoutLayer& self) { return self.layer; })
      .def("__dlpack__", &export_layer, nb::kw_only(), "stream"_a = nb::none(),
           "max_version"_a = nb::none(), "dl_device"_a = nb::none(), "copy"_a = nb::none(),
           "Without a copy. Raises BufferError for another device, a stream, or copy=True.")
      .def(
          "__dlpack_device__", [](const LayoutLayer& /*self*/) { return std::pair(1, 0); },
          "(1, 0): host memory.");

  nb::class_<Layout>(
      module, "PhysicalLayout",
      "Where every part of every block of one place is: layout[i] is a layer, as a tensor. It owns "
      "its memory or keeps the tensors that it lies over; so does whatever was made from it.")
      .def_static("allocate", &allocate, "config"_a, "kind"_a = "fully_contiguous",
                  "Over new host memory, which reads as zero. kind:\n\n"
                  "- fully_contiguous: block after block;\n"
                  "- layer_separate_block_first: each layer apart, block after block;\n"
                  "- layer_separate_block_second: each layer apart, all keys before all values.\n\n"
                  "Raises kvbm.InvalidArgumentError, kvbm.ExhaustedError.")
      .def_static(
          "from_tensors", &from_tensors, "config"_a, "tensors"_a, "kind"_a,
          nb::sig(
              "def from_tensors(config: LayoutConfig, tensors: collections.abc.Sequence[object], "
              "kind: str) -> PhysicalLayout"),
          "Over writable tensors in host memory that come by DLPack, without a copy, of elements "
          "of "
          "dtype_width_bytes. By kind:\n\n"
          "- fully_contiguous: one, [num_blocks, num_layers, outer_dim, page_size, ...];\n"
          "- layer_separate_block_first: one a layer, [num_blocks, outer_dim, page_size, ...];\n"
          "- layer_separate_block_second: one a layer, [outer_dim, num_blocks, page_size, ...].\n\n"
          "What follows page_size has inner_dim elements together and is contiguous with it; axes "
          "before it may have any stride. Raises kvbm.InvalidArgumentError, naming the tensor.")
      .def_prop_ro("config", [](const Layout& self) { return self.held->layout.config(); })
      .def_prop_ro(
          "kind",
          [](const Layout& self) { return std::string(to_string(self.held->layout.kind())); },
          "That of allocate, or page_maps over tensors.")
      .def_prop_ro("storage_kind",
                   [](const Layout& self) {
                     return std::string(to_string(self.held->layout.storage_kind()));
                   })
      .def("__len__", [](const Layout& self) { return self.held->layout.config().num_layers; })
      .def(
          "__getitem__",
          [](const Layout& self, Py_ssize_t index) {
            const Py_ssize_t length = self.held->layout.config().num_layers;
            if (index < -length || index >= length) {
              throw nb::index_error(format_text("layer {} of {}", index, length).c_str());
            }
            return LayoutLayer{self.held,
                               static_cast<uint16_t>(index < 0 ? index + length : index)};
          },
          "layer"_a);
}

}  // namespace kvbm
