// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <system_error>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

constexpr int kCreationAttempts = 100;
constexpr mode_t kMode = 0666;  // less the umask, as for any file a program makes

int open_retrying(const char* path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path, flags | O_CLOEXEC, kMode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

// A report on /dev/stdout belongs into the stream, even where that is redirected to a regular file.
bool is_device_path(const std::filesystem::path& path) {
  const std::string& text = path.native();
  return text.starts_with("/dev/") || text.starts_with("/proc/");
}

tl::unexpected<Error> cannot_write(const std::filesystem::path& path, int error_number) {
  return errno_error(format_text("cannot write {}", path.native()), error_number);
}

}  // namespace

Result<OutputFile> OutputFile::create(const std::filesystem::path& path) {
  if (path.empty()) return make_error(ErrorCode::kInvalidArgument, "the name of a file is empty");
  OutputFile output;
  output.asked_ = path;
  output.target_ = path;

  struct stat found {};
  const bool exists = ::stat(path.c_str(), &found) == 0;
  if (exists && S_ISDIR(found.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("cannot write {}: it is a directory", path.native()));
  }
  if (exists && (!S_ISREG(found.st_mode) || is_device_path(path))) {
    output.file_ = File(open_retrying(path.c_str(), O_WRONLY));
    if (!output.file_) return cannot_write(path, errno);
    return output;
  }
  if (exists) {
    std::error_code error;
    output.target_ = std::filesystem::canonical(path, error);
    if (error) return cannot_write(path, error.value());
    // A file that may not be written is not to be replaced either.
    if (::access(output.target_.c_str(), W_OK) != 0) return cannot_write(path, errno);
  }

  for (int attempt = 0; attempt < kCreationAttempts; ++attempt) {
    std::filesystem::path temporary = output.target_;
    temporary.replace_filename(
        format_text(".{}.{}-{}.tmp", output.target_.filename().native(), ::getpid(), attempt));
    const int fd = open_retrying(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL);
    if (fd >= 0) {
      output.file_ = File(fd);
      output.temporary_ = std::move(temporary);
      return output;
    }
    if (errno != EEXIST) break;
  }
  return cannot_write(path, errno);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : file_(std::move(other.file_)),
      asked_(std::move(other.asked_)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this != &other) {
    discard();
    file_ = std::move(other.file_);
    asked_ = std::move(other.asked_);
    target_ = std::move(other.target_);
    temporary_ = std::exchange(other.temporary_, {});
  }
  return *this;
}

OutputFile::~OutputFile() { discard(); }

void OutputFile::discard() noexcept {
  file_ = File();
  if (!temporary_.empty()) static_cast<void>(::unlink(temporary_.c_str()));
  temporary_.clear();
}

Status OutputFile::append(std::string_view text) {
  KVBM_CONTRACT(static_cast<bool>(file_), "a file that has ended takes no more text");
  while (!text.empty()) {
    const ssize_t written = ::write(file_.fd(), text.data(), text.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      const int error_number = errno;
      discard();
      return cannot_write(asked_, error_number);
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  return {};
}

Status OutputFile::commit() {
  KVBM_CONTRACT(static_cast<bool>(file_), "a file ends once");
  if (temporary_.empty()) {
    file_ = File();
    return {};
  }
  // Some file systems tell of a full disk only now; and a rename must not overtake the bytes.
  const bool renamed =
      ::fsync(file_.fd()) == 0 && std::rename(temporary_.c_str(), target_.c_str()) == 0;
  const int error_number = errno;
  if (renamed) temporary_.clear();
  discard();
  if (!renamed) return cannot_write(asked_, error_number);
  return {};
}

Status write_file(const std::filesystem::path& path, std::string_view text) {
  KVBM_ASSIGN_OR_RETURN(auto output, OutputFile::create(path));
  KVBM_TRY(output.append(text));
  return output.commit();
}

}  // namespace kvbm
