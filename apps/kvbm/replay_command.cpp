// SPDX-License-Identifier: Apache-2.0
// kvbm replay: plays a trace through the tiers, or a flight record again, and reports what came of
// it.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/replay/machine.hpp"
#include "kvbm/replay/output_file.hpp"
#include "kvbm/replay/record_replay.hpp"
#include "kvbm/replay/replay.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

#include "apps/kvbm/command.hpp"
#include "apps/kvbm/interrupt.hpp"

namespace kvbm {
namespace {

// The size of a tier as it was written on the command line.
struct TierArguments {
  std::optional<uint64_t> blocks;
  std::optional<uint64_t> bytes;
};

struct ReplayArguments {
  ReplayOptions options;
  TierArguments g1, g2, g3;
  std::string groups = format_replay_groups(ReplayOptions().groups);
  std::string policy{to_string(ReplayOptions().policy)};
  bool no_bytes = false;
  bool overlap = false;
  bool quiet = false;
  std::filesystem::path trace;
  std::filesystem::path json;
  std::filesystem::path metrics;
};

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

Status set_size(std::string_view tier, const TierArguments& arguments, uint64_t position_bytes,
                uint64_t& blocks) {
  if (arguments.blocks && arguments.bytes) {
    return invalid(format_text("--{}-blocks and --{}-bytes exclude each other", tier, tier));
  }
  if (arguments.blocks) blocks = *arguments.blocks;
  if (!arguments.bytes) return {};
  blocks = position_bytes == 0 ? 0 : *arguments.bytes / position_bytes;
  if (blocks == 0) {
    return invalid(format_text("--{}-bytes is {}, less than one block of {}", tier,
                               format_size(*arguments.bytes), format_size(position_bytes)));
  }
  return {};
}

// The options of the replay, complete and valid.
Result<ReplayOptions> resolve(const ReplayArguments& arguments) {
  ReplayOptions options = arguments.options;
  KVBM_ASSIGN_OR_RETURN(options.groups, parse_replay_groups(arguments.groups));
  KVBM_ASSIGN_OR_RETURN(options.policy, parse_policy(arguments.policy));
  if (arguments.no_bytes) options.bytes = ReplayOptions::Bytes::kNone;
  if (arguments.overlap) options.overlap = ReplayOptions::Overlap::kOn;
  ReplayOptions shape = options;  // sizes in bytes need a sound size of a block
  shape.g1_blocks = 1;
  shape.disk_dir.clear();
  KVBM_TRY(shape.validate());
  const uint64_t position_bytes = options.position_bytes();
  KVBM_TRY(set_size("g1", arguments.g1, position_bytes, options.g1_blocks));
  KVBM_TRY(set_size("g2", arguments.g2, position_bytes, options.g2_blocks));
  KVBM_TRY(set_size("g3", arguments.g3, position_bytes, options.g3_blocks));
  KVBM_TRY(options.validate());
  return options;
}

Status check_disk_folder(const std::filesystem::path& folder) {
  std::error_code error;
  const auto status = std::filesystem::status(folder, error);
  if (!std::filesystem::exists(status)) {
    return errno_error(format_text("cannot use --disk-dir {}", folder.native()),
                       error ? error.value() : ENOENT);
  }
  if (!std::filesystem::is_directory(status)) {
    return invalid(format_text("--disk-dir {} is no folder", folder.native()));
  }
  if (::access(folder.c_str(), R_OK | W_OK | X_OK) != 0) {
    return errno_error(format_text("cannot write into --disk-dir {}", folder.native()), errno);
  }
  return {};
}

Status check_machine(const ReplayOptions& options) {
  ReplayRoom room;
  // A kernel that does not tell lets the allocation decide.
  const auto memory = read_machine_memory();
  room.memory_bytes = memory ? memory->available : std::numeric_limits<uint64_t>::max();
  if (!options.disk_dir.empty()) {
    KVBM_TRY(check_disk_folder(options.disk_dir));
    KVBM_ASSIGN_OR_RETURN(const DiskSpace disk, read_disk_space(options.disk_dir));
    room.disk_bytes = disk.free;
  }
  return check_fits(options, room);
}

// What a replay writes beside its table: opened before it, so that it is not played for nothing.
struct Outputs {
  std::optional<OutputFile> json;
  std::optional<OutputFile> metrics;
};

Status open_output(const std::filesystem::path& path, std::optional<OutputFile>& output) {
  if (path.empty()) return {};
  KVBM_ASSIGN_OR_RETURN(output, OutputFile::create(path, &interrupted()));
  return {};
}

bool replaces(const std::optional<OutputFile>& output, const std::filesystem::path& path) {
  return output && !path.empty() && output->target() == path;
}

Result<Outputs> open_outputs(const ReplayArguments& arguments) {
  Outputs outputs;
  KVBM_TRY(open_output(arguments.json, outputs.json));
  KVBM_TRY(open_output(arguments.metrics, outputs.metrics));
  std::error_code missing;  // the trace is found to be missing when it is read
  const auto trace = std::filesystem::canonical(arguments.trace, missing);
  for (const auto& [option, output] :
       {std::pair{"--json", &outputs.json}, std::pair{"--metrics", &outputs.metrics}}) {
    if (!replaces(*output, trace)) continue;
    return invalid(format_text("{} would replace the trace {}: name another file", option,
                               arguments.trace.native()));
  }
  if (outputs.metrics && replaces(outputs.json, outputs.metrics->target())) {
    return invalid(format_text("--json and --metrics both write {}: name two files",
                               arguments.metrics.native()));
  }
  return outputs;
}

Status write_outputs(Outputs& outputs, const ReplayReport& report) {
  if (outputs.json) KVBM_TRY(outputs.json->append(report_json(report)));
  if (outputs.metrics) KVBM_TRY(outputs.metrics->append(report.metrics_text));
  if (outputs.json) KVBM_TRY(outputs.json->commit());
  if (outputs.metrics) KVBM_TRY(outputs.metrics->commit());
  return {};
}

Result<ExitCode> replay(const ReplayArguments& arguments, Console& console) {
  KVBM_ASSIGN_OR_RETURN(const ReplayOptions options, resolve(arguments));
  KVBM_TRY(check_machine(options));
  KVBM_ASSIGN_OR_RETURN(Outputs outputs, open_outputs(arguments));

  TraceLimits limits;
  limits.max_requests = options.limit;
  limits.interrupted = &interrupted();
  KVBM_ASSIGN_OR_RETURN(const Trace trace, read_trace(arguments.trace, limits));
  if (interrupted()) return interruption();

  const SystemClock clock;
  ProgressOptions shown = console.progress("replay", "accesses");
  if (arguments.quiet) shown.style = ProgressStyle::kSilent;
  Progress progress(std::move(shown), console.progress_writer(), clock);
  auto report = run_replay(trace, options, progress, &console.log());
  progress.finish();
  if (!report) return make_error(std::move(report).error());
  report->trace = arguments.trace.native();

  KVBM_TRY(write_outputs(outputs, *report));
  if (!arguments.quiet) {
    console.print(report_table(*report, console.style()) + "\n" +
                  plot_hits(report->timeline, console.style()));
  }
  if (report->mismatches > 0) {
    console.complain(format_text("{} of {} compared blocks held wrong bytes; the first: {}",
                                 report->mismatches, report->verified_blocks,
                                 report->first_mismatch));
    return ExitCode::kMismatch;
  }
  if (report->failed_loads > 0) {
    console.complain(
        format_text("{} loads from the lower tiers failed or ran out of time; the "
                    "first: {}",
                    report->failed_loads, report->first_failed_load));
    return ExitCode::kFailed;
  }
  return ExitCode::kSuccess;
}

// A record says all by itself.
Status check_options_of_record(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name();
    if (option->count() == 0 || !name.starts_with("--") || name == "--json" || name == "--quiet") {
      continue;
    }
    return invalid(format_text("{} is for traces: a record has its options in it", name));
  }
  return {};
}

Result<ExitCode> replay_of_record(const ReplayArguments& arguments, Console& console) {
  ReplayArguments json_alone;
  json_alone.trace = arguments.trace;
  json_alone.json = arguments.json;
  KVBM_ASSIGN_OR_RETURN(Outputs outputs, open_outputs(json_alone));
  if (outputs.json && is_record_path(outputs.json->target())) {
    return invalid(format_text("--json would replace the record {}: name another file",
                               arguments.json.native()));
  }
  KVBM_ASSIGN_OR_RETURN(const RecordReport report,
                        replay_record(arguments.trace, console.log(), &interrupted()));
  if (outputs.json) {
    KVBM_TRY(outputs.json->append(record_json(report)));
    KVBM_TRY(outputs.json->commit());
  }
  if (!arguments.quiet) console.print(record_table(report, console.style()));
  if (report.difference.empty()) return ExitCode::kSuccess;
  console.complain("the replay differs from the record in " + report.difference);
  return ExitCode::kMismatch;
}

void add_tier(CLI::App& app, const std::string& tier, TierArguments& arguments, CountRange range,
              const std::string& help) {
  range.high = kMaxTierBlocks;
  add_count(app, "--" + tier + "-blocks", arguments.blocks, help, range);
  add_size(app, "--" + tier + "-bytes", arguments.bytes, "The same as a size, rounded down");
}

// An empty name would be taken for an option that was not given.
CLI::Option* add_path(CLI::App& app, const std::string& name, std::filesystem::path& target,
                      const std::string& help, const std::string& kind) {
  const auto not_empty = [](const std::string& text) {
    return text.empty() ? std::string("the name is empty") : std::string();
  };
  return app.add_option(name, target, help)->check(not_empty)->type_name(kind);
}

}  // namespace

