// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/log.hpp"

#include "kvbm/base/log_spdlog.hpp"

namespace kvbm {

LogSink& log_sink() {
  static LogSink& sink = *SpdlogSink::to_stderr(LogLevel::kWarning).release();
  return sink;
}

}  // namespace kvbm
