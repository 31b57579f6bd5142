// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cufile/cufile_file_engine.hpp"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "kvbm/adapters/cufile/internal/cufile_handles.hpp"
#include "kvbm/adapters/cufile/internal/cufile_library.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/memory/file_request_queue.hpp"

namespace kvbm {

using internal::CufileCalls;
using internal::CufileHandle;
using internal::CufileHandles;
using internal::CufileLibrary;

namespace {

/// How often a file may say "try again" in turn without moving a byte.
constexpr int kMostFutileTries = 1000;

constexpr std::string_view kCompatibilityOnly =
    "runs in its compatibility mode here, which goes through host memory all the same: load "
    "nvidia-fs, or allow that mode";

Result<std::unique_ptr<const CufileLibrary>> open_library(const CufileFileEngineOptions& options) {
  KVBM_ASSIGN_OR_RETURN(auto library, CufileLibrary::open(options.library));
  if (!library->is_direct() && options.compatibility == CufileCompatibility::kRefuse) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("{} {}", library->version(), kCompatibilityOnly));
  }
  return library;
}

std::string_view verb(FileOp op) { return op == FileOp::kRead ? "read" : "write"; }

/// One buffer of a device, to its last byte or to an error.
FileResult transfer(const CufileCalls& calls, CufileHandle handle, const FileRequest& request,
                    uint64_t offset, const IoBuffer& buffer) {
  FileResult result;
  int futile_tries = 0;
  const auto cannot = [&] {
    return format_text("cannot {} {} bytes of device memory at offset {} of file {}, {} moved",
                       verb(request.op), buffer.size, offset, request.file.fd, result.bytes);
  };
  while (result.bytes < buffer.size) {
    const size_t left = buffer.size - result.bytes;
    const auto in_file = static_cast<off_t>(offset + result.bytes);
    const auto in_buffer = static_cast<off_t>(result.bytes);
    errno = 0;
    const ssize_t moved = request.op == FileOp::kRead
                              ? calls.read(handle, buffer.data, left, in_file, in_buffer)
                              : calls.write(handle, buffer.data, left, in_file, in_buffer);
    if (moved > 0) {
      futile_tries = 0;
      // More than was asked would be a defect of the library; no byte of it is believed.
      if (static_cast<size_t>(moved) > left) {
        result.status =
            make_error(ErrorCode::kInternal,
                       format_text("{}: cuFile says {} of {} bytes", cannot(), moved, left));
        return result;
      }
      result.bytes += static_cast<uint64_t>(moved);
      if (result.bytes == buffer.size || !request.file.alignment.direct() ||
          result.bytes % request.file.alignment.offset == 0) {
        continue;
      }
    }
    if (moved >= 0) {
      result.status = make_error(
          ErrorCode::kIo, format_text("{}: {}", cannot(),
                                      request.op == FileOp::kRead ? "the file ends there"
                                                                  : "the file takes no more"));
    } else if (moved == -1) {
      const int error_number = errno;
      if (error_number == EINTR) continue;
      if (error_number == EAGAIN && ++futile_tries < kMostFutileTries) continue;
      const bool full = error_number == ENOSPC || error_number == EDQUOT;
      result.status = make_error(Error(full ? ErrorCode::kExhausted : ErrorCode::kIo, cannot(),
                                       NativeDomain::kErrno, error_number));
    } else {
      result.status = make_error(
          internal::cufile_error(cannot(), {.cufile = static_cast<int>(-moved), .cuda = 0}));
    }
    return result;
  }
  return result;
}

}  // namespace

class CufileFileEngine::Core final : public FileRequestQueue::Handler {
 public:
  explicit Core(CufileFileEngineOptions& options)
      : host_(std::move(options.host)),
        enter_device_(std::move(options.enter_device)),
        process_(::getpid()),
        library_(open_library(options)) {
    if (library_) handles_.emplace((*library_)->calls());
  }

  Status start(const CufileFileEngineOptions& options) {
    KVBM_ASSIGN_OR_RETURN(queue_, FileRequestQueue::create({.executor = options.executor,
                                                            .num_threads = options.num_threads,
                                                            .max_pending = options.max_pending,
                                                            .name = options.name},
                                                           *this));
    return {};
  }

  [[nodiscard]] FileEngineCapabilities capabilities() const {
    FileEngineCapabilities capabilities = host_->capabilities();
    capabilities.name = format_text("cufile over {}", capabilities.name);
    capabilities.max_pending = std::min(capabilities.max_pending, queue_->options().max_pending);
    capabilities.device_memory = library_.has_value();
    if (!library_) {
      capabilities.device_memory_note = library_.error().message();
    } else {
      capabilities.device_memory_note =
          format_text("{}, {}", (*library_)->version(),
                      (*library_)->is_direct() ? "GPU Direct Storage" : "its compatibility mode");
    }
    return capabilities;
  }

