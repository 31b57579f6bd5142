// SPDX-License-Identifier: Apache-2.0
// FileRequestQueue: the part of a FileEngine that is the same for all whose calls block a thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/memory/file_batch.hpp"
#include "kvbm/memory/file_engine.hpp"

namespace kvbm {

/// Errors: kInvalidArgument, kUnsupported (a buffer of a device); see FileEngine.
[[nodiscard]] Status check_host_request(const FileRequest& request);
/// The same of a request that may have buffers of a device as well.
[[nodiscard]] Status check_file_request(const FileRequest& request);

/// By preadv and pwritev on the calling thread, to the last byte or to an error.
/// Requires: check_host_request() passed.
[[nodiscard]] FileResult run_host_request(const FileRequest& request);

struct FileRequestQueueOptions {
  Executor& executor;
  size_t num_threads = 4;
  size_t max_pending = 4096;  ///< requests; full: submit fails with kExhausted
  std::string name = "file";  ///< of the task queue
};

/// One task a request on a TaskQueue of its own, in the order of submission.
/// Ownership, threads: as FileEngine has them.
class FileRequestQueue {
 public:
  /// What an engine does with requests. Each one that is taken has left before it is told.
  class Handler {
   public:
    virtual ~Handler() = default;
    Handler(const Handler&) = delete;
    Handler& operator=(const Handler&) = delete;

    /// On the thread that submits: does not wait.
    virtual void on_taken(const FileRequest& /*request*/) {}
    /// On a thread of the queue; what it throws becomes kInternal. Not for what is cancelled.
    [[nodiscard]] virtual FileResult perform(const FileRequest& request) = 0;
    virtual void on_left(const FileRequest& /*request*/) noexcept {}

   protected:
    Handler() = default;
  };

  /// `handler` outlives the queue. Errors: kInvalidArgument (an option that is zero or empty),
  /// kExhausted (no thread).
  [[nodiscard]] static Result<std::unique_ptr<FileRequestQueue>> create(
      FileRequestQueueOptions options, Handler& handler);
  /// Finishes what runs, cancels what waits.
  ~FileRequestQueue();

  [[nodiscard]] const FileRequestQueueOptions& options() const noexcept { return options_; }
  /// Errors: those of FileEngine::submit.
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests);

 private:
  struct Work;

  FileRequestQueue(FileRequestQueueOptions options, Handler& handler,
                   std::unique_ptr<TaskQueue> queue);

  Status reserve(size_t count);
  void run(const Work& work, size_t index);
  void finish(const Work& work, size_t index, FileResult result);

  const FileRequestQueueOptions options_;
  Handler& handler_;
  std::atomic<size_t> pending_{0};
  std::atomic<bool> closing_{false};
  const std::unique_ptr<TaskQueue> queue_;
};

}  // namespace kvbm
