// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/dynamo_variables.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

extern "C" char** environ;

namespace kvbm {
namespace {

constexpr std::string_view kPrefix = "DYN_KVBM_";

struct LeftOut {
  std::string_view name;  // or its beginning, before a star
  std::string_view reason;
};
// Names of Dynamo's KVBM that nothing here acts on.
constexpr LeftOut kLeftOut[] = {
    {"DYN_KVBM_MAX_CONCURRENT_TRANSFERS", "copies are bounded by threads and queues"},
    {"DYN_KVBM_TRANSFER_BATCH_SIZE", "batches are as large as what there is to copy"},
    {"DYN_KVBM_MAX_TRANSFER_BATCH_SIZE", "batches are as large as what there is to copy"},
    {"DYN_KVBM_DISK_ALLOCATOR_TYPE", "DYN_KVBM_DISK_DISABLE_O_DIRECT says it"},
    {"DYN_KVBM_LEADER_ZMQ_*", "leader and workers meet in a folder of the user's own"},
    {"DYN_KVBM_TRTLLM_ZMQ_PORT", "TensorRT-LLM is not supported yet"},
    {"DYN_KVBM_KV_EVENTS_ENABLE_CONSOLIDATOR", "events are in the engine's own stream"},
    {"DYN_KVBM_NCCL_MLA_MODE", "no copy goes through NCCL"},
    {"DYN_KVBM_NIXL_*", "there is no NIXL adapter yet"},
    {"DYN_KVBM_OBJECT_*", "there are no remote tiers yet"},
    {"DYN_KVBM_G3PB_ADMISSION_POLICY", "there are no remote tiers yet"},
    {"DYN_KVBM_CACHE_STATS_*", "hit rates are over the last 1000 look-ups, and vLLM logs them"},
    {"DYN_KVBM_ENABLE_NUMA", "memory is where the thread that first touches it runs"},
};

const LeftOut* find_left_out(std::string_view name) {
  const auto found = std::ranges::find_if(kLeftOut, [name](const LeftOut& left_out) {
    const std::string_view known = left_out.name;
    return known.ends_with('*') ? name.starts_with(known.substr(0, known.size() - 1))
                                : name == known;
  });
  return found == std::end(kLeftOut) ? nullptr : found;
}

tl::unexpected<Error> wrong(const EnvironmentVariable& variable, std::string_view allowed) {
  return make_error(ErrorCode::kInvalidArgument,
                    format_text("{} = {}: allowed is {}", variable.name,
                                internal::shown_text(variable.value), allowed));
}

template <class T>
bool parse_all(const std::string& text, T& value) {
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  return parsed.ec == std::errc() && parsed.ptr == end;
}

Status read_gigabytes(const EnvironmentVariable& variable, uint64_t& bytes) {
  constexpr double kMost = 1e6;  // a petabyte
  double gigabytes = 0;
  if (!parse_all(variable.value, gigabytes) || !std::isfinite(gigabytes) || gigabytes < 0 ||
      gigabytes > kMost) {
    return wrong(variable, "a number of gigabytes from 0 to 1000000, such as 4 or 0.5");
  }
  bytes = static_cast<uint64_t>(std::llround(gigabytes * 1e9));
  return {};
}

Status read_switch(const EnvironmentVariable& variable, bool& is_on) {
  std::string value = variable.value;
  for (char& c : value) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  is_on = value == "true" || value == "1" || value == "yes" || value == "on";
  if (!is_on && value != "false" && value != "0" && value != "no" && value != "off") {
    return wrong(variable, "true or false (or 1, 0, yes, no, on, off)");
  }
  return {};
}

Status read_unless(const EnvironmentVariable& variable, bool& value) {
  bool off = !value;
  KVBM_TRY(read_switch(variable, off));
  value = !off;
  return {};
}

Status read_blocks(const EnvironmentVariable& variable, uint32_t& blocks) {
  if (!parse_all(variable.value, blocks) || blocks > kMaxTierBlocks) {
    return wrong(variable, format_text("an integer from 0 to {}", kMaxTierBlocks));
  }
  return {};
}

Status read_port(const EnvironmentVariable& variable, uint16_t& port) {
  if (!parse_all(variable.value, port) || port == 0) {
    return wrong(variable, "a port from 1 to 65535");
  }
  return {};
}

Status read_seconds(const EnvironmentVariable& variable, Duration& time) {
  constexpr uint32_t kMost = 24 * 60 * 60;
  uint32_t seconds = 0;
  if (!parse_all(variable.value, seconds) || seconds == 0 || seconds > kMost) {
    return wrong(variable, format_text("a number of seconds from 1 to {}", kMost));
  }
  time = std::chrono::seconds(seconds);
  return {};
}

}  // namespace

std::vector<EnvironmentVariable> dynamo_environment() {
  std::vector<EnvironmentVariable> found;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (!text.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    found.push_back({std::string(text.substr(0, equals)), std::string(text.substr(equals + 1))});
  }
  return found;
}

Result<DynamoVariables> read_dynamo_variables(const std::vector<EnvironmentVariable>& environment) {
  DynamoVariables found;
  bool has_metrics = false;
  uint16_t metrics_port = 6880;
  for (const EnvironmentVariable& variable : environment) {
    const std::string_view name = variable.name;
    if (name == "DYN_KVBM_CPU_CACHE_GB") {
      KVBM_TRY(read_gigabytes(variable, found.host_bytes));
    } else if (name == "DYN_KVBM_DISK_CACHE_GB") {
      KVBM_TRY(read_gigabytes(variable, found.disk_bytes));
    } else if (name == "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS") {
      KVBM_TRY(read_blocks(variable, found.host_blocks));
    } else if (name == "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS") {
      KVBM_TRY(read_blocks(variable, found.disk_blocks));
    } else if (name == "DYN_KVBM_DISK_CACHE_DIR") {
      if (variable.value.empty()) return wrong(variable, "the path of a directory");
      found.disk_directory = variable.value;
    } else if (name == "DYN_KVBM_DISK_ZEROFILL_FALLBACK") {
      KVBM_TRY(read_switch(variable, found.disk_zero_fill));
    } else if (name == "DYN_KVBM_DISK_DISABLE_O_DIRECT") {
      KVBM_TRY(read_unless(variable, found.disk_direct_io));
    } else if (name == "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER") {
      KVBM_TRY(read_unless(variable, found.disk_filter));
    } else if (name == "DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY") {
      if (!parse_all(variable.value, found.min_priority) || found.min_priority > 100) {
        return wrong(variable, "an integer from 0 to 100");
      }
    } else if (name == "DYN_KVBM_ENABLE_RECORD") {
      KVBM_TRY(read_switch(variable, found.record));
    } else if (name == "DYN_KVBM_METRICS") {
      KVBM_TRY(read_switch(variable, has_metrics));
    } else if (name == "DYN_KVBM_METRICS_PORT") {
      KVBM_TRY(read_port(variable, metrics_port));
    } else if (name == kInitTimeoutVariable) {
      KVBM_TRY(read_seconds(variable, found.init_timeout));
    } else if (const LeftOut* left_out = find_left_out(name)) {
      return make_error(ErrorCode::kUnsupported,
                        format_text("{} is not acted on: {}; unset it", name, left_out->reason));
    } else {
      return make_error(
          ErrorCode::kInvalidArgument,
          format_text("there is no variable {}", internal::shown_text(variable.name)));
    }
  }
  if (has_metrics) found.metrics_port = metrics_port;
  return found;
}

}  // namespace kvbm
