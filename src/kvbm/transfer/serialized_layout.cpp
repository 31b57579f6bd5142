// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/serialized_layout.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <string>
#include <string_view>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

// The header: magic, checksum of all that follows it, version, body length.
constexpr std::string_view kMagic = "KVBL";
constexpr size_t kChecksumOffset = 4;
constexpr size_t kCheckedOffset = 12;
constexpr size_t kLengthOffset = 14;
constexpr size_t kHeaderBytes = 18;
constexpr uint64_t kMaxBodyBytes = std::numeric_limits<uint32_t>::max();

// The fewest bytes that a structure takes.
constexpr size_t kMinLayoutBytes = 60;
constexpr size_t kMinMapGroupBytes = 74;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, "layout metadata: " + std::move(message));
}

tl::unexpected<Error> corrupt(std::string message) {
  return make_error(ErrorCode::kCorrupt, "layout metadata: " + std::move(message));
}

/// A name for each enumerator up to the last is all that the wire has.
template <class E>
E get_enum(ByteReader& in, E last, std::string_view what) {
  const uint8_t value = in.u8();
  if (value > static_cast<uint8_t>(last)) {
    in.fail(format_text("{} is no {}", value, what));
    return E{};
  }
  return static_cast<E>(value);
}

void put_format(ByteWriter& out, const KvBlockLayout& format) {
  out.u8(static_cast<uint8_t>(format.name()));
  if (format.name() != KvBlockLayout::Name::kCustom) return;
  for (const BlockAxis axis : format.order()) out.u8(static_cast<uint8_t>(axis));
}

KvBlockLayout get_format(ByteReader& in) {
  switch (get_enum(in, KvBlockLayout::Name::kCustom, "format")) {
    case KvBlockLayout::Name::kUnknown:
      return KvBlockLayout::kUnknown;
    case KvBlockLayout::Name::kUniversalTP:
      return KvBlockLayout::kUniversalTP;
    case KvBlockLayout::Name::kUniversalPP:
      return KvBlockLayout::kUniversalPP;
    case KvBlockLayout::Name::kOperationalHND:
      return KvBlockLayout::kOperationalHND;
    case KvBlockLayout::Name::kOperationalNHD:
      return KvBlockLayout::kOperationalNHD;
    case KvBlockLayout::Name::kCustom:
      break;
  }
  BlockAxisOrder order{};
  for (BlockAxis& axis : order) axis = get_enum(in, BlockAxis::kPage, "axis");
  if (!in.ok()) return {};
  const Result<KvBlockLayout> format = KvBlockLayout::custom(order);
  if (!format) {
    in.fail(format.error().message());
    return {};
  }
  return *format;
}

void put_config(ByteWriter& out, const LayoutConfig& config) {
  out.u32(config.num_blocks);
  out.u32(config.num_layers);
  out.u32(config.outer_dim);
  out.u32(config.page_size);
  out.u32(config.inner_dim);
  out.u32(config.dtype_width_bytes);
  out.u32(config.num_heads.value_or(0));
  out.u64(config.alignment);
}

LayoutConfig get_config(ByteReader& in) {
  LayoutConfig config;
  config.num_blocks = in.u32();
  config.num_layers = in.u32();
  config.outer_dim = in.u32();
  config.page_size = in.u32();
  config.inner_dim = in.u32();
  config.dtype_width_bytes = in.u32();
  if (const uint32_t num_heads = in.u32(); num_heads != 0) config.num_heads = num_heads;
  config.alignment = in.u64();
  return config;
}

/// Whether `next` differs from `map` in its address alone, and its layers follow.
bool continues(const PageMapDescriptor& map, const PageMapDescriptor& next) {
  PageMapDescriptor expected = map;
  expected.address = next.address;
  expected.layers.first = next.layers.first;
  return expected == next && next.layers.begin() == map.layers.end();
}

/// Maps that differ in their addresses alone share everything else. Requires: at least one.
void put_map_group(ByteWriter& out, std::span<const PageMapDescriptor> maps) {
  const PageMapDescriptor& first = maps.front();
  out.u16(first.layers.first.value());
  out.u32(first.layers.count);
  out.u64(first.size_bytes);
  out.u64(first.base_offset);
  out.u64(first.block_stride);
  out.u64(first.strides.layer);
  out.u64(first.strides.outer);
  out.u64(first.strides.head);
  out.u64(first.strides.page);
  out.count(maps.size());
  for (const PageMapDescriptor& map : maps) out.u64(map.address);
}

