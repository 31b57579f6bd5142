// SPDX-License-Identifier: Apache-2.0
// A libcufile over plain memory, for the same dlopen that finds NVIDIA's.
// KVBM_FAKE_CUFILE_WITHOUT_WRITE leaves an entry point out.
#include "tests/support/fake_cufile.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace {

using kvbm::testing::FakeCufile;
using kvbm::testing::FakeCufileIo;

constexpr int kDriverNotInitialized = 5001;
constexpr int kInvalidValue = 5022;
constexpr int kHandleNotRegistered = 5027;
constexpr int kHandleAlreadyRegistered = 5028;

struct Code {
  int cufile;
  int cuda;
};

struct Descriptor {
  int type;
  union {
    int fd;
    void* other;
  };
  const void* file_system;
};

struct Properties {
  unsigned major;
  unsigned minor;
  size_t poll_threshold;
  size_t max_direct_io;
  unsigned status_flags;
  unsigned control_flags;
  unsigned features;
  unsigned sizes[5];
};

FakeCufile& fake() {
  static FakeCufile one;
  return one;
}

Code told(int code) { return {code, code == 0 ? 0 : fake().cuda_code}; }

/// Of a handle, which is the descriptor and one, so that none is null; -1 for what is none.
int descriptor_of(void* handle) {
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(handle)) - 1;
  const std::lock_guard lock(fake().mutex);
  return fake().registered.contains(fd) ? fd : -1;
}

ssize_t move(FakeCufileIo io, void* handle) {
  io.fd = descriptor_of(handle);
  if (fake().num_opened == 0 || io.fd < 0) {
    ++fake().num_misuses;
    return fake().num_opened == 0 ? -kDriverNotInitialized : -kHandleNotRegistered;
  }
  {
    const std::lock_guard lock(fake().mutex);
    fake().asked.push_back(io);
  }
  if (fake().before_io) {
    const ssize_t answer = fake().before_io(io);
    if (answer != FakeCufile::kGoOn) return answer;
  }
  auto* bytes = const_cast<std::byte*>(io.address);
  if (fake().behind) bytes = fake().behind(io.address);
  if (bytes == nullptr) {
    errno = EPERM;  // as the real one has it for what is no memory of a GPU
    return -1;
  }
  return io.writes ? ::pwrite(io.fd, bytes, io.size, io.in_file)
                   : ::pread(io.fd, bytes, io.size, io.in_file);
}

}  // namespace

extern "C" {

FakeCufile* kvbm_fake_cufile() { return &fake(); }

Code cuFileDriverOpen() {
  if (fake().open_code == 0) ++fake().num_opened;
  return told(fake().open_code);
}

Code cuFileDriverClose_v2() {
  if (fake().num_opened == 0) {
    ++fake().num_misuses;
    return told(kDriverNotInitialized);
  }
  --fake().num_opened;
  return told(0);
}

Code cuFileDriverGetProperties(Properties* properties) {
  std::memset(properties, 0, sizeof(*properties));
  properties->major = fake().nvidia_fs_major;
  properties->features = fake().features;
  return told(fake().properties_code);
}

Code cuFileGetVersion(int* version) {
  *version = fake().version;
  return told(0);
}

Code cuFileHandleRegister(void** handle, Descriptor* descriptor) {
  if (fake().register_code != 0) return told(fake().register_code);
  if (descriptor->type != 1 || ::lseek(descriptor->fd, 0, SEEK_CUR) < 0) return told(kInvalidValue);
  const std::lock_guard lock(fake().mutex);
  if (fake().registered.contains(descriptor->fd)) {
    ++fake().num_misuses;
    return told(kHandleAlreadyRegistered);
  }
  fake().registered.insert(descriptor->fd);
  ++fake().num_registrations;
  *handle = reinterpret_cast<void*>(static_cast<intptr_t>(descriptor->fd) + 1);
  return told(0);
}

void cuFileHandleDeregister(void* handle) {
  const int fd = descriptor_of(handle);
  const std::lock_guard lock(fake().mutex);
  if (fake().registered.erase(fd) != 1) ++fake().num_misuses;
}

ssize_t cuFileRead(void* handle, void* base, size_t size, off_t in_file, off_t in_buffer) {
  return move({.writes = false,
               .address = static_cast<std::byte*>(base) + in_buffer,
               .size = size,
               .in_file = in_file},
              handle);
}

#ifndef KVBM_FAKE_CUFILE_WITHOUT_WRITE
ssize_t cuFileWrite(void* handle, const void* base, size_t size, off_t in_file, off_t in_buffer) {
  return move({.writes = true,
               .address = static_cast<const std::byte*>(base) + in_buffer,
               .size = size,
               .in_file = in_file},
              handle);
}
#endif

}  // extern "C"
