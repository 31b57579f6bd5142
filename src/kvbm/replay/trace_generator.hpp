// SPDX-License-Identifier: Apache-2.0
// generate_trace: synthetic requests that share prefixes the way chats and agents do.
#pragma once

#include <chrono>
#include <cstdint>

#include "kvbm/base/result.hpp"
#include "kvbm/replay/trace.hpp"

namespace kvbm {

/// People who talk to an assistant. A session starts with one of a few system prompts, prompt k
/// being 1/k as popular as the first (Zipf), and each turn sends the whole talk so far and
/// something new.
/// Units: `mean_` numbers are of an exponential distribution, cut at eight times the mean.
struct ChatSessions {
  uint32_t sessions = 200;
  uint32_t system_prompts = 8;
  uint64_t system_prompt_tokens = 2'000;  ///< each prompt has between a half and 1.5 times as many
  uint32_t mean_turns = 5;                ///< at least one
  uint64_t mean_user_tokens = 600;
  uint64_t mean_reply_tokens = 400;
  std::chrono::milliseconds mean_think_time{30'000};
};

/// Programs that work by themselves: a long prefix (instructions and tools) that all sessions of a
/// kind share, a task, and then many short steps, each with the result of a tool. A step may hand
/// work to sub-agents, which start from what their parent knows, run side by side, and report back.
struct AgentSessions {
  uint32_t sessions = 20;
  uint32_t kinds = 3;  ///< Zipf, as system prompts are
  uint64_t prefix_tokens = 12'000;
  uint64_t mean_task_tokens = 1'500;
  uint32_t mean_steps = 20;
  uint64_t mean_step_tokens = 150;  ///< what the agent says in a step
  uint64_t mean_tool_tokens = 700;  ///< what the tool answers
  std::chrono::milliseconds mean_tool_time{3'000};
  uint32_t branch_percent = 5;  ///< of the steps
  uint32_t max_sub_agents = 3;  ///< of one branching, one to this many
  uint32_t mean_sub_steps = 6;
};

struct TraceGeneratorOptions {
  uint64_t seed = 0;
  uint32_t tokens_per_block = 512;
  uint64_t max_context_tokens = 131'072;  ///< a session ends before its input gets longer
  std::chrono::milliseconds mean_session_gap{2'000};  ///< between two starts, of a sort each
  std::chrono::milliseconds time_per_output_token{20};
  uint64_t max_accesses = 200'000'000;  ///< 8 bytes each; a longer trace is taken for a mistake
  ChatSessions chat;
  AgentSessions agents;

  /// Errors: kInvalidArgument, naming the field and its bounds.
  [[nodiscard]] Status validate() const;
};

/// The same options give the same trace on every platform. Sorted by timestamp; ids count from 0 in
/// the order of their first appearance. More sessions do not change what the first ones say.
/// Errors: kInvalidArgument (options); kExhausted if the trace grows beyond max_accesses.
[[nodiscard]] Result<Trace> generate_trace(const TraceGeneratorOptions& options);

}  // namespace kvbm