void get_map_group(ByteReader& in, std::vector<PageMapDescriptor>& maps) {
  PageMapDescriptor map;
  uint64_t layer = in.u16();
  map.layers.count = in.u32();
  map.size_bytes = in.u64();
  map.base_offset = in.u64();
  map.block_stride = in.u64();
  map.strides.layer = in.u64();
  map.strides.outer = in.u64();
  map.strides.head = in.u64();
  map.strides.page = in.u64();
  for (const uint64_t address : in.u64_array()) {
    if (layer > std::numeric_limits<uint16_t>::max()) {
      in.fail(format_text("a page map begins at layer {}", layer));
      return;
    }
    map.layers.first = LayerId(static_cast<uint16_t>(layer));
    map.address = address;
    maps.push_back(map);
    layer += map.layers.count;
  }
}

void put_maps(ByteWriter& out, std::span<const PageMapDescriptor> maps) {
  std::vector<std::span<const PageMapDescriptor>> groups;
  size_t begin = 0;
  for (size_t i = 1; i <= maps.size(); ++i) {
    if (i < maps.size() && continues(maps[i - 1], maps[i])) continue;
    groups.push_back(maps.subspan(begin, i - begin));
    begin = i;
  }
  out.count(groups.size());
  for (const auto group : groups) put_map_group(out, group);
}

void put_layout(ByteWriter& out, const LogicalLayoutDescriptor& logical) {
  const LayoutDescriptor& layout = logical.layout;
  out.u16(logical.handle.layout);
  out.u8(static_cast<uint8_t>(logical.tier));
  out.u16(logical.group.value());
  out.u8(static_cast<uint8_t>(layout.kind));
  out.u8(static_cast<uint8_t>(layout.storage));
  put_format(out, layout.format);
  put_config(out, layout.config);
  out.string(layout.registration.agent_name);
  out.u64(layout.registration.device_id);
  if (layout.slots) {
    out.u64(layout.slots->header_bytes);
    out.u64(layout.slots->slot_bytes);
  }
  put_maps(out, layout.page_maps);
}

MemoryType memory_type_of(StorageKind storage) {
  switch (storage) {
    case StorageKind::kDevice:
      return MemoryType::kVram;
    case StorageKind::kFile:
      return MemoryType::kFile;
    case StorageKind::kSystem:
    case StorageKind::kPinned:
    case StorageKind::kRemote:  // not in the tables
      break;
  }
  return MemoryType::kDram;
}

LogicalLayoutDescriptor get_layout(ByteReader& in, WorkerId worker) {
  LogicalLayoutDescriptor logical;
  LayoutDescriptor& layout = logical.layout;
  logical.handle = {worker, in.u16()};
  logical.tier = get_enum(in, TierId::kG4, "tier");
  logical.group = GroupId(in.u16());
  layout.kind = get_enum(in, LayoutKind::kPageMaps, "kind of layout");
  layout.storage = get_enum(in, StorageKind::kFile, "kind of storage");
  layout.format = get_format(in);
  layout.config = get_config(in);
  layout.registration.agent_name = in.string();
  layout.registration.memory_type = memory_type_of(layout.storage);
  layout.registration.device_id = in.u64();
  if (layout.kind == LayoutKind::kFileSlots) {
    layout.slots = SlotGeometry{.header_bytes = in.u64(),
                                .payload_bytes = layout.config.block_bytes(),
                                .slot_bytes = in.u64()};
  }
  const size_t num_groups = in.count(kMinMapGroupBytes);
  for (size_t i = 0; i < num_groups && in.ok(); ++i) get_map_group(in, layout.page_maps);
  return logical;
}

void put_body(ByteWriter& out, const LayoutMetadata& metadata) {
  out.u64(metadata.worker.worker.value());
  out.string(metadata.worker.agent_name);
  out.count(metadata.agent_metadata.size());
  out.bytes(metadata.agent_metadata);
  out.count(metadata.layouts.size());
  for (const LogicalLayoutDescriptor& layout : metadata.layouts) put_layout(out, layout);
}

