// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/kvbench_command.hpp"

#include <optional>
#include <string_view>
#include <utility>

#include "kvbm/replay/output_file.hpp"

#include "apps/kvbench/bench_report.hpp"
#include "apps/kvbench/copy_bench.hpp"
#include "apps/kvbm/command.hpp"
#include "apps/kvbm/interrupt.hpp"

namespace kvbm {

Result<ExitCode> run_kvbench(const KvbenchOptions& options, Console& console) {
  KvbenchOptions with_device = options;
  with_device.device = device_or_default(options.device);
  std::optional<OutputFile> json;  // before the work, so that a wrong path costs none
  if (options.json) {
    KVBM_ASSIGN_OR_RETURN(json, OutputFile::create(*options.json, &interrupted()));
  }
  Progress::Write write = console.progress_writer();
  bool in_a_line = false;
  const auto note = [&](std::string_view text) {
    if (text.empty()) return;
    write(text);
    in_a_line = !text.ends_with('\n');
  };
  const auto row = [&console](std::string_view text) {
    console.print(text);
    console.flush();
  };
  const auto report = run_copy_bench(with_device, console.log(),
                                     {.note = note, .row = row, .interrupted = &interrupted()});
  if (!report) {
    if (in_a_line) note("\n");
    if (report.error().code() != ErrorCode::kCorrupt) return make_error(Error(report.error()));
    console.complain(report.error());
    return ExitCode::kMismatch;
  }
  if (json) {
    KVBM_TRY(json->append(report_json(with_device, *report)));
    KVBM_TRY(json->commit());
  }
  return ExitCode::kSuccess;
}

}  // namespace kvbm
