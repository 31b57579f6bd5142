// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/posix_file_engine.hpp"

#include <utility>

#include "kvbm/memory/file_request_queue.hpp"

namespace kvbm {

namespace {

constexpr uint32_t kPreferredAlignment = 4096;
constexpr std::string_view kHostAlone = "reads and writes reach memory of the host alone";

}  // namespace

class PosixFileEngine::Core final : public FileRequestQueue::Handler {
 public:
  Status start(const PosixFileEngineOptions& options) {
    KVBM_ASSIGN_OR_RETURN(queue_, FileRequestQueue::create({.executor = options.executor,
                                                            .num_threads = options.num_threads,
                                                            .max_pending = options.max_pending,
                                                            .name = options.name},
                                                           *this));
    return {};
  }

  [[nodiscard]] FileRequestQueue& queue() const noexcept { return *queue_; }

  [[nodiscard]] FileResult perform(const FileRequest& request) override {
    if (Status valid = check_host_request(request); !valid) return {std::move(valid), 0};
    return run_host_request(request);
  }

 private:
  std::unique_ptr<FileRequestQueue> queue_;
};

Result<std::unique_ptr<PosixFileEngine>> PosixFileEngine::create(
    const PosixFileEngineOptions& options) {
  auto core = std::make_unique<Core>();
  KVBM_TRY(core->start(options));
  return std::unique_ptr<PosixFileEngine>(new PosixFileEngine(std::move(core)));
}

PosixFileEngine::PosixFileEngine(std::unique_ptr<Core> core) : core_(std::move(core)) {}

PosixFileEngine::~PosixFileEngine() = default;

FileEngineCapabilities PosixFileEngine::capabilities() const {
  const FileRequestQueueOptions& options = core_->queue().options();
  return {.name = "posix",
          .max_parallel = options.num_threads,
          .max_pending = options.max_pending,
          .preferred = {.memory = kPreferredAlignment, .offset = kPreferredAlignment},
          .device_memory_note = std::string(kHostAlone)};
}

Status PosixFileEngine::reach_device(const FileRef& /*file*/) {
  return make_error(ErrorCode::kUnsupported, std::string(kHostAlone));
}

Result<FileBatch> PosixFileEngine::submit(std::vector<FileRequest> requests) {
  return core_->queue().submit(std::move(requests));
}

}  // namespace kvbm
