// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_rooms.hpp"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm::internal {

struct CudaRooms::Store {
  Mutex mutex{LockRank::kDevice, "device.cuda_rooms", 0};
  std::vector<std::unique_ptr<CudaRoom>> free KVBM_GUARDED_BY(mutex);  // with a place for each
  size_t num_rooms KVBM_GUARDED_BY(mutex) = 0;
};

Result<CudaRoom> CudaRoom::make() {
  void* shared = nullptr;
  void* numbers = nullptr;
  if (const cudaError_t code =
          ::cudaHostAlloc(&shared, kMostBlocks * (2 * sizeof(uint64_t) + sizeof(uint32_t)),
                          cudaHostAllocMapped | cudaHostAllocPortable)) {
    return make_error(cuda_error("no memory for the ids of a kernel", code));
  }
  if (const cudaError_t code = ::cudaMalloc(&numbers, kMostBlocks * kNumbers * sizeof(uint64_t))) {
    static_cast<void>(::cudaFreeHost(shared));
    return make_error(cuda_error("no memory for the numbers of a kernel", code));
  }
  auto* const found = static_cast<uint64_t*>(shared);
  auto* const seeds = found + kMostBlocks;
  return CudaRoom{.found = found,
                  .seeds = seeds,
                  .ids = reinterpret_cast<uint32_t*>(seeds + kMostBlocks),
                  .numbers = static_cast<uint64_t*>(numbers)};
}

void CudaRoom::free() const noexcept {
  static_cast<void>(::cudaFreeHost(found));
  static_cast<void>(::cudaFree(numbers));
}

CudaRooms::CudaRooms(std::function<Result<CudaRoom>()> make,
                     std::function<void(const CudaRoom&)> free)
    : make_(std::move(make)), free_(std::move(free)), store_(std::make_shared<Store>()) {}

Result<std::shared_ptr<const CudaRoom>> CudaRooms::take() {
  std::unique_ptr<CudaRoom> room;
  {
    const MutexLock lock(store_->mutex);
    if (store_->free.empty()) {
      store_->free.reserve(++store_->num_rooms);  // whoever gives one back must not fail
    } else {
      room = std::move(store_->free.back());
      store_->free.pop_back();
    }
  }
  if (room == nullptr) {
    KVBM_ASSIGN_OR_RETURN(const CudaRoom made, make_());
    room = std::make_unique<CudaRoom>(made);
  }
  return std::shared_ptr<const CudaRoom>(room.release(), [store = store_](CudaRoom* back) {
    const MutexLock lock(store->mutex);
    store->free.emplace_back(back);
  });
}

void CudaRooms::close() {
  std::vector<std::unique_ptr<CudaRoom>> rooms;
  {
    const MutexLock lock(store_->mutex);
    rooms.swap(store_->free);
    store_->num_rooms -= rooms.size();
  }
  for (const std::unique_ptr<CudaRoom>& room : rooms) free_(*room);
}

}  // namespace kvbm::internal
