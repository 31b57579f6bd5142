// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/pinned_memory.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>
#include <vector>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/memory/internal/pinnable_pages.hpp"

namespace kvbm {

namespace {

using internal::kHugePageBytes;
using internal::PinnablePages;

/// What a thread touches at a time.
constexpr uint64_t kChunkBytes = 16 * kMiB;

uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

std::string_view to_string(PinnedPages pages) noexcept {
  switch (pages) {
    case PinnedPages::kReservedHuge:
      return "reserved huge";
    case PinnedPages::kTransparentHuge:
      return "transparent huge";
  }
  return "unknown";
}

/// Chunks are taken from the front; whoever touches the last chunk of a slice looks whether it may
/// pin, one thread at a time and in order, so that touching never waits for pinning.
class PinnedMemory::Maker {
 public:
  Maker(PinnedMemoryOptions options, PinnablePages pages, uint64_t slice_bytes,
        std::unique_ptr<TaskQueue> queue)
      : pages_(std::move(pages)),
        size_bytes_(options.size_bytes),
        slice_bytes_(slice_bytes),
        pinner_(std::move(options.pinner)),
        on_progress_(std::move(options.on_progress)),
        on_shortage_(std::move(options.on_shortage)),
        untouched_((size_bytes_ + slice_bytes - 1) / slice_bytes),
        queue_(std::move(queue)) {
    for (size_t i = 0; i < untouched_.size(); ++i) {
      untouched_[i] = size_of(i);
      sources_.emplace_back(options.executor);
    }
    if (const std::optional<uint32_t> node = pinner_->numa_node()) {
      if (pages_.prefer_node(*node)) node_ = node;
    }
  }
  Maker(const Maker&) = delete;
  Maker& operator=(const Maker&) = delete;
  ~Maker() {
    give_up();
    for (size_t i = 0; i < num_pinned_; ++i) {
      pinner_->unpin(pages_.data() + i * slice_bytes_, size_of(i));
    }
  }

  Status start(size_t num_threads) {
    num_touching_.store(num_threads);
    for (size_t i = 0; i < num_threads; ++i) {
      KVBM_TRY(queue_->post([this] {
        touch();
        if (num_touching_.fetch_sub(1) == 1) end_touching();
      }));
    }
    return {};
  }
  /// Ends the threads where they are; what is not pinned by then has failed.
  void give_up() noexcept {
    stopped_.store(true, std::memory_order_relaxed);
    stop();
    for (size_t i = num_pinned_; i < sources_.size(); ++i) {
      static_cast<void>(sources_[i].try_resolve(
          make_error(ErrorCode::kCancelled, "the memory went before it was pinned")));
    }
  }
  /// Ends the threads, once they have nothing to do or have seen that they are to stop.
  void stop() {
    if (queue_ != nullptr) queue_->stop();
    queue_.reset();
  }

  [[nodiscard]] const PinnablePages& pages() const noexcept { return pages_; }
  [[nodiscard]] uint64_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] std::optional<uint32_t> node() const noexcept { return node_; }
  [[nodiscard]] uint64_t ready_bytes() const noexcept {
    return ready_bytes_.load(std::memory_order_acquire);
  }
  [[nodiscard]] Completion ready(uint64_t bytes) const {
    KVBM_CONTRACT(bytes <= size_bytes_, "more pinned memory is waited for than there is");
    if (bytes <= ready_bytes()) return Completion::ready();
    return sources_[(bytes - 1) / slice_bytes_].completion();
  }

 private:
  [[nodiscard]] uint64_t size_of(size_t slice) const {
    return std::min(slice_bytes_, size_bytes_ - slice * slice_bytes_);
  }

  void touch() {
    while (!stopped_.load(std::memory_order_relaxed)) {
      const uint64_t first = next_.fetch_add(kChunkBytes, std::memory_order_relaxed);
      if (first >= size_bytes_) return;
      const uint64_t end = std::min(first + kChunkBytes, size_bytes_);
      if (const Status touched = pages_.touch(first, end); !touched) {
        // Pinning goes on up to this slice, and never comes to it.
        fail_from(first / slice_bytes_, touched);
        return;
      }
      for (uint64_t at = first; at < end;) {
        const size_t slice = at / slice_bytes_;
        const uint64_t part = std::min(end, slice * slice_bytes_ + size_of(slice)) - at;
        const uint64_t before = untouched_[slice].fetch_sub(part);
        if (before == part) pin_what_is_touched();
        at += part;
      }
    }
  }

  /// Threads touch far ahead of the pinning: of what was not pinned nobody will have any use.
  void end_touching() {
    if (has_failed_.load()) pages_.give_back(ready_bytes());
  }

  void fail_from(size_t slice, const Status& failed) {
    has_failed_.store(true);
    next_.store(size_bytes_);  // nobody touches what will not be pinned
    if (on_shortage_) on_shortage_(slice * slice_bytes_, failed.error());
    for (size_t i = slice; i < sources_.size(); ++i) {
      static_cast<void>(sources_[i].try_resolve(failed));
    }
  }

  void pin_what_is_touched() {
    // A thread that finds the pinning taken leaves its slice to the one that has it, which looks
    // again after it has let go: all four accesses are in one order.
    for (;;) {
      if (pinning_.exchange(true)) return;
      while (next_slice_is_touched()) {
        if (!pin_next()) return;
      }
      pinning_.store(false);
      if (!next_slice_is_touched()) return;
    }
  }

