// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/trace_generator.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "kvbm/base/random.hpp"
#include "kvbm/base/text.hpp"

// Integers alone decide: floating-point functions and contractions differ between platforms.

namespace kvbm {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kMaxSessions = 1'000'000;
constexpr uint64_t kMaxPrefixes = 10'000;
// Together they keep every sum of times far from 2^63.
constexpr uint64_t kMaxSteps = 10'000;
constexpr uint64_t kMaxTokens = 10'000'000;
constexpr uint64_t kMaxContextTokens = 100'000'000;
constexpr milliseconds kMaxTime{24 * 3'600'000};
constexpr milliseconds kMaxTimePerToken{60'000};
constexpr uint64_t kMaxAccesses = 10'000'000'000;
constexpr uint64_t kLongestInMeans = 8;

// 2^16 * log2(x) for x in [1, 2^32]: the bits of the fraction come from squaring the mantissa.
uint64_t log2_q16(uint64_t x) {
  const auto whole = static_cast<unsigned>(std::bit_width(x)) - 1;
  uint64_t mantissa = whole <= 31 ? x << (31 - whole) : x >> (whole - 31);  // in [2^31, 2^32)
  uint64_t result = uint64_t{whole} << 16;
  for (int bit = 15; bit >= 0; --bit) {
    mantissa = (mantissa * mantissa) >> 31;
    if (mantissa >> 32 != 0) {
      mantissa >>= 1;
      result |= uint64_t{1} << bit;
    }
  }
  return result;
}

// Exponentially distributed, cut at kLongestInMeans times the mean.
uint64_t exponential(Random& random, uint64_t mean) {
  constexpr uint64_t kLn2Q16 = 45'426;
  const uint64_t uniform = (random.next() >> 32) + 1;  // in [1, 2^32]
  const uint64_t minus_ln_q16 = (((uint64_t{32} << 16) - log2_q16(uniform)) * kLn2Q16) >> 16;
  return std::min((mean * minus_ln_q16 + (1 << 15)) >> 16, kLongestInMeans * mean);
}

milliseconds exponential(Random& random, milliseconds mean) {
  return milliseconds(
      static_cast<int64_t>(exponential(random, static_cast<uint64_t>(mean.count()))));
}

uint64_t at_least_one(uint64_t value) { return std::max<uint64_t>(value, 1); }

// Index k with a weight of 1 / (k + 1).
class Zipf {
 public:
  explicit Zipf(uint32_t count) {
    uint64_t total = 0;
    for (uint64_t k = 1; k <= count; ++k) bounds_.push_back(total += (uint64_t{1} << 32) / k);
  }

  [[nodiscard]] size_t draw(Random& random) const {
    const uint64_t point = random.uniform(bounds_.back());
    const auto found = std::upper_bound(bounds_.begin(), bounds_.end(), point);
    return static_cast<size_t>(found - bounds_.begin());
  }

 private:
  std::vector<uint64_t> bounds_;
};

// What a session has said so far: its length and the ids of its full blocks.
struct Context {
  uint64_t tokens = 0;
  std::vector<uint64_t> blocks;
};

class Generator {
 public:
  explicit Generator(const TraceGeneratorOptions& options) : options_(options) {}

  Result<Trace> run() {
    Random root(options_.seed);
    Random chat_random = root.fork();
    Random agent_random = root.fork();
    add_chats(chat_random);
    add_agents(agent_random);
    if (full()) {
      return make_error(ErrorCode::kExhausted,
                        format_text("the trace has more than {} block accesses: ask for fewer or "
                                    "shorter sessions, or for larger blocks",
                                    options_.max_accesses));
    }
    if (trace_.requests.empty()) {
      return make_error(ErrorCode::kInvalidArgument,
                        "the trace has no request: prompts are longer than max_context_tokens");
    }
    std::stable_sort(
        trace_.requests.begin(), trace_.requests.end(),
        [](const TraceRequest& a, const TraceRequest& b) { return a.timestamp < b.timestamp; });
    renumber();
    return std::move(trace_);
  }

 private:
  [[nodiscard]] bool full() const { return std::max(accesses_, next_id_) > options_.max_accesses; }

  // Something that nobody else says.
  void extend(Context& context, uint64_t tokens) {
    context.tokens += tokens;
    const uint64_t blocks = context.tokens / options_.tokens_per_block;
    while (context.blocks.size() < blocks && !full()) context.blocks.push_back(next_id_++);
  }

  // Sends the context and appends the answer to it; `time` moves to the end of the answer. False if
  // the context has become too long to be sent.
  bool ask(Context& context, milliseconds& time, uint64_t output_tokens) {
    if (context.tokens > options_.max_context_tokens || full()) return false;
    TraceRequest request;
    request.timestamp = time;
    request.input_length = context.tokens;
    request.output_length = output_tokens;
    const bool has_part = context.tokens % options_.tokens_per_block != 0;
    request.hash_ids.reserve(context.blocks.size() + (has_part ? 1 : 0));
    request.hash_ids = context.blocks;
    if (has_part) request.hash_ids.push_back(next_id_++);
    accesses_ += request.hash_ids.size();
    trace_.requests.push_back(std::move(request));
    extend(context, output_tokens);
    time += options_.time_per_output_token * static_cast<int64_t>(output_tokens);
    return true;
  }

  // `count` prefixes of about `tokens` tokens, and how popular they are.
  std::pair<std::vector<Context>, Zipf> make_prefixes(Random& random, uint32_t count,
                                                      uint64_t tokens) {
    std::vector<Context> prefixes(count);
    for (Context& prefix : prefixes) {
      extend(prefix, random.uniform_between(tokens / 2, tokens + tokens / 2));
    }
    return {std::move(prefixes), Zipf(count)};
  }

  void add_chats(Random& random) {
    const ChatSessions& chat = options_.chat;
    if (chat.sessions == 0) return;
    const auto [prompts, popularity] =
        make_prefixes(random, chat.system_prompts, chat.system_prompt_tokens);
    milliseconds start{0};
    for (uint32_t i = 0; i < chat.sessions && !full(); ++i) {
      Random session = random.fork();
      run_chat(session, prompts[popularity.draw(session)], start);
      start += exponential(random, options_.mean_session_gap);
    }
  }

  void run_chat(Random& random, Context context, milliseconds time) {
    const ChatSessions& chat = options_.chat;
    const uint64_t turns = 1 + exponential(random, chat.mean_turns - 1);
    for (uint64_t turn = 0; turn < turns; ++turn) {
      extend(context, at_least_one(exponential(random, chat.mean_user_tokens)));
      const uint64_t reply = at_least_one(exponential(random, chat.mean_reply_tokens));
      if (!ask(context, time, reply)) return;
      time += exponential(random, chat.mean_think_time);
    }
  }

  void add_agents(Random& random) {
    const AgentSessions& agents = options_.agents;
    if (agents.sessions == 0) return;
    const auto [prefixes, popularity] = make_prefixes(random, agents.kinds, agents.prefix_tokens);
    milliseconds start{0};
    for (uint32_t i = 0; i < agents.sessions && !full(); ++i) {
      Random session = random.fork();
      Context context = prefixes[popularity.draw(session)];
      extend(context, at_least_one(exponential(session, agents.mean_task_tokens)));
      const uint64_t steps = 1 + exponential(session, agents.mean_steps - 1);
      run_agent(session, std::move(context), start, steps, agents.branch_percent);
      start += exponential(random, options_.mean_session_gap);
    }
  }

  // Returns when the agent has ended.
  milliseconds run_agent(Random& random, Context context, milliseconds time, uint64_t steps,
                         uint32_t branch_percent) {
    const AgentSessions& agents = options_.agents;
    for (uint64_t step = 0; step < steps; ++step) {
      if (!ask(context, time, at_least_one(exponential(random, agents.mean_step_tokens)))) break;
      if (random.uniform(100) < branch_percent) {
        const uint64_t count = 1 + random.uniform(agents.max_sub_agents);
        milliseconds last = time;
        for (uint64_t i = 0; i < count; ++i) {
          Context sub = context;
          extend(sub, at_least_one(exponential(random, agents.mean_task_tokens)));
          const uint64_t sub_steps = 1 + exponential(random, agents.mean_sub_steps - 1);
          last = std::max(last, run_agent(random, std::move(sub), time, sub_steps, 0));
        }
        time = last;
        extend(context, count * at_least_one(agents.mean_step_tokens));  // their reports
      } else {
        time += exponential(random, agents.mean_tool_time);
        extend(context, at_least_one(exponential(random, agents.mean_tool_tokens)));
      }
    }
    return time;
  }

  // Ids in the order of their first appearance in the sorted trace.
  void renumber() {
    constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
    std::vector<uint64_t> names(next_id_, kNone);
    uint64_t next = 0;
    for (TraceRequest& request : trace_.requests) {
      for (uint64_t& id : request.hash_ids) {
        uint64_t& name = names[id];
        if (name == kNone) name = next++;
        id = name;
      }
    }
  }

  const TraceGeneratorOptions& options_;
  Trace trace_;
  uint64_t next_id_ = 0;
  uint64_t accesses_ = 0;
};

Status check(std::string_view name, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    format_text("{} is {}: between {} and {} is possible", name, value, low, high));
}

Status check(std::string_view name, milliseconds value, milliseconds high) {
  if (value.count() >= 0 && value <= high) return {};
  return make_error(
      ErrorCode::kInvalidArgument,
      format_text("{} is {} ms: between 0 and {} is possible", name, value.count(), high.count()));
}

}  // namespace

