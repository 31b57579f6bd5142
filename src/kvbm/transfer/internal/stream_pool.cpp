// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/stream_pool.hpp"

#include <utility>

namespace kvbm::internal {
namespace {

constexpr std::array<std::string_view, kNumStreamDirections> kNames{"transfer.in", "transfer.out",
                                                                    "transfer.side"};

size_t index_of(StreamDirection direction) { return static_cast<size_t>(direction); }

}  // namespace

StreamDirection direction_of(TransferRoute route) noexcept {
  if (route == TransferRoute::kHostToDevice) return StreamDirection::kToDevice;
  if (route == TransferRoute::kDeviceToHost) return StreamDirection::kToHost;
  return StreamDirection::kSide;
}

Result<std::unique_ptr<StreamPool>> StreamPool::create(Device& device,
                                                       const StreamPoolOptions& options) {
  std::unique_ptr<StreamPool> pool(new StreamPool(device));
  const std::array<size_t, kNumStreamDirections> counts{options.per_direction,
                                                        options.per_direction, options.side};
  for (size_t i = 0; i < kNumStreamDirections; ++i) {
    std::vector<StreamRef> idle;
    KVBM_TRY(pool->make(kNames[i], counts[i], idle));
    const MutexLock lock(pool->mutex_);
    pool->idle_[i] = std::move(idle);
    pool->num_lendable_[i] = counts[i] == 0 ? 0 : counts[i] - 1;
  }
  std::vector<StreamRef> waiting;
  KVBM_TRY(pool->make("transfer.wait", options.waiting, waiting));
  const MutexLock lock(pool->mutex_);
  pool->waiting_idle_ = std::move(waiting);
  return pool;
}

StreamPool::~StreamPool() { close(); }

Status StreamPool::make(std::string_view name, size_t count, std::vector<StreamRef>& idle) {
  idle.reserve(count);  // giving back must not fail
  for (size_t i = 0; i < count; ++i) {
    KVBM_ASSIGN_OR_RETURN(const StreamRef stream, device_.create_stream(name));
    idle.push_back(stream);
    const MutexLock lock(mutex_);
    all_.push_back(stream);
  }
  return {};
}

Result<StreamPool::Held> StreamPool::take(TransferRoute route) {
  const size_t first = index_of(direction_of(route));
  const MutexLock lock(mutex_);
  for (size_t i = 0; i < kNumStreamDirections; ++i) {
    const size_t at = (first + i) % kNumStreamDirections;
    std::vector<StreamRef>& idle = idle_[at];
    if (idle.empty()) continue;
    const StreamRef stream = idle.front();
    idle.erase(idle.begin());
    return Held{.stream = stream, .direction = static_cast<StreamDirection>(at)};
  }
  return make_error(ErrorCode::kExhausted,
                    "each stream of the transfer manager has a call that puts something on it");
}

void StreamPool::give_back(const Held& held) noexcept {
  const MutexLock lock(mutex_);
  idle_[index_of(held.direction)].push_back(held.stream);  // has room
}

Result<StreamRef> StreamPool::lend(StreamDirection direction) {
  const MutexLock lock(mutex_);
  std::vector<StreamRef>& idle = idle_[index_of(direction)];
  size_t& num_lendable = num_lendable_[index_of(direction)];
  if (num_lendable == 0 || idle.empty()) {
    return make_error(ErrorCode::kExhausted,
                      "the streams of this direction are lent, but for one that the transfer "
                      "manager keeps: give one back, or make more (TransferConfig)");
  }
  --num_lendable;
  const StreamRef stream = idle.front();
  idle.erase(idle.begin());
  return stream;
}

void StreamPool::end_loan(StreamDirection direction, StreamRef stream) noexcept {
  const MutexLock lock(mutex_);
  ++num_lendable_[index_of(direction)];
  idle_[index_of(direction)].push_back(stream);  // has room
}

std::optional<StreamRef> StreamPool::take_waiting() {
  const MutexLock lock(mutex_);
  if (waiting_idle_.empty()) return std::nullopt;
  const StreamRef stream = waiting_idle_.back();
  waiting_idle_.pop_back();
  return stream;
}

void StreamPool::give_back_waiting(StreamRef stream) noexcept {
  const MutexLock lock(mutex_);
  waiting_idle_.push_back(stream);  // has room
}

void StreamPool::discard_waiting(StreamRef stream) noexcept {
  {
    const MutexLock lock(mutex_);
    if (std::erase(all_, stream) == 0) return;  // closed
  }
  static_cast<void>(device_.destroy_stream(stream));
}

void StreamPool::close() noexcept {
  std::vector<StreamRef> streams;
  {
    const MutexLock lock(mutex_);
    streams = std::exchange(all_, {});
    for (std::vector<StreamRef>& idle : idle_) idle.clear();
    waiting_idle_.clear();
  }
  for (const StreamRef stream : streams) static_cast<void>(device_.destroy_stream(stream));
}

}  // namespace kvbm::internal
