// SPDX-License-Identifier: Apache-2.0
// CudaPinner: pins host memory for every GPU of the process, and remembers where the slices end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/memory/host_pinner.hpp"

namespace kvbm::internal {

/// Threads: any thread.
class CudaPinner final : public HostPinner {
 public:
  using Cuts = std::vector<uintptr_t>;

  explicit CudaPinner(std::shared_ptr<const CudaContext> context) : context_(std::move(context)) {}

  Status pin(std::byte* data, uint64_t size_bytes) override;
  void unpin(std::byte* data, uint64_t size_bytes) noexcept override;
  [[nodiscard]] std::optional<uint32_t> numa_node() const override {
    return context_->gpu().numa_node;
  }

  /// The addresses where a slice begins or ends, ascending: the driver takes no copy across one.
  [[nodiscard]] std::shared_ptr<const Cuts> cuts() const;

 private:
  void add_cut(Cuts& cuts, const std::byte* at) const;

  const std::shared_ptr<const CudaContext> context_;
  mutable Mutex mutex_{LockRank::kDevice, "device.cuda_pinner", 0};
  std::shared_ptr<const Cuts> cuts_ KVBM_GUARDED_BY(mutex_) = std::make_shared<const Cuts>();
};

}  // namespace kvbm::internal
