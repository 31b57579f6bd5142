// SPDX-License-Identifier: Apache-2.0
// FileBatch: the answers to a batch of file requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// How one request ended. Success means that `bytes` is all that was asked; after a failure it is
/// what moved before, and the rest of the buffers or of the file range is undefined.
struct FileResult {
  Status status = {};
  uint64_t bytes = 0;
};

namespace internal {
class FileBatchState;
}

/// What submit() gives back: one outcome a request, and one of all.
/// Ownership: a value; copies share the outcomes.
/// Threads: any thread (with a SteppedExecutor: its owner thread).
class FileBatch {
 public:
  /// Of no request: done.
  FileBatch() = default;

  [[nodiscard]] size_t size() const noexcept;

  /// Done when every request is; fails with the failure that comes first in the batch.
  [[nodiscard]] Completion completion() const;
  /// Of one request. Contract: index < size().
  [[nodiscard]] Completion completion(size_t index) const;

  /// Contract: index < size(), and that request is done.
  [[nodiscard]] const FileResult& result(size_t index) const;

  /// The bytes of the requests that are done.
  [[nodiscard]] uint64_t bytes() const noexcept;

  [[nodiscard]] bool done() const { return completion().done(); }
  [[nodiscard]] Status wait(TimePoint deadline = kNever) const {
    return completion().wait(deadline);
  }

 private:
  friend class FileBatchSource;
  explicit FileBatch(std::shared_ptr<internal::FileBatchState> state) : state_(std::move(state)) {}

  std::shared_ptr<internal::FileBatchState> state_;
};

/// The engine's side of a FileBatch. Copies share it; requests that nobody finished before the last
/// copy goes away fail as kInternal. Threads: any thread; each request is finished by one of them.
class FileBatchSource {
 public:
  FileBatchSource(Executor& executor, size_t num_requests);

  [[nodiscard]] FileBatch batch() const;

  /// Contract: index < size, not finished before.
  void finish(size_t index, FileResult result) const;

 private:
  struct Keeper;

  std::shared_ptr<Keeper> keeper_;
};

}  // namespace kvbm
