// SPDX-License-Identifier: Apache-2.0
// PosixFileEngine: preadv and pwritev on a few threads; works on every file system.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/memory/file_engine.hpp"

namespace kvbm {

struct PosixFileEngineOptions {
  Executor& executor;
  size_t num_threads = 4;
  size_t max_pending = 4096;  ///< requests; full: submit fails with kExhausted
  std::string name = "file";  ///< of the task queue
};

/// One task a request on a TaskQueue of its own, in the order of submission.
class PosixFileEngine final : public FileEngine {
 public:
  /// Errors: kInvalidArgument (an option that is zero or empty), kExhausted (no thread).
  [[nodiscard]] static Result<std::unique_ptr<PosixFileEngine>> create(
      const PosixFileEngineOptions& options);
  ~PosixFileEngine() override;

  [[nodiscard]] FileEngineCapabilities capabilities() const override;
  [[nodiscard]] Status reach_device(const FileRef& file) override;
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override;

 private:
  class Core;

  explicit PosixFileEngine(std::unique_ptr<Core> core);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