  Status reach_device(const FileRef& file) {
    KVBM_TRY(usable());
    const std::shared_ptr<const void> entered = enter();
    handles_->expect(file.fd);
    Result<CufileHandle> handle = handles_->open(file.fd);
    handles_->leave(file.fd);
    if (handle) return {};
    return make_error(ErrorCode::kUnsupported, handle.error().describe());
  }

  Result<FileBatch> submit(std::vector<FileRequest> requests) {
    const bool with_device = std::ranges::any_of(requests, &FileRequest::names_device);
    if (!with_device) return host_->submit(std::move(requests));
    KVBM_TRY(same_process());
    return queue_->submit(std::move(requests));
  }

  void on_taken(const FileRequest& request) override {
    if (handles_ && request.names_device()) handles_->expect(request.file.fd);
  }

  void on_left(const FileRequest& request) noexcept override {
    if (handles_ && request.names_device()) handles_->leave(request.file.fd);
  }

  [[nodiscard]] FileResult perform(const FileRequest& request) override {
    if (Status valid = check_file_request(request); !valid) return {std::move(valid), 0};
    if (!request.names_device()) return run_host_request(request);
    if (Status can = usable(); !can) return {std::move(can), 0};
    const std::shared_ptr<const void> entered = enter();
    const Result<CufileHandle> handle = handles_->open(request.file.fd);
    if (!handle) return {make_error(Error(handle.error())), 0};
    return move(request, *handle);
  }

 private:
  /// Errors: kUnsupported.
  [[nodiscard]] Status usable() const {
    if (!library_) return make_error(ErrorCode::kUnsupported, library_.error().message());
    return same_process();
  }

  /// Errors: kUnsupported.
  [[nodiscard]] Status same_process() const {
    if (::getpid() == process_) return {};
    return make_error(ErrorCode::kUnsupported,
                      "libcufile does not survive a fork: make a file engine in the new process");
  }

  [[nodiscard]] std::shared_ptr<const void> enter() const {
    return enter_device_ ? enter_device_() : nullptr;
  }

  /// Neighbours in host memory by one call, those of the device one by one.
  [[nodiscard]] FileResult move(const FileRequest& request, CufileHandle handle) const {
    FileResult whole;
    std::span<const IoBuffer> rest = request.buffers;
    while (!rest.empty() && whole.status) {
      const auto is_device = [](const IoBuffer& buffer) {
        return buffer.place == BufferPlace::kDevice;
      };
      const uint64_t offset = request.offset + whole.bytes;
      FileResult part;
      size_t taken = 1;
      if (is_device(rest.front())) {
        part = transfer((*library_)->calls(), handle, request, offset, rest.front());
      } else {
        taken = static_cast<size_t>(std::ranges::find_if(rest, is_device) - rest.begin());
        part = run_host_request(
            {.op = request.op,
             .file = request.file,
             .offset = offset,
             .buffers = {rest.begin(), rest.begin() + static_cast<ptrdiff_t>(taken)}});
      }
      rest = rest.subspan(taken);
      whole.bytes += part.bytes;
      whole.status = std::move(part.status);
    }
    return whole;
  }

  const std::unique_ptr<FileEngine> host_;
  const std::function<std::shared_ptr<const void>()> enter_device_;
  const pid_t process_;
  const Result<std::unique_ptr<const CufileLibrary>> library_;
  std::optional<CufileHandles> handles_;  // nothing without the library
  std::unique_ptr<FileRequestQueue> queue_;
};

Result<std::unique_ptr<CufileFileEngine>> CufileFileEngine::create(
    CufileFileEngineOptions options) {
  if (options.host == nullptr) {
    return make_error(ErrorCode::kInvalidArgument,
                      "cufile serves memory of devices alone: give an engine for that of the host");
  }
  auto core = std::make_unique<Core>(options);
  KVBM_TRY(core->start(options));
  return std::unique_ptr<CufileFileEngine>(new CufileFileEngine(std::move(core)));
}

CufileFileEngine::CufileFileEngine(std::unique_ptr<Core> core) : core_(std::move(core)) {}

CufileFileEngine::~CufileFileEngine() = default;

Result<CufileInfo> CufileFileEngine::find(const std::string& library) {
  KVBM_ASSIGN_OR_RETURN(const auto opened, CufileLibrary::open(library));
  return CufileInfo{.version = opened->version(), .is_direct = opened->is_direct()};
}

FileEngineCapabilities CufileFileEngine::capabilities() const { return core_->capabilities(); }

Status CufileFileEngine::reach_device(const FileRef& file) { return core_->reach_device(file); }

Result<FileBatch> CufileFileEngine::submit(std::vector<FileRequest> requests) {
  return core_->submit(std::move(requests));
}

}  // namespace kvbm
