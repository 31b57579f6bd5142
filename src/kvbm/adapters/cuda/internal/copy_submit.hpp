// SPDX-License-Identifier: Apache-2.0
// submit: a CopyList on a native stream.
#pragma once

#include "kvbm/adapters/cuda/internal/copy_list.hpp"
#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// Whether it is one of the default streams: they have no handle of their own.
[[nodiscard]] bool is_default_stream(CUstream_st* stream) noexcept;

/// Puts all copies on the stream, plain runs in batches where `has_batch` says that driver and
/// build have it. `queued`: whether anything was or may have been put there, also where the call
/// fails.
/// Requires: a Scope of the context. Errors: kInvalidArgument (an address that is neither the GPU's
/// nor pinned), kDevice.
[[nodiscard]] Status submit(CopyList& list, CUstream_st* stream, bool has_batch, bool& queued);

}  // namespace kvbm::internal
