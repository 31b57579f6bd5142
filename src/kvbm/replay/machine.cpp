// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/machine.hpp"

#include <sys/statfs.h>
#include <sys/statvfs.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

std::string name_of_file_system(uint64_t magic) {
  constexpr std::pair<uint64_t, std::string_view> kNames[] = {
      {0xef53, "ext4"},      {0x58465342, "xfs"},     {0x9123683e, "btrfs"},
      {0x01021994, "tmpfs"}, {0x794c7630, "overlay"}, {0x6969, "nfs"},
      {0x2fc12fc1, "zfs"},   {0x65735546, "fuse"},    {0xf2f52010, "f2fs"},
      {0x01021997, "9p"},    {0x0bd00bd0, "lustre"},  {0xff534d42, "cifs"},
      {0xfe534d42, "smb2"},  {0x858458f6, "ramfs"},   {0x73717368, "squashfs"},
      {0x47504653, "gpfs"},  {0x00c36400, "ceph"},
  };
  for (const auto& [number, name] : kNames) {
    if (number == magic) return std::string(name);
  }
  return std::to_string(magic);
}

}  // namespace

Result<DiskSpace> read_disk_space(const std::filesystem::path& folder) {
  struct statvfs space {};
  struct statfs kind {};
  if (::statvfs(folder.c_str(), &space) != 0 || ::statfs(folder.c_str(), &kind) != 0) {
    return errno_error(format_text("cannot look at {}", folder.native()), errno);
  }
  DiskSpace disk;
  disk.total = uint64_t{space.f_blocks} * space.f_frsize;
  disk.free = uint64_t{space.f_bavail} * space.f_frsize;
  disk.file_system = name_of_file_system(static_cast<uint32_t>(kind.f_type));
  return disk;
}

}  // namespace kvbm
