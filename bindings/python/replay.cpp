// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/replay.hpp"

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/replay/machine.hpp"
#include "kvbm/replay/replay.hpp"

#include "bindings/python/errors.hpp"
#include "bindings/python/log.hpp"
#include "bindings/python/waiting.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {
namespace {

/// Whether `value` is the second of two words.
bool is_second(const char* key, const std::string& value, const char* first, const char* second) {
  if (value != first && value != second) {
    raise(Error(ErrorCode::kInvalidArgument,
                format_text("{} = \"{}\": allowed is {} or {}", key, value, first, second)));
  }
  return value == second;
}

Status check_room(const ReplayOptions& options) {
  ReplayRoom room;
  // A kernel that does not tell lets the allocation decide.
  const auto memory = read_machine_memory();
  room.memory_bytes = memory ? memory->available : std::numeric_limits<uint64_t>::max();
  if (!options.disk_dir.empty()) {
    KVBM_ASSIGN_OR_RETURN(const DiskSpace disk, read_disk_space(options.disk_dir));
    room.disk_bytes = disk.free;
  }
  return check_fits(options, room);
}

Result<ReplayReport> play(const std::filesystem::path& path, const ReplayOptions& options,
                          const std::atomic<bool>& interrupted) {
  KVBM_TRY(check_room(options));
  TraceLimits limits;
  limits.max_requests = options.limit;
  limits.interrupted = &interrupted;
  KVBM_ASSIGN_OR_RETURN(const Trace trace, read_trace(path, limits));
  const SystemClock clock;
  Progress progress({.interrupted = &interrupted}, {}, clock);
  KVBM_ASSIGN_OR_RETURN(ReplayReport report, run_replay(trace, options, progress, &log_sink()));
  report.trace = path.native();
  return report;
}

/// On a thread of its own, so that signals and other threads of Python have their turn meanwhile.
ReplayReport play_interruptibly(const std::filesystem::path& path, const ReplayOptions& options) {
  std::atomic<bool> interrupted{false};
  std::optional<Result<ReplayReport>> report;
  ThreadExecutor executor(log_sink());
  const std::unique_ptr<TaskQueue> thread = take(executor.create_queue({.name = "kvbm-replay"}));
  CompletionSource source(executor);
  const Completion played = source.completion();
  check(thread->post([&, ended = std::move(source)]() mutable {
    report = play(path, options, interrupted);
    ended.resolve({});
  }));
  try {
    (void)wait_in_slices(kNever, [&](TimePoint slice_end) {
      (void)played.wait(slice_end);
      return played.done();
    });
  } catch (...) {
    interrupted = true;
    const nb::gil_scoped_release released;
    thread->stop();
    throw;
  }
  check(played.status());
  return take(*std::move(report));
}

nb::object replay(const std::filesystem::path& trace, const std::string& device,
                  std::optional<uint64_t> cuda_ring_size, uint64_t g1_blocks, uint64_t g2_blocks,
                  uint64_t g3_blocks, uint64_t block_bytes, uint32_t ranks,
                  const std::string& groups, const std::optional<std::filesystem::path>& disk_dir,
                  const std::string& policy, const std::string& bytes, const std::string& overlap,
                  uint64_t seed, std::optional<uint64_t> limit) {
  ReplayOptions options;
  options.device = device;
  if (cuda_ring_size) options.cuda_ring_size = *cuda_ring_size;
  options.g1_blocks = g1_blocks;
  options.g2_blocks = g2_blocks;
  options.g3_blocks = g3_blocks;
  options.block_bytes = block_bytes;
  options.ranks = ranks;
  options.groups = take(parse_replay_groups(groups));
  options.disk_dir = disk_dir.value_or("");
  options.policy = take(parse_policy(policy));
  if (is_second("bytes", bytes, "verified", "none")) options.bytes = ReplayOptions::Bytes::kNone;
  if (is_second("overlap", overlap, "off", "on")) options.overlap = ReplayOptions::Overlap::kOn;
  options.seed = seed;
  options.limit = limit;
  check(options.validate());
  std::error_code missing;  // told when it is read
  const auto kind = std::filesystem::status(trace, missing).type();
  if (kind == std::filesystem::file_type::fifo) {
    // Its reader waits for a writer, from which no signal of this process's main thread wakes it.
    raise(Error(ErrorCode::kUnsupported,
                format_text("{} is a pipe: write the trace to a file", trace.native())));
  }
  const ReplayReport report = play_interruptibly(trace, options);
  return nb::module_::import_("json").attr("loads")(report_json(report));
}

}  // namespace

void bind_replay(nb::module_& module) {
  const ReplayOptions defaults;
  module.def(
      "replay", &replay, "trace"_a, nb::kw_only(), "device"_a = defaults.device,
      "cuda_ring_size"_a = nb::none(), "g1_blocks"_a = defaults.g1_blocks,
      "g2_blocks"_a = defaults.g2_blocks, "g3_blocks"_a = defaults.g3_blocks,
      "block_bytes"_a = defaults.block_bytes, "ranks"_a = defaults.ranks,
      "groups"_a = format_replay_groups(defaults.groups), "disk_dir"_a = nb::none(),
      "policy"_a = std::string(to_string(defaults.policy)),
      "bytes"_a = std::string(to_string(defaults.bytes)),
      "overlap"_a = std::string(to_string(defaults.overlap)), "seed"_a = defaults.seed,
      "limit"_a = nb::none(),
      nb::sig("def replay(trace: str | os.PathLike, *, device: str = 'host', "
              "cuda_ring_size: int | None = None, g1_blocks: int = 4096, g2_blocks: int = 0, "
              "g3_blocks: int = 0, block_bytes: int = 65536, ranks: int = 1, "
              "groups: str = 'full', "
              "disk_dir: str | os.PathLike | None = None, policy: str = 'lineage', bytes: str = "
              "'verified', "
              "overlap: str = 'off', seed: int = 0, limit: int | None = None) -> dict[str, "
              "typing.Any]"),
      "Plays a trace (docs/formats/trace.md) through the tiers, as the program kvbm replay does, "
      "and "
      "gives its report (docs/formats/replay-report.md). Keywords are the report's options, which "
      "say what they mean. Wrong bytes and failed loads raise nothing: the report counts them as "
      "mismatches and failed_loads. Ctrl-C ends it.\n\n"
      "Raises kvbm.InvalidArgumentError, naming the key or the line of the trace, "
      "kvbm.NotFoundError, kvbm.ExhaustedError, kvbm.IoError, kvbm.UnsupportedError (a pipe).");
}

}  // namespace kvbm
