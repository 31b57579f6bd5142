// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/output_file.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <system_error>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/replay/interruptible.hpp"

namespace kvbm {
namespace {

constexpr int kCreationAttempts = 100;
constexpr int kMaxLinks = 40;  // as many as the kernel follows
constexpr mode_t kRights = 0777;

// A report on /dev/stdout belongs into the stream, even where that is redirected to a regular file.
bool is_device_path(const std::filesystem::path& path) {
  const std::string& text = path.native();
  return text.starts_with("/dev/") || text.starts_with("/proc/");
}

tl::unexpected<Error> cannot_write(const std::filesystem::path& path, int error_number) {
  if (error_number == EINTR) {
    return make_error(ErrorCode::kCancelled,
                      format_text("writing {} was interrupted", path.native()));
  }
  return errno_error(format_text("cannot write {}", path.native()), error_number);
}

// Where links lead, as a canonical path, whether something is there or not.
Result<std::filesystem::path> follow_links(const std::filesystem::path& asked) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(asked, error);
  for (int links = 0; !error && links <= kMaxLinks; ++links) {
    const auto status = std::filesystem::symlink_status(path, error);
    if (status.type() == std::filesystem::file_type::not_found) error.clear();
    if (error) break;
    if (!std::filesystem::is_symlink(status)) {
      const auto folder = std::filesystem::canonical(path.parent_path(), error);
      if (error) break;
      return folder / path.filename();
    }
    const auto next = std::filesystem::read_symlink(path, error);
    path = path.parent_path() / next;
  }
  return cannot_write(asked, error ? error.value() : ELOOP);
}

// What replaces a file has its owner, where that is allowed, and its rights.
bool take_after(int fd, const struct stat& replaced) {
  static_cast<void>(::fchown(fd, replaced.st_uid, replaced.st_gid));
  return ::fchmod(fd, replaced.st_mode & kRights) == 0;
}

}  // namespace

Result<OutputFile> OutputFile::create(const std::filesystem::path& path,
                                      const std::atomic<bool>* interrupted) {
  if (path.empty()) return make_error(ErrorCode::kInvalidArgument, "the name of a file is empty");
  OutputFile output;
  output.asked_ = path;
  output.interrupted_ = interrupted;

  struct stat found {};
  const bool exists = ::stat(path.c_str(), &found) == 0;
  if (exists && S_ISDIR(found.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("cannot write {}: it is a directory", path.native()));
  }
  if (exists && (!S_ISREG(found.st_mode) || is_device_path(path))) {
    output.file_ = File(open_unless_interrupted(path.c_str(), O_WRONLY, interrupted));
    if (!output.file_) return cannot_write(path, errno);
    // A full pipe is waited for where a signal can end the wait.
    const int flags = ::fcntl(output.file_.fd(), F_GETFL);
    if (flags < 0 || ::fcntl(output.file_.fd(), F_SETFL, flags | O_NONBLOCK) != 0) {
      return cannot_write(path, errno);
    }
    return output;
  }
  KVBM_ASSIGN_OR_RETURN(output.target_, follow_links(path));
  // A file that may not be written is not to be replaced either.
  if (exists && ::access(output.target_.c_str(), W_OK) != 0) return cannot_write(path, errno);

  for (int attempt = 0; attempt < kCreationAttempts; ++attempt) {
    // The target's own name may be as long as a name can be.
    std::filesystem::path temporary = output.target_;
    temporary.replace_filename(format_text(".kvbm-{}-{}.tmp", ::getpid(), attempt));
    const int fd =
        open_unless_interrupted(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL, interrupted);
    if (fd >= 0) {
      output.file_ = File(fd);
      output.temporary_ = std::move(temporary);
      if (exists && !take_after(fd, found)) return cannot_write(path, errno);
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
      temporary_(std::exchange(other.temporary_, {})),
      interrupted_(other.interrupted_) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this != &other) {
    discard();
    file_ = std::move(other.file_);
    asked_ = std::move(other.asked_);
    target_ = std::move(other.target_);
    temporary_ = std::exchange(other.temporary_, {});
    interrupted_ = other.interrupted_;
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
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
      continue;
    }
    int error_number = errno;
    if (error_number == EINTR && !is_interrupted(interrupted_)) continue;
    if (error_number == EAGAIN) {
      error_number = wait_unless_interrupted(file_.fd(), POLLOUT, interrupted_);
      if (error_number == 0) continue;
    }
    discard();
    return cannot_write(asked_, error_number);
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

}  // namespace kvbm
