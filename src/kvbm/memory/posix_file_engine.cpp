// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/posix_file_engine.hpp"

#include <atomic>
#include <exception>
#include <new>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/memory/internal/file_transfer.hpp"

namespace kvbm {

namespace {

constexpr uint32_t kPreferredAlignment = 4096;

/// Catches what a thread must not let out.
FileResult perform(const FileRequest& request) {
  try {
    if (Status valid = internal::check_request(request); !valid) return {std::move(valid), 0};
    return internal::transfer(request, internal::TransferCalls::system());
  } catch (const std::exception& exception) {
    return {
        make_error(ErrorCode::kInternal, format_text("a file request threw: {}", exception.what())),
        0};
  }
}

}  // namespace

class PosixFileEngine::Core {
 public:
  Core(PosixFileEngineOptions options, std::unique_ptr<TaskQueue> queue)
      : options_(std::move(options)), queue_(std::move(queue)) {}

  [[nodiscard]] const PosixFileEngineOptions& options() const noexcept { return options_; }

  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) {
    const size_t count = requests.size();
    if (count == 0) return FileBatch();
    KVBM_TRY(reserve(count));
    std::shared_ptr<const Work> work;
    try {
      work = std::make_shared<const Work>(options_.executor, std::move(requests));
    } catch (...) {
      pending_.fetch_sub(count, std::memory_order_relaxed);
      throw;
    }
    // From here on the batch is taken: whatever happens is told by its requests.
    FileBatch batch = work->source.batch();
    for (size_t i = 0; i < count; ++i) {
      Status posted;
      try {
        posted = queue_->try_post([this, work, i] { run(*work, i); });
      } catch (const std::bad_alloc&) {
        posted = make_error(ErrorCode::kExhausted, "out of memory");  // short: it is not allocated
      }
      if (!posted) finish(*work, i, {std::move(posted), 0});
    }
    return batch;
  }

  void close() {
    closing_.store(true, std::memory_order_release);
    queue_->stop();
  }

 private:
  /// A batch at work.
  struct Work {
    Work(Executor& executor, std::vector<FileRequest> batch_requests)
        : requests(std::move(batch_requests)), source(executor, requests.size()) {}

    const std::vector<FileRequest> requests;
    const FileBatchSource source;
  };

  Status reserve(size_t count) {
    if (closing_.load(std::memory_order_acquire)) {
      return make_error(ErrorCode::kUnavailable,
                        format_text("file engine {} is being destroyed", options_.name));
    }
    if (count > options_.max_pending) {
      return make_error(
          ErrorCode::kInvalidArgument,
          format_text("a batch of {} requests is more than the {} that file engine {} "
                      "holds; split it",
                      count, options_.max_pending, options_.name));
    }
    size_t pending = pending_.load(std::memory_order_relaxed);
    do {
      if (count > options_.max_pending - pending) {
        return make_error(
            ErrorCode::kExhausted,
            format_text("file engine {} holds {} requests and has no room for {} more; "
                        "wait for some to end",
                        options_.name, pending, count));
      }
    } while (!pending_.compare_exchange_weak(pending, pending + count, std::memory_order_relaxed));
    return {};
  }

  void run(const Work& work, size_t index) {
    if (closing_.load(std::memory_order_acquire)) {
      finish(work, index,
             {make_error(ErrorCode::kCancelled,
                         format_text("file engine {} was destroyed before the request started",
                                     options_.name)),
              0});
      return;
    }
    finish(work, index, perform(work.requests[index]));
  }

  /// Makes room before it tells, so that whoever is told can submit again.
  void finish(const Work& work, size_t index, FileResult result) {
    pending_.fetch_sub(1, std::memory_order_relaxed);
    work.source.finish(index, std::move(result));
  }

  const PosixFileEngineOptions options_;
  std::atomic<size_t> pending_{0};
  std::atomic<bool> closing_{false};
  const std::unique_ptr<TaskQueue> queue_;
};

Result<std::unique_ptr<PosixFileEngine>> PosixFileEngine::create(PosixFileEngineOptions options) {
  KVBM_ASSIGN_OR_RETURN(auto queue,
                        options.executor.create_queue({.name = options.name,
                                                       .num_threads = options.num_threads,
                                                       .capacity = options.max_pending}));
  auto core = std::make_unique<Core>(std::move(options), std::move(queue));
  return std::unique_ptr<PosixFileEngine>(new PosixFileEngine(std::move(core)));
}

PosixFileEngine::PosixFileEngine(std::unique_ptr<Core> core) : core_(std::move(core)) {}

PosixFileEngine::~PosixFileEngine() { core_->close(); }

FileEngineCapabilities PosixFileEngine::capabilities() const {
  return {.name = "posix",
          .max_parallel = core_->options().num_threads,
          .max_pending = core_->options().max_pending,
          .preferred = {.memory = kPreferredAlignment, .offset = kPreferredAlignment}};
}

Result<FileBatch> PosixFileEngine::submit(std::vector<FileRequest> requests) {
  return core_->submit(std::move(requests));
}

}  // namespace kvbm
