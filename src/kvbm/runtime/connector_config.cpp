// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/connector_config.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/runtime/internal/config_text.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {
namespace {

using internal::shown_text;
using Values = ConnectorConfig;

constexpr uint64_t kMostGigabytes = 1'000'000;  // a petabyte
constexpr uint64_t kBytesPerGigabyte = 1'000'000'000;
constexpr uint64_t kMaxBytes = kMostGigabytes * kBytesPerGigabyte;
constexpr uint64_t kDaySeconds = 24 * 60 * 60;
constexpr uint64_t kMaxSeconds = 999'999'999;
constexpr std::string_view kAuto = "auto";
constexpr std::string_view kIpc = "ipc";
constexpr std::array<std::string_view, 2> kLoadModes = {"auto", "between_steps"};

constexpr ConnectorSetting kSettings[] = {
    {.name = "host_bytes",
     .member = &Values::host_bytes,
     .variable = "DYN_KVBM_CPU_CACHE_GB",
     .form = VariableForm::kGigabytes,
     .unit = "bytes",
     .doc = "Host memory over all ranks.",
     .max = kMaxBytes},
    {.name = "host_blocks",
     .member = &Values::host_blocks,
     .variable = "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS",
     .unit = "blocks",
     .doc = "Blocks of host memory for each layer group. Above 0: instead of `host_bytes`.",
     .max = kMaxTierBlocks},
    {.name = "disk_bytes",
     .member = &Values::disk_bytes,
     .variable = "DYN_KVBM_DISK_CACHE_GB",
     .form = VariableForm::kGigabytes,
     .unit = "bytes",
     .doc = "Disk space over all ranks.",
     .max = kMaxBytes},
    {.name = "disk_blocks",
     .member = &Values::disk_blocks,
     .variable = "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS",
     .unit = "blocks",
     .doc = "Blocks on disk for each layer group. Above 0: instead of `disk_bytes`.",
     .max = kMaxTierBlocks},
    {.name = "disk_directory",
     .member = &Values::disk_directory,
     .variable = "DYN_KVBM_DISK_CACHE_DIR",
     .doc = "The directory of the disk tier's files, and of a record."},
    {.name = "disk_direct_io",
     .member = &Values::disk_direct_io,
     .variable = "DYN_KVBM_DISK_DISABLE_O_DIRECT",
     .form = VariableForm::kOpposite,
     .doc = "Read and write the disk around the page cache, where the file system takes it."},
    {.name = "disk_zero_fill",
     .member = &Values::disk_zero_fill,
     .variable = "DYN_KVBM_DISK_ZEROFILL_FALLBACK",
     .doc = "Fill the files with zeros at the start where space cannot be reserved. Without it "
            "they are sparse there, and a write may fail later."},
    {.name = "disk_filter",
     .member = &Values::disk_filter,
     .variable = "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER",
     .form = VariableForm::kOpposite,
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
     .doc = "A part of every block's name: change it with the weights, and no old block is found.",
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
     .doc = "Where the scheduler and the workers of an engine meet, if they are processes of their "
            "own: `ipc`, a socket in a folder of the user's own, or a port, with a secret that is "
            "drawn for each run. Engine n of several that run data-parallel takes the n-th port "
            "after it.",
     .text_form = TextForm::kEndpoint},
    {.name = "record",
     .member = &Values::record,
     .variable = "DYN_KVBM_ENABLE_RECORD",
     .doc = "Write a flight record into `disk_directory`."},
    {.name = "metrics",
     .member = &Values::metrics,
     .variable = "DYN_KVBM_METRICS",
     .doc = "Serve a page of metrics."},
    {.name = "metrics_port",
     .member = &Values::metrics_port,
     .variable = "DYN_KVBM_METRICS_PORT",
     .doc = "Its port. Only with `metrics`.",
     .min = 1,
     .max = 65535},
};

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
  for (const ConnectorSetting& setting : kSettings) {
    if (!setting.variable.empty()) names.push_back(setting.variable);
  }
  return *std::ranges::min_element(names, {}, [wrong](std::string_view name) {
    return internal::edit_distance(wrong.substr(0, 64), name);
  });
}

