// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/stream_pool.hpp"

#include <string_view>
#include <utility>

namespace kvbm::internal {
namespace {

constexpr std::array<std::string_view, 3> kNames{"transfer.in", "transfer.out", "transfer.side"};

size_t direction_of(TransferRoute route) {
  if (route == TransferRoute::kHostToDevice) return 0;
  if (route == TransferRoute::kDeviceToHost) return 1;
  return 2;
}

}  // namespace

Result<std::unique_ptr<StreamPool>> StreamPool::create(Device& device, size_t streams_per_direction,
                                                       size_t max_waiting_streams) {
  std::unique_ptr<StreamPool> pool(new StreamPool(device, max_waiting_streams));
  {
    const MutexLock lock(pool->mutex_);
    pool->waiting_idle_.reserve(max_waiting_streams);  // give_back_waiting() must not fail
  }
  for (size_t direction = 0; direction < kNumDirections; ++direction) {
    for (size_t i = 0; i < streams_per_direction; ++i) {
      KVBM_ASSIGN_OR_RETURN(const StreamRef stream, pool->make(kNames[direction]));
      const MutexLock lock(pool->mutex_);
      pool->idle_[direction].push_back(stream);
    }
  }
  return pool;
}

StreamPool::~StreamPool() { close(); }

Result<StreamRef> StreamPool::make(std::string_view name) {
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, device_.create_stream(name));
  const MutexLock lock(mutex_);
  all_.push_back(stream);
  return stream;
}

Result<StreamRef> StreamPool::take(TransferRoute route) {
  const size_t direction = direction_of(route);
  {
    const MutexLock lock(mutex_);
    std::deque<StreamRef>& idle = idle_[direction];
    if (!idle.empty()) {
      const StreamRef stream = idle.front();
      idle.pop_front();
      return stream;
    }
  }
  return make(kNames[direction]);
}

void StreamPool::give_back(TransferRoute route, StreamRef stream) noexcept {
  const MutexLock lock(mutex_);
  try {
    idle_[direction_of(route)].push_back(stream);
  } catch (...) {  // NOLINT(bugprone-empty-catch): rests until close(); take() makes another one
  }
}

std::optional<StreamRef> StreamPool::take_waiting() {
  {
    const MutexLock lock(mutex_);
    if (!waiting_idle_.empty()) {
      const StreamRef stream = waiting_idle_.back();
      waiting_idle_.pop_back();
      return stream;
    }
    if (num_waiting_ == max_waiting_streams_) return std::nullopt;
    ++num_waiting_;
  }
  Result<StreamRef> stream = make("transfer.wait");
  if (stream) return *stream;
  const MutexLock lock(mutex_);
  --num_waiting_;
  return std::nullopt;
}

void StreamPool::give_back_waiting(StreamRef stream) noexcept {
  const MutexLock lock(mutex_);
  waiting_idle_.push_back(stream);
}

void StreamPool::discard_waiting(StreamRef stream) noexcept {
  {
    const MutexLock lock(mutex_);
    if (std::erase(all_, stream) == 0) return;  // closed
    --num_waiting_;
  }
  static_cast<void>(device_.destroy_stream(stream));
}

void StreamPool::close() noexcept {
  std::vector<StreamRef> streams;
  {
    const MutexLock lock(mutex_);
    streams = std::exchange(all_, {});
    for (std::deque<StreamRef>& idle : idle_) idle.clear();
    waiting_idle_.clear();
    num_waiting_ = max_waiting_streams_;
  }
  for (const StreamRef stream : streams) static_cast<void>(device_.destroy_stream(stream));
}

}  // namespace kvbm::internal
