// SPDX-License-Identifier: Apache-2.0
// GuardedPlace: a layout of any kind in memory or a file of its own, between guard bands.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/file_memory.hpp"
#include "kvbm/memory/system_memory.hpp"

#include "tests/support/pattern.hpp"

namespace kvbm::testing {

/// Bytes start as kFill, guards are kGuard.
/// Ownership: owns its bytes. Threads: one thread at a time.
class GuardedPlace {
 public:
  static constexpr std::byte kFill{0x11};
  static constexpr std::byte kGuard{0xa5};
  static constexpr uint64_t kGuardBytes = 8192;  // a multiple of every alignment in tests

  GuardedPlace(const LayoutConfig& config, LayoutKind kind,
               StorageKind storage = StorageKind::kSystem, const SlotOptions& slots = {},
               const KvBlockLayout& format = KvBlockLayout::kUnknown) {
    const MemoryNeed need = required_memory(config, kind, slots).value();
    const uint64_t stride = (need.region_bytes + 4095) / 4096 * 4096 + kGuardBytes;
    const uint64_t total = kGuardBytes + need.num_regions * stride;
    if (kind == LayoutKind::kFileSlots) {
      file_ = FileMemory::create({.directory = std::filesystem::temp_directory_path().string(),
                                  .size_bytes = total})
                  .value();
    } else {
      memory_ = SystemMemory::create({.size_bytes = total}).value();
    }
    write(0, std::vector<std::byte>(total, kGuard));
    for (size_t i = 0; i < need.num_regions; ++i) {
      const uint64_t offset = kGuardBytes + i * stride;
      write(offset, std::vector<std::byte>(need.region_bytes, kFill));
      used_.push_back({offset, need.region_bytes});
      regions_.push_back(
          kind == LayoutKind::kFileSlots
              ? MemoryRegion::of_file(file_.file(), offset, need.region_bytes)
              : MemoryRegion::of_bytes(storage, memory_.data() + offset, need.region_bytes));
    }
    layout_.emplace(make(config, kind, slots, format).value());
  }

  [[nodiscard]] const PhysicalLayout& layout() const { return *layout_; }
  [[nodiscard]] const LayoutConfig& config() const { return layout_->config(); }
  /// All of it with the guards, for who has to pin it.
  [[nodiscard]] MemoryRegion everything() const {
    return file_.size_bytes() > 0 ? file_.region() : memory_.region();
  }
  [[nodiscard]] bool is_file() const { return layout_->kind() == LayoutKind::kFileSlots; }

  /// Layers of a block in canonical order, read region by region, whatever the format is.
  [[nodiscard]] std::vector<std::byte> read(BlockId block, LayerRange layers) const {
    std::vector<std::byte> bytes;
    for_each_region(block, layers, [&](const MemoryRegion& region) {
      const std::vector<std::byte> part = read(region);
      bytes.insert(bytes.end(), part.begin(), part.end());
    });
    return bytes;
  }
  [[nodiscard]] std::vector<std::byte> read(BlockId block) const {
    return read(block, config().all_layers());
  }

  /// Fills a block with the pattern of a key.
  void fill(BlockId block, uint64_t key) {
    const std::vector<std::byte> bytes = pattern_block(config(), key);
    size_t at = 0;
    for_each_region(block, config().all_layers(), [&](const MemoryRegion& region) {
      write(region, std::span(bytes).subspan(at, region.size_bytes()));
      at += region.size_bytes();
    });
  }

  [[nodiscard]] ::testing::AssertionResult holds(BlockId block, uint64_t key) const {
    return same_block(config(), read(block), pattern_block(config(), key)) << ", block " << block;
  }
  [[nodiscard]] ::testing::AssertionResult untouched(BlockId block) const {
    const std::vector<std::byte> bytes = read(block);
    return same_block(config(), bytes, std::vector<std::byte>(bytes.size(), kFill))
           << ", block " << block;
  }

  /// Nothing was written outside the regions.
  [[nodiscard]] ::testing::AssertionResult guards_hold() const {
    std::vector<std::byte> all = read_all();
    for (const auto& [offset, size] : used_) {
      std::fill_n(all.begin() + static_cast<ptrdiff_t>(offset), size, kGuard);
    }
    const auto broken = std::ranges::find_if(all, [](std::byte byte) { return byte != kGuard; });
    if (broken == all.end()) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "guard byte " << broken - all.begin() << " was written";
  }

  [[nodiscard]] std::vector<std::byte> read(const MemoryRegion& region) const {
    std::vector<std::byte> bytes(region.size_bytes());
    if (!region.is_file()) {
      std::copy_n(region.base(), bytes.size(), bytes.begin());
    } else if (pread(region.file().fd, bytes.data(), bytes.size(),
                     static_cast<off_t>(region.file_offset())) !=
               static_cast<ssize_t>(bytes.size())) {
      throw std::runtime_error("pread");
    }
    return bytes;
  }
  void write(const MemoryRegion& region, std::span<const std::byte> bytes) {
    if (!region.is_file()) {
      std::ranges::copy(bytes, region.base());
    } else if (pwrite(region.file().fd, bytes.data(), bytes.size(),
                      static_cast<off_t>(region.file_offset())) !=
               static_cast<ssize_t>(bytes.size())) {
      throw std::runtime_error("pwrite");
    }
  }

 private:
  struct Range {
    uint64_t offset;
    uint64_t size;
  };

  [[nodiscard]] Result<PhysicalLayout> make(const LayoutConfig& config, LayoutKind kind,
                                            const SlotOptions& slots,
                                            const KvBlockLayout& format) const {
    switch (kind) {
      case LayoutKind::kFullyContiguous:
        return PhysicalLayout::fully_contiguous(config, regions_.front(), format);
      case LayoutKind::kLayerSeparateBlockFirst:
        return PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsFirst, regions_,
                                              format);
      case LayoutKind::kLayerSeparateBlockSecond:
        return PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsSecond, regions_,
                                              format);
      case LayoutKind::kFileSlots:
        return PhysicalLayout::file_slots(config, regions_.front(), slots, format);
      case LayoutKind::kPageMaps:
        break;
    }
    throw std::invalid_argument("a guarded place of page maps");
  }

  template <class F>
  void for_each_region(BlockId block, LayerRange layers, F&& visit) const {
    for (uint32_t index = layers.begin(); index < layers.end(); ++index) {
      const LayerId layer(static_cast<uint16_t>(index));
      for (uint32_t outer = 0; outer < config().outer_dim; ++outer) {
        if (!layout_->kv_block_layout().is_known()) {
          visit(layout_->region(block, layer, outer));
          continue;
        }
        for (uint32_t page = 0; page < config().page_size; ++page) {
          for (uint32_t head = 0; head < *config().num_heads; ++head) {
            visit(layout_->head_region(block, layer, outer, head, page));
          }
        }
      }
    }
  }

  [[nodiscard]] std::vector<std::byte> read_all() const { return read(everything()); }
  void write(uint64_t offset, const std::vector<std::byte>& bytes) {
    write(everything().slice(offset, bytes.size()), bytes);
  }

  SystemMemory memory_;
  FileMemory file_;
  std::vector<Range> used_;
  std::vector<MemoryRegion> regions_;
  std::optional<PhysicalLayout> layout_;
};

}  // namespace kvbm::testing
