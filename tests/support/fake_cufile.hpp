// SPDX-License-Identifier: Apache-2.0
// FakeCufile: what a libcufile that is none does, and what was asked of it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <vector>

namespace kvbm::testing {

/// One call of cuFileRead or cuFileWrite.
struct FakeCufileIo {
  bool writes = false;
  int fd = -1;
  const std::byte* address = nullptr;
  size_t size = 0;
  off_t in_file = 0;
};

/// Of one library: one is loaded for each file of it, and tests set it before engines use it.
struct FakeCufile {
  // What it answers. Codes are those of CUfileOpError.
  int open_code = 0;
  int properties_code = 0;
  int register_code = 0;
  int cuda_code = 0;             ///< beside each of them
  unsigned nvidia_fs_major = 0;  ///< 0: the compatibility mode
  unsigned features = 0xf;
  int version = 1140;
  /// In front of each I/O; what it returns is the answer, unless it is kGoOn. May set errno, and
  /// change the size.
  static constexpr ssize_t kGoOn = -1'000'000;
  std::function<ssize_t(FakeCufileIo&)> before_io = nullptr;
  /// Where the bytes of a device are. Null: where its addresses say.
  std::function<std::byte*(const std::byte*)> behind = nullptr;

  // What was asked of it.
  std::atomic<int> num_opened{0};  ///< and not closed
  std::atomic<int> num_registrations{0};
  std::mutex mutex;
  std::multiset<int> registered;  ///< descriptors, at this moment
  std::vector<FakeCufileIo> asked;
  std::atomic<int> num_misuses{0};  ///< of handles that are not, or no more; of a closed driver
};

/// The symbol of a fake library that gives it.
inline constexpr char kFakeCufileSymbol[] = "kvbm_fake_cufile";
using FakeCufileSymbol = FakeCufile*();

}  // namespace kvbm::testing
