// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cufile/internal/cufile_handles.hpp"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

void CufileHandles::expect(int fd) {
  const MutexLock lock(mutex_);
  ++entries_[fd].pending;
}

Result<CufileHandle> CufileHandles::open(int fd) {
  Entry* entry = nullptr;
  {
    const MutexLock lock(mutex_);
    entry = &entries_.at(fd);  // stays: this request is pending
    while (entry->busy) changed_.wait(mutex_);
    if (entry->handle != nullptr) return entry->handle;
    entry->busy = true;
  }
  CufileDescriptor descriptor;
  descriptor.fd = fd;
  CufileHandle handle = nullptr;
  const CufileCode code = calls_.register_handle(&handle, &descriptor);
  {
    const MutexLock lock(mutex_);
    entry->busy = false;
    if (code.cufile == 0) entry->handle = handle;
    changed_.notify_all();
  }
  if (code.cufile == 0) return handle;
  // cuFile calls them arguments that are wrong.
  if (::fcntl(fd, F_GETFD) < 0) {
    return make_error(
        Error(ErrorCode::kIo, format_text("{} is no open file", fd), NativeDomain::kErrno, errno));
  }
  return make_error(cufile_error(format_text("file {} is not registered", fd), code));
}

void CufileHandles::leave(int fd) noexcept {
  CufileHandle last = nullptr;
  {
    const MutexLock lock(mutex_);
    const auto found = entries_.find(fd);
    Entry& entry = found->second;
    if (--entry.pending > 0 || entry.busy) return;  // who deregisters it erases the entry
    if (entry.handle == nullptr) {
      entries_.erase(found);
      return;
    }
    last = std::exchange(entry.handle, nullptr);
    entry.busy = true;
  }
  calls_.deregister_handle(last);
  const MutexLock lock(mutex_);
  const auto found = entries_.find(fd);
  found->second.busy = false;
  // A request that came meanwhile registers it anew.
  if (found->second.pending == 0) entries_.erase(found);
  changed_.notify_all();
}

}  // namespace kvbm::internal