LayoutMetadata get_body(ByteReader& in) {
  LayoutMetadata metadata;
  metadata.worker.worker = WorkerId(in.u64());
  metadata.worker.agent_name = in.string();
  const std::span<const std::byte> agent = in.bytes(in.count(1));
  metadata.agent_metadata.assign(agent.begin(), agent.end());
  const size_t num_layouts = in.count(kMinLayoutBytes);
  for (size_t i = 0; i < num_layouts && in.ok(); ++i) {
    metadata.layouts.push_back(get_layout(in, metadata.worker.worker));
  }
  return metadata;
}

Status check(const LayoutMetadata& metadata) {
  if (metadata.worker.agent_name.empty()) return invalid("the worker's agent has no name");
  std::set<uint16_t> handles;
  std::set<std::pair<TierId, GroupId>> places;
  for (const LogicalLayoutDescriptor& layout : metadata.layouts) {
    if (layout.handle.worker != metadata.worker.worker) {
      return invalid(
          format_text("{} is not of worker {}", to_string(layout.handle), metadata.worker.worker));
    }
    if (!handles.insert(layout.handle.layout).second) {
      return invalid(format_text("layout {} is described twice", layout.handle.layout));
    }
    if (!places.emplace(layout.tier, layout.group).second) {
      return invalid(format_text("two layouts are {} of group {}", layout.tier, layout.group));
    }
    if (Status status = layout.layout.validate(); !status) {
      return make_error(std::move(status).error().with_context(to_string(layout.handle)));
    }
  }
  return {};
}

/// What the parts with a length of their own take; all the rest is far from 32 bits.
uint64_t variable_bytes(const LayoutMetadata& metadata) {
  uint64_t bytes = metadata.worker.agent_name.size() + metadata.agent_metadata.size();
  for (const LogicalLayoutDescriptor& layout : metadata.layouts) {
    bytes += layout.layout.registration.agent_name.size();
  }
  return bytes;
}

}  // namespace

Result<SerializedLayout> SerializedLayout::pack(const LayoutMetadata& metadata) {
  KVBM_TRY(check(metadata));
  const auto too_long = [] { return invalid("it takes 2^32 bytes or more"); };
  if (variable_bytes(metadata) > kMaxBodyBytes) return too_long();
  ByteWriter out(kHeaderBytes + 256);
  out.bytes(bytes_of(kMagic));
  out.u64(0);
  out.u16(kLayoutMetadataVersion);
  out.u32(0);
  put_body(out, metadata);
  const uint64_t body_bytes = out.size() - kHeaderBytes;
  if (body_bytes > kMaxBodyBytes) return too_long();
  out.patch_u32(kLengthOffset, static_cast<uint32_t>(body_bytes));
  out.patch_u64(kChecksumOffset, checksum(out.view().subspan(kCheckedOffset)));
  return SerializedLayout(std::move(out).take());
}

Result<LayoutMetadata> SerializedLayout::unpack() const {
  if (bytes_.size() < kHeaderBytes) {
    return corrupt(format_text("{} bytes; its header alone has {}", bytes_.size(), kHeaderBytes));
  }
  ByteReader in(bytes_);
  if (!std::ranges::equal(in.bytes(kMagic.size()), bytes_of(kMagic))) {
    return corrupt(format_text("it does not begin with {}", kMagic));
  }
  const uint64_t expected_checksum = in.u64();
  const uint16_t version = in.u16();
  const size_t length = in.u32();
  if (length != in.remaining()) {
    return corrupt(
        format_text("it announces a body of {} bytes and has {}", length, in.remaining()));
  }
  const uint64_t found_checksum = checksum(as_bytes().subspan(kCheckedOffset));
  if (found_checksum != expected_checksum) {
    return corrupt(format_text("its checksum is {}, it should be {}", HexText{found_checksum},
                               HexText{expected_checksum}));
  }
  if (version > kLayoutMetadataVersion) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("layout metadata of version {}, this build reads up to {}; run "
                                  "the same kvbm on all workers",
                                  version, kLayoutMetadataVersion));
  }
  if (version == 0) return corrupt("there is no version 0");
  LayoutMetadata metadata = get_body(in);
  if (Status status = in.finish(); !status) return corrupt(status.error().message());
  if (Status status = check(metadata); !status) {
    return make_error(ErrorCode::kCorrupt, status.error().message());
  }
  ByteWriter again(length);
  put_body(again, metadata);
  if (!std::ranges::equal(again.view(), as_bytes().subspan(kHeaderBytes))) {
    return corrupt("it is not in the one form that its values have");
  }
  return metadata;
}

}  // namespace kvbm
