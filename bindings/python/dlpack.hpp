// SPDX-License-Identifier: Apache-2.0
// A tensor as a DLPack capsule, with and without the version of DLPack 1.0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace kvbm {

/// The consumer's dialect: an older one knows no read-only tensors.
enum class DlpackVersion : uint8_t { kUnversioned, kOne };

/// A tensor in host memory. Strides in elements.
struct HostTensor {
  std::byte* data = nullptr;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  nanobind::dlpack::dtype dtype;
  bool read_only = false;
  bool is_copy = false;
  std::shared_ptr<void> owner;  ///< kept until the consumer is done; let go of on any thread
};

/// The capsule; the tensor lives until its consumer, or the unused capsule, is gone.
/// Contract: a read-only tensor is for kOne.
[[nodiscard]] nanobind::object to_dlpack(HostTensor tensor, DlpackVersion version);

}  // namespace kvbm
