// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/file_request_queue.hpp"

#include <exception>
#include <new>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/memory/internal/file_transfer.hpp"

namespace kvbm {

namespace {

/// Catches what a thread must not let out.
FileResult guarded(FileRequestQueue::Handler& handler, const FileRequest& request) {
  try {
    return handler.perform(request);
  } catch (const std::exception& exception) {
    return {
        make_error(ErrorCode::kInternal, format_text("a file request threw: {}", exception.what())),
        0};
  }
}

}  // namespace

Status check_file_request(const FileRequest& request) { return internal::check_request(request); }

Status check_host_request(const FileRequest& request) {
  if (request.names_device()) {
    return make_error(ErrorCode::kUnsupported,
                      "this file engine reaches memory of the host alone, and a buffer is a "
                      "device's: copy through host memory");
  }
  return internal::check_request(request);
}

FileResult run_host_request(const FileRequest& request) {
  return internal::transfer(request, internal::TransferCalls::system());
}

/// A batch at work.
struct FileRequestQueue::Work {
  Work(Executor& executor, std::vector<FileRequest> batch_requests)
      : requests(std::move(batch_requests)), source(executor, requests.size()) {}

  const std::vector<FileRequest> requests;
  const FileBatchSource source;
};

Result<std::unique_ptr<FileRequestQueue>> FileRequestQueue::create(FileRequestQueueOptions options,
                                                                   Handler& handler) {
  KVBM_ASSIGN_OR_RETURN(auto queue,
                        options.executor.create_queue({.name = options.name,
                                                       .num_threads = options.num_threads,
                                                       .capacity = options.max_pending}));
  return std::unique_ptr<FileRequestQueue>(
      new FileRequestQueue(std::move(options), handler, std::move(queue)));
}

FileRequestQueue::FileRequestQueue(FileRequestQueueOptions options, Handler& handler,
                                   std::unique_ptr<TaskQueue> queue)
    : options_(std::move(options)), handler_(handler), queue_(std::move(queue)) {}

FileRequestQueue::~FileRequestQueue() {
  closing_.store(true, std::memory_order_release);
  queue_->stop();
}

Result<FileBatch> FileRequestQueue::submit(std::vector<FileRequest> requests) {
  const size_t count = requests.size();
  if (count == 0) return FileBatch();
  KVBM_TRY(reserve(count));
  std::shared_ptr<const Work> work;
  size_t taken = 0;
  try {
    work = std::make_shared<const Work>(options_.executor, std::move(requests));
    for (; taken < count; ++taken) handler_.on_taken(work->requests[taken]);
  } catch (...) {
    while (taken > 0) handler_.on_left(work->requests[--taken]);
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

Status FileRequestQueue::reserve(size_t count) {
  if (closing_.load(std::memory_order_acquire)) {
    return make_error(ErrorCode::kUnavailable,
                      format_text("file engine {} is being destroyed", options_.name));
  }
  if (count > options_.max_pending) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("a batch of {} requests is more than the {} that file engine {} "
                                  "holds; split it",
                                  count, options_.max_pending, options_.name));
  }
  size_t pending = pending_.load(std::memory_order_relaxed);
  do {
    if (count > options_.max_pending - pending) {
      return make_error(ErrorCode::kExhausted,
                        format_text("file engine {} holds {} requests and has no room for {} more; "
                                    "wait for some to end",
                                    options_.name, pending, count));
    }
  } while (!pending_.compare_exchange_weak(pending, pending + count, std::memory_order_relaxed));
  return {};
}

void FileRequestQueue::run(const Work& work, size_t index) {
  if (closing_.load(std::memory_order_acquire)) {
    finish(work, index,
           {make_error(ErrorCode::kCancelled,
                       format_text("file engine {} was destroyed before the request started",
                                   options_.name)),
            0});
    return;
  }
  finish(work, index, guarded(handler_, work.requests[index]));
}

/// Makes room before it tells, so that whoever is told can submit again.
void FileRequestQueue::finish(const Work& work, size_t index, FileResult result) {
  handler_.on_left(work.requests[index]);
  pending_.fetch_sub(1, std::memory_order_relaxed);
  work.source.finish(index, std::move(result));
}

}  // namespace kvbm
