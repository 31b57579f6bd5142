// SPDX-License-Identifier: Apache-2.0
// kvbm trace: makes traces and tells what is in them.
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kvbm/base/units.hpp"
#include "kvbm/replay/trace.hpp"
#include "kvbm/replay/trace_generator.hpp"
#include "kvbm/replay/trace_statistics.hpp"

#include "apps/kvbm/command.hpp"
#include "apps/kvbm/interrupt.hpp"

namespace kvbm {
namespace {

std::string statistics_text(const TraceStatistics& statistics) {
  std::string out;
  const auto line = [&out](std::string_view name, const auto& value) {
    out.append(fmt::format("{:<17}{}\n", name, value));
  };
  line("requests", statistics.requests);
  line("accesses", statistics.accesses);
  line("unique blocks", statistics.unique_blocks);
  line("longest request", fmt::format("{} blocks", statistics.longest_blocks));
  line("input tokens", statistics.input_tokens);
  line("output tokens", statistics.output_tokens);
  line("duration", format_duration(statistics.duration));
  line("best hit share", fmt::format("{:.2f} %", 100 * statistics.best_hit_share()));
  return out;
}

struct GenerateArguments {
  TraceGeneratorOptions options;
  std::filesystem::path output;
  bool quiet = false;
};

Result<ExitCode> generate(const GenerateArguments& arguments, Console& console) {
  KVBM_ASSIGN_OR_RETURN(const Trace trace, generate_trace(arguments.options));
  if (interrupted()) return interruption();
  KVBM_TRY(write_trace(trace, arguments.output, &interrupted()));
  if (!arguments.quiet) console.print(statistics_text(measure_trace(trace)));
  return ExitCode::kSuccess;
}

Command add_generate(CLI::App& parent, Console& console) {
  CLI::App* app = add_subcommand(parent, "generate", "Makes a trace of chats and agents");
  auto arguments = std::make_shared<GenerateArguments>();
  TraceGeneratorOptions& options = arguments->options;
  app->add_option("--out,--output", arguments->output, "The file to write")
      ->required()
      ->type_name("FILE");
  add_count(*app, "--seed", options.seed, "The same seed gives the same bytes");
  add_count(*app, "--tokens-per-block", options.tokens_per_block, "Size of a block");
  add_count(*app, "--max-context-tokens", options.max_context_tokens,
            "A session ends before its input gets longer");
  add_milliseconds(*app, "--session-gap", options.mean_session_gap,
                   "Mean time between the starts of two sessions");
  add_milliseconds(*app, "--time-per-token", options.time_per_output_token,
                   "Time that each token of an answer takes");

  ChatSessions& chat = options.chat;
  add_count(*app, "--sessions", chat.sessions, "Chat sessions");
  add_count(*app, "--system-prompts", chat.system_prompts, "Chats share one of so many prompts");
  add_count(*app, "--system-prompt-tokens", chat.system_prompt_tokens, "Mean length of a prompt");
  add_count(*app, "--turns", chat.mean_turns, "Mean turns of a chat");
  add_count(*app, "--user-tokens", chat.mean_user_tokens, "Mean length of a question");
  add_count(*app, "--reply-tokens", chat.mean_reply_tokens, "Mean length of an answer");
  add_milliseconds(*app, "--think-time", chat.mean_think_time, "Mean time before a next question");

  AgentSessions& agents = options.agents;
  add_count(*app, "--agent-sessions", agents.sessions, "Agent sessions");
  add_count(*app, "--agent-kinds", agents.kinds, "Agents share one of so many prefixes");
  add_count(*app, "--agent-prefix-tokens", agents.prefix_tokens, "Mean length of a prefix");
  add_count(*app, "--agent-task-tokens", agents.mean_task_tokens, "Mean length of a task");
  add_count(*app, "--agent-steps", agents.mean_steps, "Mean steps of an agent");
  add_count(*app, "--agent-step-tokens", agents.mean_step_tokens, "Mean length of a step's answer");
  add_count(*app, "--agent-tool-tokens", agents.mean_tool_tokens, "Mean length of a tool's result");
  add_milliseconds(*app, "--agent-tool-time", agents.mean_tool_time, "Mean time that a tool takes");
  add_count(*app, "--agent-branch-percent", agents.branch_percent,
            "Steps that hand work to sub-agents");
  add_count(*app, "--agent-max-sub-agents", agents.max_sub_agents, "At most, in one such step");
  add_count(*app, "--agent-sub-steps", agents.mean_sub_steps, "Mean steps of a sub-agent");
  app->add_flag("--quiet", arguments->quiet, "Print nothing unless something goes wrong");
  return {app, [arguments, &console] { return generate(*arguments, console); }};
}

struct StatsArguments {
  std::filesystem::path trace;
  std::optional<uint64_t> limit;
};

Result<ExitCode> show_statistics(const StatsArguments& arguments, Console& console) {
  TraceLimits limits;
  limits.max_requests = arguments.limit;
  limits.interrupted = &interrupted();
  KVBM_ASSIGN_OR_RETURN(const Trace trace, read_trace(arguments.trace, limits));
  console.print(statistics_text(measure_trace(trace)));
  return ExitCode::kSuccess;
}

Command add_stats(CLI::App& parent, Console& console) {
  CLI::App* app = add_subcommand(parent, "stats",
                                 "Tells how large a trace is and what a cache could save at best");
  auto arguments = std::make_shared<StatsArguments>();
  app->add_option("trace", arguments->trace, "The trace to look at")->required()->type_name("FILE");
  add_count(*app, "--limit", arguments->limit, "Look at the first N requests alone", {.low = 1});
  return {app, [arguments, &console] { return show_statistics(*arguments, console); }};
}

}  // namespace

std::vector<Command> add_trace_commands(CLI::App& program, Console& console) {
  CLI::App* app = add_subcommand(program, "trace", "Makes traces and tells what is in them");
  app->require_subcommand(1);
  return {add_generate(*app, console), add_stats(*app, console)};
}

}  // namespace kvbm
