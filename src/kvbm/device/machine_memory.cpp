// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/machine_memory.hpp"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

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

}  // namespace kvbm