  [[nodiscard]] bool next_slice_is_touched() const {
    const size_t next = num_pinned_.load();
    return next < untouched_.size() && untouched_[next].load() == 0 &&
           !stopped_.load(std::memory_order_relaxed);
  }

  /// False after a failure: nobody pins any more.
  bool pin_next() {
    const size_t slice = num_pinned_.load(std::memory_order_relaxed);
    if (Status pinned = pinner_->pin(pages_.data() + slice * slice_bytes_, size_of(slice));
        !pinned) {
      stopped_.store(true, std::memory_order_relaxed);
      fail_from(slice, pinned);
      return false;
    }
    num_pinned_.store(slice + 1);
    const uint64_t bytes = slice * slice_bytes_ + size_of(slice);
    ready_bytes_.store(bytes, std::memory_order_release);
    sources_[slice].resolve({});
    if (on_progress_) on_progress_(bytes);
    return true;
  }

  PinnablePages pages_;
  const uint64_t size_bytes_;
  const uint64_t slice_bytes_;
  const std::shared_ptr<HostPinner> pinner_;
  UniqueFunction<void(uint64_t)> on_progress_;
  UniqueFunction<void(uint64_t, const Error&)> on_shortage_;
  std::optional<uint32_t> node_;

  std::vector<std::atomic<uint64_t>> untouched_;  ///< bytes of each slice
  std::vector<CompletionSource> sources_;         ///< of each slice
  std::atomic<uint64_t> next_{0};                 ///< the first byte that nobody has taken
  std::atomic<size_t> num_pinned_{0};             ///< slices
  std::atomic<uint64_t> ready_bytes_{0};
  std::atomic<bool> pinning_{false};
  std::atomic<bool> stopped_{false};
  std::atomic<bool> has_failed_{false};
  std::atomic<size_t> num_touching_{0};  ///< threads
  std::unique_ptr<TaskQueue> queue_;
};

PinnedMemory::PinnedMemory() noexcept = default;
PinnedMemory::PinnedMemory(PinnedMemory&&) noexcept = default;
PinnedMemory& PinnedMemory::operator=(PinnedMemory&&) noexcept = default;
PinnedMemory::~PinnedMemory() = default;
PinnedMemory::PinnedMemory(std::unique_ptr<Maker> maker) noexcept : maker_(std::move(maker)) {}

Result<PinnedMemory> PinnedMemory::create(PinnedMemoryOptions options) {
  if (options.size_bytes == 0 || options.slice_bytes == 0 || options.num_threads == 0 ||
      options.pinner == nullptr) {
    return make_error(ErrorCode::kInvalidArgument,
                      "pinned memory needs at least one byte, one byte a slice, one thread, and "
                      "somebody who pins");
  }
  if (options.size_bytes > uint64_t{std::numeric_limits<int64_t>::max()} - kHugePageBytes) {
    return make_error(ErrorCode::kExhausted, format_text("no room for {} of host memory",
                                                         format_size(options.size_bytes)));
  }
  KVBM_ASSIGN_OR_RETURN(PinnablePages pages, PinnablePages::map(options.size_bytes));
  const size_t num_threads = options.num_threads;
  const uint64_t slice_bytes =
      round_up(std::min(options.slice_bytes, options.size_bytes), kHugePageBytes);
  KVBM_ASSIGN_OR_RETURN(
      std::unique_ptr<TaskQueue> queue,
      options.executor.create_queue(
          {.name = "kvbm-pin", .num_threads = num_threads, .capacity = num_threads}));
  auto maker =
      std::make_unique<Maker>(std::move(options), std::move(pages), slice_bytes, std::move(queue));
  KVBM_TRY(maker->start(num_threads));
  return PinnedMemory(std::move(maker));
}

std::byte* PinnedMemory::data() const noexcept {
  return maker_ != nullptr ? maker_->pages().data() : nullptr;
}
uint64_t PinnedMemory::size_bytes() const noexcept {
  return maker_ != nullptr ? maker_->size_bytes() : 0;
}
MemoryRegion PinnedMemory::region() const {
  return MemoryRegion::of_bytes(StorageKind::kPinned, data(), size_bytes());
}
uint64_t PinnedMemory::ready_bytes() const noexcept {
  return maker_ != nullptr ? maker_->ready_bytes() : 0;
}
Completion PinnedMemory::ready(uint64_t bytes) const {
  KVBM_CONTRACT(maker_ != nullptr || bytes == 0, "there is no pinned memory to wait for");
  return bytes == 0 ? Completion::ready() : maker_->ready(bytes);
}
Status PinnedMemory::wait_for(uint64_t bytes, TimePoint deadline) {
  const Completion pinned = ready(bytes);
  Status status = pinned.wait(deadline);
  if (bytes > 0 && bytes == size_bytes() && pinned.done()) maker_->stop();
  return status;
}
void PinnedMemory::give_up() noexcept {
  if (maker_ != nullptr) maker_->give_up();
}
PinnedPages PinnedMemory::pages() const noexcept {
  return maker_ != nullptr && maker_->pages().are_reserved() ? PinnedPages::kReservedHuge
                                                             : PinnedPages::kTransparentHuge;
}
std::optional<uint32_t> PinnedMemory::numa_node() const noexcept {
  return maker_ != nullptr ? maker_->node() : std::nullopt;
}

}  // namespace kvbm