Status TraceGeneratorOptions::validate() const {
  KVBM_TRY(check("tokens_per_block", tokens_per_block, 1, kMaxTokens));
  KVBM_TRY(check("max_context_tokens", max_context_tokens, 1, kMaxContextTokens));
  KVBM_TRY(check("max_accesses", max_accesses, 1, kMaxAccesses));
  KVBM_TRY(check("mean_session_gap", mean_session_gap, kMaxTime));
  KVBM_TRY(check("time_per_output_token", time_per_output_token, kMaxTimePerToken));
  KVBM_TRY(check("chat.sessions", chat.sessions, 0, kMaxSessions));
  KVBM_TRY(check("chat.system_prompts", chat.system_prompts, 1, kMaxPrefixes));
  KVBM_TRY(check("chat.system_prompt_tokens", chat.system_prompt_tokens, 0, kMaxTokens));
  KVBM_TRY(check("chat.mean_turns", chat.mean_turns, 1, kMaxSteps));
  KVBM_TRY(check("chat.mean_user_tokens", chat.mean_user_tokens, 0, kMaxTokens));
  KVBM_TRY(check("chat.mean_reply_tokens", chat.mean_reply_tokens, 0, kMaxTokens));
  KVBM_TRY(check("chat.mean_think_time", chat.mean_think_time, kMaxTime));
  KVBM_TRY(check("agents.sessions", agents.sessions, 0, kMaxSessions));
  KVBM_TRY(check("agents.kinds", agents.kinds, 1, kMaxPrefixes));
  KVBM_TRY(check("agents.prefix_tokens", agents.prefix_tokens, 0, kMaxTokens));
  KVBM_TRY(check("agents.mean_task_tokens", agents.mean_task_tokens, 0, kMaxTokens));
  KVBM_TRY(check("agents.mean_steps", agents.mean_steps, 1, kMaxSteps));
  KVBM_TRY(check("agents.mean_step_tokens", agents.mean_step_tokens, 0, kMaxTokens));
  KVBM_TRY(check("agents.mean_tool_tokens", agents.mean_tool_tokens, 0, kMaxTokens));
  KVBM_TRY(check("agents.mean_tool_time", agents.mean_tool_time, kMaxTime));
  KVBM_TRY(check("agents.branch_percent", agents.branch_percent, 0, 100));
  KVBM_TRY(check("agents.max_sub_agents", agents.max_sub_agents, 1, kMaxSteps));
  KVBM_TRY(check("agents.mean_sub_steps", agents.mean_sub_steps, 1, kMaxSteps));
  if (chat.sessions == 0 && agents.sessions == 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "chat.sessions and agents.sessions are both 0: the trace would be empty");
  }
  return {};
}

Result<Trace> generate_trace(const TraceGeneratorOptions& options) {
  KVBM_TRY(options.validate());
  return Generator(options).run();
}

}  // namespace kvbm