tl::unexpected<Error> allowed_is(std::string_view allowed) {
  return make_error(ErrorCode::kInvalidArgument, format_text("allowed is {}", allowed));
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::string number_text(double value) {
  char digits[32];
  return std::string(digits, std::to_chars(std::begin(digits), std::end(digits), value).ptr);
}

std::optional<bool> parse_switch(std::string_view text) {
  std::string word(text);
  for (char& c : word) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (word == "true" || word == "1" || word == "yes" || word == "on") return true;
  if (word == "false" || word == "0" || word == "no" || word == "off") return false;
  return std::nullopt;
}

// "tcp://", an address and a port.
bool is_port_of_an_address(std::string_view text) {
  constexpr std::string_view kStart = "tcp://";
  const size_t colon = text.rfind(':');
  if (!text.starts_with(kStart) || colon <= kStart.size()) return false;
  const auto port = parse_number<uint16_t>(text.substr(colon + 1));
  return port && *port > 0 && text.find_first_of("* ") == std::string_view::npos;
}

bool is_good_text(const ConnectorSetting& setting, std::string_view text) {
  if (!setting.choices.empty()) {
    return std::ranges::find(setting.choices, text) != setting.choices.end();
  }
  if (text.empty() || internal::has_control_character(text)) return false;
  return setting.text_form != TextForm::kEndpoint || text == kIpc || is_port_of_an_address(text);
}

// The value of a setting, if `text` is one and it is in its range.
template <class T>
std::optional<T> parse(const ConnectorSetting& setting, std::string_view text) {
  if constexpr (std::same_as<T, bool>) {
    return parse_switch(text);
  } else if constexpr (std::same_as<T, std::string>) {
    return is_good_text(setting, text) ? std::optional(std::string(text)) : std::nullopt;
  } else if constexpr (std::same_as<T, Duration>) {
    const std::optional<double> seconds = parse_number<double>(text);
    // False for not-a-number.
    if (!seconds || !(*seconds > 0 && *seconds <= static_cast<double>(setting.max))) {
      return std::nullopt;
    }
    return std::chrono::ceil<Duration>(std::chrono::duration<double>(*seconds));
  } else if constexpr (std::same_as<T, std::optional<double>>) {
    if (text == kAuto) return std::optional<T>(T());
    const std::optional<double> share = parse_number<double>(text);
    const bool is_good = share && *share > 0 && *share <= 1;
    return is_good ? std::optional<T>(share) : std::nullopt;
  } else {
    std::optional<T> number;
    if (!setting.is_size()) {
      number = parse_number<T>(text);
    } else if (const auto size = parse_size(text)) {
      number = static_cast<T>(*size);
    }
    return number && *number >= setting.min && *number <= setting.max ? number : std::nullopt;
  }
}

}  // namespace

std::string ConnectorSetting::key() const { return "connector." + std::string(name); }

std::string ConnectorSetting::allowed() const {
  if (!choices.empty()) return internal::alternatives(choices);
  return std::visit(
      [this]<class T>(T Values::* /*member*/) {
        if constexpr (std::same_as<T, bool>) {
          return std::string("true or false (or 1, 0, yes, no, on, off)");
        } else if constexpr (std::same_as<T, std::string>) {
          if (text_form == TextForm::kDirectory) return std::string("the path of a directory");
          return format_text("{}, or an address and a port such as tcp://127.0.0.1:5600", kIpc);
        } else if constexpr (std::same_as<T, Duration>) {
          return format_text("a number of seconds above 0, at most {}", max);
        } else if constexpr (std::same_as<T, std::optional<double>>) {
          return format_text("{}, or a number above 0, at most 1", kAuto);
        } else {
          if (!is_size()) return format_text("an integer from {} to {}", min, max);
          return std::string("a number of bytes, or a size such as \"64 GiB\", at most 1 PB");
        }
      },
      member);
}

