// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/machine.hpp"

#include <sys/statfs.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm {
namespace {

// The number after `name` in a file of "name: 123 kB" or "name 123" lines.
std::optional<uint64_t> find_value(const std::filesystem::path& file, std::string_view name) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string word;
    uint64_t value = 0;
    if (!(words >> word >> value)) continue;
    if (word.ends_with(':')) word.pop_back();
    if (word == name) return value;
  }
  return std::nullopt;
}

// A file that holds one number; "max" is none.
std::optional<uint64_t> read_number(const std::filesystem::path& file) {
  std::ifstream in(file);
  uint64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

struct GroupLimit {
  uint64_t limit = 0;
  uint64_t used = 0;
};

// The memory limit of the control group that a container sees as its own; version 2, then
// version 1.
std::optional<GroupLimit> read_group_limit(const std::filesystem::path& root) {
  struct Version {
    std::string_view folder, limit, used, reclaimable;
  };
  constexpr Version kVersions[] = {
      {"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"},
      {"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
       "total_inactive_file"},
  };
  for (const Version& version : kVersions) {
    const auto folder = root / version.folder;
    const auto limit = read_number(folder / version.limit);
    const auto used = read_number(folder / version.used);
    if (!limit || !used) continue;
    // Cached file pages count as used, but go as soon as memory is asked for.
    const uint64_t reclaimable =
        find_value(folder / "memory.stat", version.reclaimable).value_or(0);
    return GroupLimit{*limit, *used - std::min(*used, reclaimable)};
  }
  return std::nullopt;
}

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

Result<MachineMemory> read_machine_memory(const std::filesystem::path& root) {
  const auto meminfo = root / "proc/meminfo";
  const auto total = find_value(meminfo, "MemTotal");
  const auto available = find_value(meminfo, "MemAvailable");
  if (!total || !available) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("{} does not tell how much memory is free", meminfo.native()));
  }
  MachineMemory memory;
  memory.total = *total * kKiB;
  memory.available = *available * kKiB;
  memory.huge_page_size = find_value(meminfo, "Hugepagesize").value_or(0) * kKiB;
  memory.huge_pages_free = find_value(meminfo, "HugePages_Free").value_or(0);
  if (const auto group = read_group_limit(root); group && group->limit < memory.total) {
    memory.total = group->limit;
    memory.available =
        std::min(memory.available, group->limit - std::min(group->limit, group->used));
  }
  return memory;
}

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
