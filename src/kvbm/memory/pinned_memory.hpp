// SPDX-License-Identifier: Apache-2.0
// PinnedMemory: host memory that a device reaches by itself, owned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"
#include "kvbm/memory/host_pinner.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// The pages that a PinnedMemory is made of.
enum class PinnedPages : uint8_t {
  kReservedHuge,     ///< huge pages that the administrator set aside
  kTransparentHuge,  ///< huge pages where the kernel finds some, else plain ones
};

/// "reserved huge", "transparent huge".
[[nodiscard]] std::string_view to_string(PinnedPages pages) noexcept;

struct PinnedMemoryOptions {
  static constexpr uint64_t kSliceBytes = uint64_t{256} << 20;

  Executor& executor;
  std::shared_ptr<HostPinner> pinner;
  uint64_t size_bytes = 0;
  /// Pinned in one call; rounded up to huge pages. Smaller: sooner ready, and no lock of the kernel
  /// or the driver is held for long. Above 1 GiB is for whoever needs one range for the driver.
  uint64_t slice_bytes = kSliceBytes;
  /// That touch and pin. They end with wait_for() of all, however it went, or with the memory.
  size_t num_threads = 8;
  /// Told after each slice how many bytes are ready, on one of those threads at a time; short, and
  /// it does not end the memory.
  UniqueFunction<void(uint64_t ready_bytes)> on_progress = {};
  /// Told that the memory from `usable_bytes` on will never be ready, and why, before ready() tells
  /// anybody; what is before it may still be on its way. Comes again if that fails too. On those
  /// threads, on several at a time if need be. What they have touched and not pinned goes back to
  /// the machine when the last of them has nothing more to do.
  UniqueFunction<void(uint64_t usable_bytes, const Error& why)> on_shortage = {};
};

/// Made in the background: threads touch the pages, next to the device, and pin them in slices from
/// the first byte on. What is ready may be used while the rest is being made. Reads as zero.
///
/// A copy engine takes no run across the end of a slice as one copy; the device that pinned them
/// knows and divides.
/// Ownership: move-only. On destruction pinning stops, what is pinned is unpinned, and the memory
/// goes: nothing may use it any more. Borrows the executor.
/// Threads: one thread at a time; ready_bytes() and ready() from any.
class PinnedMemory {
 public:
  /// Owns nothing.
  PinnedMemory() noexcept;
  PinnedMemory(PinnedMemory&&) noexcept;
  PinnedMemory& operator=(PinnedMemory&&) noexcept;
  ~PinnedMemory();

  /// Returns before anything is pinned.
  /// Errors: kInvalidArgument (no byte, no thread, no slice, no pinner),
  /// kExhausted (no address space; no threads).
  [[nodiscard]] static Result<PinnedMemory> create(PinnedMemoryOptions options);

  [[nodiscard]] std::byte* data() const noexcept;
  [[nodiscard]] uint64_t size_bytes() const noexcept;
  /// The whole, of which ready_bytes() may be used so far.
  [[nodiscard]] MemoryRegion region() const;

  /// Bytes from the start on that are pinned.
  [[nodiscard]] uint64_t ready_bytes() const noexcept;

  /// Done when the first `bytes` bytes are ready, or with the error that ended the pinning before.
  /// Contract: not more than there are.
  [[nodiscard]] Completion ready(uint64_t bytes) const;

  /// Waits for that. Errors: kTimeout, those of the pinner.
  [[nodiscard]] Status wait_for(uint64_t bytes, TimePoint deadline = kNever);

  /// Ends the threads that pin, wherever they are; what is not pinned by then fails with
  /// kCancelled. For owners that a thread of those may let go of: no thread ends itself. Threads:
  /// not on one that pins.
  void give_up() noexcept;

  /// kReservedHuge as long as all pages so far are.
  [[nodiscard]] PinnedPages pages() const noexcept;
  /// The node that the pages were asked for on; none if the machine has none, or the kernel
  /// refused.
  [[nodiscard]] std::optional<uint32_t> numa_node() const noexcept;

 private:
  class Maker;

  explicit PinnedMemory(std::unique_ptr<Maker> maker) noexcept;

  std::unique_ptr<Maker> maker_;
};

}  // namespace kvbm
