// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/device.hpp"

#include <exception>
#include <string>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {

std::string_view to_string(DeviceKind kind) noexcept {
  switch (kind) {
    case DeviceKind::kHost:
      return "host";
    case DeviceKind::kCuda:
      return "cuda";
  }
  return "unknown";
}

Result<Event> Device::copy_and_record(StreamRef stream, StridedCopyBatch batch) {
  KVBM_TRY(copy(stream, std::move(batch)));
  try {
    return record(stream);
  } catch (...) {
    return unrecorded();
  }
}

Event unrecorded() noexcept {
  // As a string it needs no memory.
  return Event::ready(make_error(Error(ErrorCode::kExhausted, "out of memory")));
}

Status run_task(StreamTask& task) {
  try {
    return task();
  } catch (const std::exception& exception) {
    return make_error(ErrorCode::kInternal,
                      format_text("a task on a stream threw: {}", exception.what()));
  } catch (...) {
    return make_error(ErrorCode::kInternal, "a task on a stream threw what is no std::exception");
  }
}

}  // namespace kvbm
