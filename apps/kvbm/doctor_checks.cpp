// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbm/doctor_checks.hpp"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "kvbm/base/units.hpp"
#include "kvbm/replay/machine.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/gds.hpp"

#include "apps/kvbm/build_info.hpp"
#include "apps/kvbm/console.hpp"

namespace kvbm {
namespace {

constexpr uint64_t kLittleMemory = 4 * kGiB;
constexpr uint64_t kLittleDisk = 10 * kGiB;
constexpr uint64_t kLittleLockedMemory = kGiB;

DoctorFinding ok(std::string found) { return {DoctorStatus::kOk, std::move(found), ""}; }
DoctorFinding warn(std::string found, std::string mend) {
  return {DoctorStatus::kWarn, std::move(found), std::move(mend)};
}
DoctorFinding missing(std::string found, std::string mend) {
  return {DoctorStatus::kMissing, std::move(found), std::move(mend)};
}

std::string first_line_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

DoctorFinding look_at_cores(const DoctorOptions& /*options*/) {
  const long present = ::sysconf(_SC_NPROCESSORS_ONLN);
  cpu_set_t set;
  CPU_ZERO(&set);
  const long usable = ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : present;
  std::string found = fmt::format("{} of {} may be used", usable, present);
  if (usable >= 2) return ok(std::move(found));
  return warn(std::move(found), "give the process two, or copies and the engine share one");
}

DoctorFinding look_at_memory(const DoctorOptions& /*options*/) {
  const auto memory = read_machine_memory();
  if (!memory) return warn(explain(memory.error()), "choose the sizes of G1 and G2 with care");
  std::string found =
      fmt::format("{} free of {}", format_size(memory->available), format_size(memory->total));
  if (memory->available >= kLittleMemory) return ok(std::move(found));
  return warn(std::move(found), "free some or raise the limit: there is little room for G2");
}

DoctorFinding look_at_huge_pages(const DoctorOptions& /*options*/) {
  const std::string modes = first_line_of("/sys/kernel/mm/transparent_hugepage/enabled");
  const size_t open = modes.find('[');
  const size_t close = modes.find(']');
  std::string mode = open != std::string::npos && close != std::string::npos && open < close
                         ? modes.substr(open + 1, close - open - 1)
                         : "not told";
  const auto memory = read_machine_memory();
  const uint64_t reserved = memory ? memory->huge_pages_free : 0;
  std::string found = fmt::format("transparent: {}; reserved: {} free", mode, reserved);
  if (mode == "always" || mode == "madvise") return ok(std::move(found));
  return warn(
      std::move(found),
      "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: host memory gets faster");
}

DoctorFinding look_at_locked_memory(const DoctorOptions& /*options*/) {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return warn("not told", "see ulimit -l");
  if (limit.rlim_cur == RLIM_INFINITY) return ok("no limit");
  std::string found = format_size(limit.rlim_cur);
  if (limit.rlim_cur >= kLittleLockedMemory) return ok(std::move(found));
  return warn(std::move(found),
              "ulimit -l unlimited: registered buffers (io_uring, RDMA) need more");
}

DoctorFinding look_at_disk(const DoctorOptions& options) {
  const auto disk = read_disk_space(options.disk_dir);
  if (!disk) return missing(explain(disk.error()), "name another folder with --disk-dir");
  std::string found =
      fmt::format("{}: {}, {} free of {}", options.disk_dir.native(), disk->file_system,
                  format_size(disk->free), format_size(disk->total));
  if (::access(options.disk_dir.c_str(), W_OK | X_OK) != 0) {
    return missing(found + ", not writable", "name another folder with --disk-dir");
  }
  if (disk->file_system == "tmpfs" || disk->file_system == "ramfs") {
    return warn(std::move(found), "name another folder with --disk-dir: that is memory, no disk");
  }
  if (disk->free >= kLittleDisk) return ok(std::move(found));
  return warn(std::move(found), "free some or name another folder: there is little room for G3");
}

DoctorFinding look_at_adapters(const DoctorOptions& /*options*/) {
  std::string built = "host device, POSIX files";
  for (const BuiltAdapter& adapter : kAdapters) {
    if (adapter.state == BuiltAdapter::State::kBuilt) built.append(", ").append(adapter.name);
  }
  for (const BuiltAdapter& adapter : kAdapters) {
    if (adapter.state == BuiltAdapter::State::kLeftOut) {
      return missing(fmt::format("{}; {} was left out of this build", built, adapter.name),
                     fmt::format("configure with -DKVBM_WITH_{}=ON", adapter.name));
    }
  }
  for (const BuiltAdapter& adapter : kAdapters) {
    if (adapter.state == BuiltAdapter::State::kNotYet) {
      return missing(fmt::format("{}; this version has no {}", built, adapter.name),
                     "nothing to mend: a later version may have it");
    }
  }
  return ok(std::move(built));
}

DoctorFinding look_at_driver(const DoctorOptions& /*options*/) {
  const std::string version = first_line_of("/proc/driver/nvidia/version");
  if (version.empty()) {
    return missing("no NVIDIA driver is loaded",
                   "install one to use GPUs: the host device works without");
  }
  std::error_code error;
  const auto gpus = std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error);
  const auto count = error ? 0 : std::distance(begin(gpus), end(gpus));
  return ok(fmt::format("{} GPU{}, {}", count, count == 1 ? "" : "s", version));
}

std::string describe(const AcceleratorInfo& gpu) {
  const auto version = [](int32_t number) {
    return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
  };
  return fmt::format("{}: {}, SM {}.{}, {}, CUDA {} in the driver and {} in this build, {}, {}",
                     gpu.device, gpu.name, gpu.sm / 10, gpu.sm % 10, format_size(gpu.total_bytes),
                     version(gpu.driver_version), version(gpu.runtime_version),
                     gpu.has_memcpy_batch ? "copies in batches" : "copies one by one",
                     gpu.numa_node ? fmt::format("NUMA node {}", *gpu.numa_node) : "no NUMA node");
}

DoctorFinding look_at_gpus(const DoctorOptions& /*options*/) {
  const auto gpus = find_accelerators();
  if (!gpus) return missing(gpus.error().message(), "the host device works without");
  std::string found;
  std::string mend;
  bool batches = true;
  for (const AcceleratorInfo& gpu : *gpus) {
    found.append(found.empty() ? "" : "; ").append(describe(gpu));
    batches = batches && gpu.has_memcpy_batch;
    if (const std::string advice = advice_on_kernels(gpu); !advice.empty()) {
      mend.append(mend.empty() ? "" : "; ").append(advice);
    }
  }
  if (!batches) {
    mend.append(mend.empty() ? "" : "; ")
        .append("use CUDA 12.8 or later, driver and build: small copies get faster");
  }
  return mend.empty() ? ok(std::move(found)) : warn(std::move(found), std::move(mend));
}

DoctorFinding look_at_gds(const DoctorOptions& /*options*/) {
  // Starting the library without a GPU says less than that.
  const auto gpus = find_accelerators();
  if (!gpus) return missing("needs a GPU", "files go through host memory");
  const auto found = find_gds();
  if (!found) return missing(explain(found.error()), "without it, files go through host memory");
  if (found->is_direct) return ok(fmt::format("{}, GPU Direct Storage", found->version));
  return missing(fmt::format("{}, its compatibility mode: through host memory", found->version),
                 "load nvidia-fs; without it, allow_gds changes nothing");
}

DoctorFinding look_at_uring(const DoctorOptions& /*options*/) {
#if defined(SYS_io_uring_setup)
  // Without parameters the call fails in one way or another; how tells whether it is there.
  const long result = ::syscall(SYS_io_uring_setup, 1, nullptr);
  const int error_number = result < 0 ? errno : 0;
  if (result >= 0) ::close(static_cast<int>(result));
  if (error_number == ENOSYS) return missing("the kernel has none", "use Linux 5.10 or later");
  if (error_number == EPERM || error_number == EACCES) {
    return missing("forbidden by the kernel or the container",
                   "sysctl kernel.io_uring_disabled=0, or allow it in the container's profile");
  }
  return ok("the kernel offers it");
#else
  return missing("not known when this was built", "build on Linux 5.10 or later");
#endif
}

constexpr DoctorCheck kChecks[] = {
    {"cpu cores", look_at_cores},
    {"memory", look_at_memory},
    {"huge pages", look_at_huge_pages},
    {"locked memory", look_at_locked_memory},
    {"disk", look_at_disk},
    {"adapters", look_at_adapters},
    {"nvidia driver", look_at_driver},
    {"gpus", look_at_gpus},
    {"gds", look_at_gds},
    {"io_uring", look_at_uring},
};

}  // namespace

std::string_view to_string(DoctorStatus status) noexcept {
  switch (status) {
    case DoctorStatus::kOk:
      return "ok";
    case DoctorStatus::kWarn:
      return "warn";
    case DoctorStatus::kMissing:
      return "missing";
  }
  return "unknown";
}

std::span<const DoctorCheck> doctor_checks() noexcept { return kChecks; }

}  // namespace kvbm
