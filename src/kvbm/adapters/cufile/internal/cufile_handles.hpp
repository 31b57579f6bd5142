// SPDX-License-Identifier: Apache-2.0
// CufileHandles: which files are registered with libcufile, and for how long.
#pragma once

#include <cstddef>
#include <map>

#include "kvbm/adapters/cufile/internal/cufile_library.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// A file is registered when its first request needs it, and until the last one that is pending has
/// ended. No longer: its descriptor may be closed then, and its number may be another file's.
/// Threads: any thread.
class CufileHandles {
 public:
  /// Borrows the calls.
  explicit CufileHandles(const CufileCalls& calls) : calls_(calls) {}
  CufileHandles(const CufileHandles&) = delete;
  CufileHandles& operator=(const CufileHandles&) = delete;

  /// One more request is pending. Does not wait.
  void expect(int fd);
  /// Registers the file unless it is. Errors: those of cufile_error().
  /// Requires: expect(), not followed by leave() yet.
  [[nodiscard]] Result<CufileHandle> open(int fd);
  /// One request less. After the last one the file is not registered any more.
  void leave(int fd) noexcept;

 private:
  struct Entry {
    size_t pending = 0;
    CufileHandle handle = nullptr;
    bool busy = false;  ///< somebody registers or deregisters it
  };

  const CufileCalls& calls_;
  Mutex mutex_{LockRank::kAdapter, "cufile.handles"};
  CondVar changed_;
  std::map<int, Entry> entries_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
