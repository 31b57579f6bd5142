// SPDX-License-Identifier: Apache-2.0
// The memory of a cell: its two sides, filled with bytes that show any swap, and checked.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/owned_region.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/runtime/devices.hpp"

#include "apps/kvbench/bench_cell.hpp"

namespace kvbm {

/// Host memory that the device copies, each range pinned as one: raw calls do not divide at slices.
/// Pinning takes longer than most cells, so ranges are used again.
/// Ownership: borrows device and executor. Threads: one thread at a time.
class BenchMemory {
 public:
  /// Ranges are as large as the largest that will be asked for.
  BenchMemory(const OpenedDevice& device, Executor& executor, uint64_t largest_bytes)
      : device_(device), executor_(executor), largest_bytes_(largest_bytes) {}

  /// One that nobody holds any more, or a new one. Errors: kExhausted, those of the device.
  [[nodiscard]] Result<OwnedRegion> take_host(uint64_t size_bytes);

  [[nodiscard]] Device& device() const noexcept { return *device_.device; }
  [[nodiscard]] Executor& executor() const noexcept { return executor_; }

 private:
  Result<OwnedRegion> allocate(uint64_t size_bytes);

  const OpenedDevice& device_;
  Executor& executor_;
  const uint64_t largest_bytes_;
  std::vector<OwnedRegion> ranges_;
};

/// What a side of so many bytes takes of a host range.
[[nodiscard]] uint64_t host_bytes_of(const BenchShape& shape, uint64_t total_bytes) noexcept;

/// Ownership: owns memory.
struct BenchPlace {
  std::vector<OwnedRegion> memory;  ///< one; or one a layer, on a device each an allocation
  PhysicalLayout layout;

  [[nodiscard]] static Result<BenchPlace> create(BenchMemory& memory, const LayoutConfig& config,
                                                 const BenchSide& side);
};

/// Both sides of a cell, and an image in host memory of a side that the host cannot reach.
/// Threads: one thread at a time.
class BenchPlaces {
 public:
  /// The source has its bytes. Errors: kExhausted (memory), those of the device.
  [[nodiscard]] static Result<BenchPlaces> create(BenchMemory& memory, const LayoutConfig& config,
                                                  const BenchCell& cell, bool sequential_ids);

  [[nodiscard]] const PhysicalLayout& source() const noexcept { return source_.layout; }
  [[nodiscard]] const PhysicalLayout& destination() const noexcept { return destination_.layout; }
  /// Block source_ids()[i] becomes block destination_ids()[i]; all blocks of both, once.
  [[nodiscard]] std::span<const BlockId> source_ids() const noexcept { return from_; }
  [[nodiscard]] std::span<const BlockId> destination_ids() const noexcept { return to_; }

  /// Makes the destination zero.
  Status clear();
  /// Compares every byte of the destination. Errors: kCorrupt, with the first place that is wrong.
  Status check();

 private:
  BenchPlaces(BenchMemory& memory, BenchPlace source, BenchPlace destination);
  Status fill_source(const LayoutConfig& config, const BenchSide& side);
  Status copy_all(const BenchPlace& src, const BenchPlace& dst);

  BenchMemory* memory_;
  BenchPlace source_;
  BenchPlace destination_;
  std::optional<BenchPlace> image_;  ///< of the destination
  std::vector<BlockId> from_;
  std::vector<BlockId> to_;
};

}  // namespace kvbm
