// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/connector_config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"
#include "kvbm/runtime/internal/parse_number.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {
namespace {

using internal::parse_number;
using internal::shown_text;
using Values = ConnectorConfig;

constexpr uint64_t kMostGigabytes = 1'000'000;  // a petabyte
constexpr uint64_t kBytesPerGigabyte = 1'000'000'000;
constexpr uint64_t kMaxBytes = kMostGigabytes * kBytesPerGigabyte;
constexpr uint64_t kDaySeconds = 24 * 60 * 60;
constexpr uint64_t kMaxSeconds = 999'999'999;
constexpr std::string_view kSizeForm =
    "a number of bytes, or a size such as \"64 GiB\", at most 1 PB";
constexpr std::array<std::string_view, 2> kLoadModes = {"auto", "between_steps"};

// "ipc", or "tcp://", an address and a port.
bool is_endpoint(std::string_view text) {
  constexpr std::string_view kStart = "tcp://";
  if (text == "ipc") return true;
  const size_t colon = text.rfind(':');
  if (!text.starts_with(kStart) || colon <= kStart.size()) return false;
  const auto port = parse_number<uint16_t>(text.substr(colon + 1));
  return port && *port > 0 && text.find_first_of("* ") == std::string_view::npos;
}

std::vector<ConnectorSetting> make_schema() {
  return {
      {.name = "host_bytes",
       .member = &Values::host_bytes,
       .variable = "DYN_KVBM_CPU_CACHE_GB",
       .variable_form = VariableForm::kGigabytes,
       .unit = "bytes",
       .doc = "Host memory over all ranks.",
       .max = kMaxBytes,
       .form = kSizeForm},
      {.name = "host_blocks",
       .member = &Values::host_blocks,
       .variable = "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS",
       .unit = "blocks",
       .doc = "Blocks of host memory for each layer group. Above 0: instead of `host_bytes`.",
       .max = kMaxTierBlocks},
      {.name = "disk_bytes",
       .member = &Values::disk_bytes,
       .variable = "DYN_KVBM_DISK_CACHE_GB",
       .variable_form = VariableForm::kGigabytes,
       .unit = "bytes",
       .doc = "Disk space over all ranks.",
       .max = kMaxBytes,
       .form = kSizeForm},
      {.name = "disk_blocks",
       .member = &Values::disk_blocks,
       .variable = "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS",
       .unit = "blocks",
       .doc = "Blocks on disk for each layer group. Above 0: instead of `disk_bytes`.",
       .max = kMaxTierBlocks},
      {.name = "disk_directory",
       .member = &Values::disk_directory,
       .variable = "DYN_KVBM_DISK_CACHE_DIR",
       .doc = "The directory of the disk tier's files, and of a record.",
       .min = 1,
       .form = "the path of a directory"},
      {.name = "disk_direct_io",
       .member = &Values::disk_direct_io,
       .variable = "DYN_KVBM_DISK_DISABLE_O_DIRECT",
       .variable_form = VariableForm::kOpposite,
       .words = BooleanWords::kMore,
       .doc = "Read and write the disk around the page cache, where the file system takes it."},
      {.name = "disk_zero_fill",
       .member = &Values::disk_zero_fill,
       .variable = "DYN_KVBM_DISK_ZEROFILL_FALLBACK",
       .words = BooleanWords::kMore,
       .doc = "Fill the files with zeros at the start where space cannot be reserved. Without it "
              "they are sparse there, and a write may fail later."},
      {.name = "disk_filter",
       .member = &Values::disk_filter,
       .variable = "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER",
       .variable_form = VariableForm::kOpposite,
       .words = BooleanWords::kMore,
       .doc = "Write to disk only what was stored or loaded twice."},
      {.name = "min_priority",
       .member = &Values::min_priority,
       .variable = "DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY",
       .doc = "Blocks of requests that say a lower priority are not stored, nor those after them.",
       .max = 100},
      {.name = "load_mode",
       .member = &Values::load_mode,
       .doc = "`between_steps` loads nothing within the engine's steps.",
       .choices = kLoadModes},
      {.name = "store_budget",
       .member = &Values::store_budget,
       .variable = "DYN_KVBM_STORE_BUDGET",
       .doc = "The share of the engine's blocks that stores under way may read at a time; what is "
              "beyond it is not stored. At least one block. `auto`: 0.05, but not less than 1024 "
              "blocks. Never more than the nearest tier has."},
      {.name = "weights_epoch",
       .member = &Values::weights_epoch,
       .doc =
           "A part of every block's name: change it with the weights, and no old block is found.",
       .max = std::numeric_limits<uint64_t>::max()},
      {.name = "transfer_timeout_seconds",
       .member = &Values::transfer_timeout,
       .unit = "s",
       .doc = "How long a load may take, and a copy may wait to start.",
       .max = kMaxSeconds},
      {.name = "init_timeout_seconds",
       .member = &Values::init_timeout,
       .variable = kInitTimeoutVariable,
       .unit = "s",
       .doc = "How long a leader waits at the start for workers of other processes.",
       .max = kDaySeconds},
      {.name = "place_timeout_seconds",
       .member = &Values::place_timeout,
       .unit = "s",
       .doc = "How long workers of other processes may take to make one place: the memory or the "
              "file of a layer group in a tier.",
       .max = kMaxSeconds},
      {.name = "endpoint",
       .member = &Values::endpoint,
       .variable = "DYN_KVBM_ENDPOINT",
       .doc =
           "Where the scheduler and the workers of an engine meet, if they are processes of their "
           "own: `ipc`, a socket in a folder of the user's own, or a port, with a secret that is "
           "drawn for each run. Engine n of several that run data-parallel takes the n-th port "
           "after it.",
       .form = "ipc, or an address and a port such as tcp://127.0.0.1:5600",
       .has_form = is_endpoint,
       .pattern = "^(ipc|tcp://[^* ]+:[0-9]+)$"},
      {.name = "record",
       .member = &Values::record,
       .variable = "DYN_KVBM_ENABLE_RECORD",
       .words = BooleanWords::kMore,
       .doc = "Write a flight record into `disk_directory`."},
      {.name = "metrics",
       .member = &Values::metrics,
       .variable = "DYN_KVBM_METRICS",
       .words = BooleanWords::kMore,
       .doc = "Serve a page of metrics."},
      {.name = "metrics_port",
       .member = &Values::metrics_port,
       .variable = "DYN_KVBM_METRICS_PORT",
       .doc = "Its port. Only with `metrics`.",
       .min = 1,
       .max = 65535},
  };
}

constexpr RefusedVariable kRefused[] = {
    {"DYN_KVBM_MAX_CONCURRENT_TRANSFERS", "copies are bounded by threads and queues"},
    {"DYN_KVBM_TRANSFER_BATCH_SIZE", "batches are as large as what there is to copy"},
    {"DYN_KVBM_MAX_TRANSFER_BATCH_SIZE", "batches are as large as what there is to copy"},
    {"DYN_KVBM_DISK_ALLOCATOR_TYPE", "DYN_KVBM_DISK_DISABLE_O_DIRECT says it"},
    {"DYN_KVBM_LEADER_ZMQ_*",
     "DYN_KVBM_ENDPOINT says where leader and workers meet, if not in a folder of the user's "
     "own"},
    {"DYN_KVBM_TRTLLM_ZMQ_PORT", "TensorRT-LLM is not supported yet"},
    {"DYN_KVBM_KV_EVENTS_ENABLE_CONSOLIDATOR", "events are in the engine's own stream"},
    {"DYN_KVBM_NCCL_MLA_MODE", "no copy goes through NCCL"},
    {"DYN_KVBM_NIXL_*", "there is no NIXL adapter yet"},
    {"DYN_KVBM_OBJECT_*", "there are no remote tiers yet"},
    {"DYN_KVBM_G3PB_ADMISSION_POLICY", "there are no remote tiers yet"},
    {"DYN_KVBM_CACHE_STATS_*", "hit rates are over the last 1000 look-ups, and vLLM logs them"},
    {"DYN_KVBM_ENABLE_NUMA", "memory is where the thread that first touches it runs"},
};

const RefusedVariable* find_refused(std::string_view name) {
  const auto found = std::ranges::find_if(kRefused, [name](const RefusedVariable& refused) {
    const std::string_view known = refused.name;
    return known.ends_with('*') ? name.starts_with(known.substr(0, known.size() - 1))
                                : name == known;
  });
  return found == std::end(kRefused) ? nullptr : found;
}

std::string_view nearest_variable(std::string_view wrong) {
  std::vector<std::string_view> names;
  for (const ConnectorSetting& setting : connector_schema()) {
    if (!setting.variable.empty()) names.push_back(setting.variable);
  }
  return *std::ranges::min_element(names, {}, [wrong](std::string_view name) {
    return internal::edit_distance(wrong.substr(0, 64), name);
  });
}

Status set_gigabytes(uint64_t& bytes, std::string_view text) {
  const std::optional<double> gigabytes = parse_number<double>(text);
  // False for not-a-number.
  if (!gigabytes || !(*gigabytes >= 0 && *gigabytes <= static_cast<double>(kMostGigabytes))) {
    return make_error(ErrorCode::kInvalidArgument,
                      "allowed is a number of gigabytes from 0 to 1000000, such as 4 or 0.5");
  }
  const auto exact = static_cast<double>(kBytesPerGigabyte) * *gigabytes;
  bytes = static_cast<uint64_t>(std::llround(exact));
  return {};
}

// Sets what the variable of `setting` says.
Status set_from_variable(const ConnectorSetting& setting, ConnectorConfig& config,
                         std::string_view text) {
  if (setting.variable_form == VariableForm::kGigabytes) {
    return set_gigabytes(config.*std::get<uint64_t Values::*>(setting.member), text);
  }
  KVBM_TRY(setting.set(config, text));
  if (setting.variable_form == VariableForm::kOpposite) {
    bool& value = config.*std::get<bool Values::*>(setting.member);
    value = !value;
  }
  return {};
}

}  // namespace

const SettingTable<ConnectorConfig>& connector_schema() {
  static const SettingTable<ConnectorConfig> schema("connector", make_schema());
  return schema;
}

std::span<const RefusedVariable> refused_variables() noexcept { return kRefused; }

Result<const ConnectorSetting*> set_connector_variable(ConnectorConfig& config,
                                                       std::string_view name,
                                                       std::string_view value) {
  const auto found = std::ranges::find(connector_schema(), name, &ConnectorSetting::variable);
  if (found == connector_schema().end()) {
    if (const RefusedVariable* refused = find_refused(name)) {
      return make_error(ErrorCode::kUnsupported,
                        format_text("{} is not acted on: {}; unset it", name, refused->reason));
    }
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("there is no variable {}; the nearest is {}", shown_text(name),
                                  nearest_variable(name)));
  }
  if (const Status status = set_from_variable(*found, config, value); !status) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("{} = {}: {}", name, shown_text(value), status.error().message()));
  }
  return &*found;
}

}  // namespace kvbm