Command add_replay_command(CLI::App& program, Console& console) {
  CLI::App* app = add_subcommand(program, "replay",
                                 "Plays a trace or a flight record, and reports what came of it");
  app->footer(
      "This command line alone describes a replay: KVBM_* variables and configuration files do\n"
      "not change it.\n\n"
      "A flight record (a file, or the folder that DYN_KVBM_ENABLE_RECORD made) is played into a\n"
      "leader with the options of the record, and every outcome is compared with the recorded\n"
      "one. Of the options --json and --quiet go with it. The exit status is 1 if one "
      "differs.\n\n" +
      app->get_footer());
  auto arguments = std::make_shared<ReplayArguments>();
  ReplayOptions& options = arguments->options;
  app->add_option("trace", arguments->trace, "The trace to play, or a flight record")
      ->required()
      ->type_name("FILE");
  app->add_option("--device", options.device,
                  "Where G1 is: host memory, or a GPU (cuda, cuda:N).\nFurther ranks take the next "
                  "GPUs, or share one")
      ->capture_default_str()
      ->type_name("NAME");
  add_size(*app, "--cuda-ring-size", options.cuda_ring_size,
           "Memory of each GPU, each way, for the ring that large\ncopies go through; 0: no ring");
  add_tier(*app, "g1", arguments->g1, {.low = 1},
           format_text("Blocks of device memory [{}]", options.g1_blocks));
  add_tier(*app, "g2", arguments->g2, {}, "Blocks of host memory; 0 leaves the tier out [0]");
  add_tier(*app, "g3", arguments->g3, {}, "Blocks on disk; 0 leaves the tier out [0]");
  add_size(*app, "--block-bytes", options.block_bytes, "One block, over all ranks");
  add_count(*app, "--ranks", options.ranks, "Workers that share each block", {.low = 1});
  app->add_option(
         "--groups", arguments->groups,
         "Layer groups: full or window:BLOCKS,\neach perhaps with @SIZE for a block size of "
         "its own,\nwith commas between")
      ->capture_default_str()
      ->type_name("SPEC");
  add_path(*app, "--disk-dir", options.disk_dir, "Folder of G3's files", "DIR");
  app->add_option("--policy", arguments->policy, "Which idle block goes first")
      ->capture_default_str()
      ->type_name("NAME");
  app->add_flag("--no-bytes", arguments->no_bytes, "Move names alone, no bytes");
  app->add_flag("--overlap", arguments->overlap,
                "Go on with the next request while blocks are still being stored");
  add_count(*app, "--limit", options.limit, "Play the first N requests alone", {.low = 1});
  add_path(*app, "--json", arguments->json, "Write the report there as JSON", "FILE");
  add_path(*app, "--metrics", arguments->metrics, "Write all metrics there as Prometheus text",
           "FILE");
  add_count(*app, "--seed", options.seed, "Decides what the blocks hold");
  app->add_flag("--quiet", arguments->quiet, "Show no progress, no table and no plot");
  return {app, [app, arguments, &console]() -> Result<ExitCode> {
            if (!is_record_path(arguments->trace)) return replay(*arguments, console);
            KVBM_TRY(check_options_of_record(*app));
            return replay_of_record(*arguments, console);
          }};
}

}  // namespace kvbm
