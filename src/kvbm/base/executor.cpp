// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/executor.hpp"

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

Status check_queue_options(const QueueOptions& options) {
  if (options.name.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "a task queue needs a name");
  }
  if (options.num_threads == 0 || options.capacity == 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("task queue '{}' has {} threads and capacity {}; both must be at "
                                  "least 1",
                                  options.name, options.num_threads, options.capacity));
  }
  return {};
}

}  // namespace kvbm::internal