std::string ConnectorSetting::value_in(const ConnectorConfig& config) const {
  return std::visit(
      [&config]<class T>(T Values::*each) {
        const T& value = config.*each;
        if constexpr (std::same_as<T, bool>) {
          return std::string(value ? "true" : "false");
        } else if constexpr (std::same_as<T, std::string>) {
          return internal::toml_text(value);
        } else if constexpr (std::same_as<T, Duration>) {
          return number_text(std::chrono::duration<double>(value).count());
        } else if constexpr (std::same_as<T, std::optional<double>>) {
          return value ? number_text(*value) : internal::toml_text(kAuto);
        } else {
          return std::to_string(value);
        }
      },
      member);
}

bool ConnectorSetting::accepts(ConfigLiteral literal) const {
  return std::visit(
      [this, literal]<class T>(T Values::* /*member*/) {
        if constexpr (std::same_as<T, bool>) {
          return literal == ConfigLiteral::kBoolean;
        } else if constexpr (std::same_as<T, std::string>) {
          return literal == ConfigLiteral::kText;
        } else if constexpr (std::same_as<T, Duration>) {
          return literal == ConfigLiteral::kInteger || literal == ConfigLiteral::kReal;
        } else if constexpr (std::same_as<T, std::optional<double>>) {
          return literal != ConfigLiteral::kBoolean;
        } else {
          return literal == ConfigLiteral::kInteger ||
                 (is_size() && literal == ConfigLiteral::kText);
        }
      },
      member);
}

Status ConnectorSetting::set(ConnectorConfig& config, std::string_view text) const {
  return std::visit(
      [&]<class T>(T Values::*each) -> Status {
        std::optional<T> value = parse<T>(*this, text);
        if (!value) return allowed_is(allowed());
        config.*each = *std::move(value);
        return {};
      },
      member);
}

Status ConnectorSetting::set_from_variable(ConnectorConfig& config, std::string_view text) const {
  if (form == VariableForm::kGigabytes) {
    const std::optional<double> gigabytes = parse_number<double>(text);
    // False for not-a-number.
    if (!gigabytes || !(*gigabytes >= 0 && *gigabytes <= static_cast<double>(kMostGigabytes))) {
      return allowed_is("a number of gigabytes from 0 to 1000000, such as 4 or 0.5");
    }
    const auto bytes = static_cast<double>(kBytesPerGigabyte) * *gigabytes;
    config.*std::get<uint64_t Values::*>(member) = static_cast<uint64_t>(std::llround(bytes));
    return {};
  }
  KVBM_TRY(set(config, text));
  if (form == VariableForm::kOpposite) {
    bool& value = config.*std::get<bool Values::*>(member);
    value = !value;
  }
  return {};
}

std::span<const ConnectorSetting> connector_schema() { return kSettings; }

const ConnectorSetting* find_connector_setting(std::string_view name) {
  const auto found = std::ranges::find(kSettings, name, &ConnectorSetting::name);
  return found == std::end(kSettings) ? nullptr : found;
}

const ConnectorSetting& nearest_connector_setting(std::string_view wrong) {
  std::vector<std::string_view> names;
  for (const ConnectorSetting& setting : kSettings) names.push_back(setting.name);
  return *find_connector_setting(internal::nearest_name(wrong, names));
}

std::span<const RefusedVariable> refused_variables() noexcept { return kRefused; }

Result<const ConnectorSetting*> set_connector_variable(ConnectorConfig& config,
                                                       std::string_view name,
                                                       std::string_view value) {
  const auto found = std::ranges::find(kSettings, name, &ConnectorSetting::variable);
  if (found == std::end(kSettings)) {
    if (const RefusedVariable* refused = find_refused(name)) {
      return make_error(ErrorCode::kUnsupported,
                        format_text("{} is not acted on: {}; unset it", name, refused->reason));
    }
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("there is no variable {}; the nearest is {}", shown_text(name),
                                  nearest_variable(name)));
  }
  if (const Status status = found->set_from_variable(config, value); !status) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("{} = {}: {}", name, shown_text(value), status.error().message()));
  }
  return found;
}

}  // namespace kvbm
