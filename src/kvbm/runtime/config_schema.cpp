// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config_schema.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <type_traits>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/blocks/eviction_policy.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/internal/config_text.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"

namespace kvbm {
namespace {

using internal::alternatives;
using internal::has_control_character;
using internal::toml_text;

using Values = KvBlockManagerConfig;
using Milliseconds = std::chrono::milliseconds;
using Groups = std::vector<GroupConfig>;

constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();
constexpr uint64_t kMaxTimeout = 24ULL * 60 * 60 * 1000;
constexpr std::array<std::string_view, 4> kWidths = {"1", "2", "4", "8"};

constexpr std::array<LogLevel, 6> kLevels = {LogLevel::kTrace,   LogLevel::kDebug, LogLevel::kInfo,
                                             LogLevel::kWarning, LogLevel::kError, LogLevel::kOff};

std::span<const std::string_view> level_names() {
  static const auto names = [] {
    std::array<std::string_view, kLevels.size()> all;
    std::ranges::transform(kLevels, all.begin(), [](LogLevel level) { return to_string(level); });
    return all;
  }();
  return names;
}

std::vector<ConfigKey> make_schema() {
  return {
      {.name = "block_size",
       .member = &Values::block_size,
       .unit = "tokens",
       .doc = "Tokens per block.",
       .min = 1,
       .max = 65536},
      {.name = "device",
       .member = &Values::device,
       .doc = "Where G1 is: `cuda:N` (`cuda` is `cuda:0`), or `host` for host memory in its place. "
              "Each further rank takes the next GPU if there are enough, else all share one.",
       .has_form = is_device_name,
       .form = "host, cuda or cuda:N"},
      {.name = "num_blocks",
       .member = &Values::num_blocks,
       .unit = "blocks",
       .doc = "Blocks of GPU memory (G1). 0: as many as `gpu_memory_fraction` allows.",
       .max = kMaxTierBlocks},
      {.name = "num_layers",
       .member = &Values::num_layers,
       .unit = "layers",
       .doc = "Layers of the model. 0 where `groups` says it; if both do, they agree.",
       .max = 65535},
      {.name = "gpu_memory_fraction",
       .member = &Values::gpu_memory_fraction,
       .doc =
           "The part of the free GPU memory that blocks may take. Only where `num_blocks` is 0 and "
           "`device` is a GPU."},
      {.name = "enable_offload",
       .member = &Values::enable_offload,
       .doc = "Keep blocks in host memory or on disk too. Needs a size for at least one of them."},
      {.name = "offload_path",
       .member = &Values::offload_path,
       .doc = "The directory of the disk tier's files. Only with a disk tier."},
      {.name = "outer_dim",
       .member = &Values::outer_dim,
       .doc = "2 for keys and values; 1 for a single tensor (MLA).",
       .min = 1,
       .max = 2},
      {.name = "num_heads",
       .member = &Values::num_heads,
       .unit = "heads",
       .doc = "KV heads on one rank. Must be set, here or in every group.",
       .max = 8192},
      {.name = "head_dim",
       .member = &Values::head_dim,
       .unit = "elements",
       .doc = "Size of one head. Must be set, here or in every group.",
       .max = 65536},
      {.name = "dtype_width_bytes",
       .member = &Values::dtype_width_bytes,
       .unit = "bytes",
       .doc = "Width of one element.",
       .choices = kWidths},
      {.name = "num_ranks",
       .member = &Values::num_ranks,
       .unit = "ranks",
       .doc = "Workers that hold a shard of every block (tensor parallelism).",
       .min = 1,
       .max = 1024},
      {.name = "groups",
       .member = &Values::groups,
       .doc =
           "Layer groups, see below. Empty: one group that keeps the full prefix, of `num_layers` "
           "layers."},
      {.name = "host_blocks",
       .member = &Values::host_blocks,
       .unit = "blocks",
       .doc = "Blocks of host memory (G2). 0: none, unless `host_bytes` is set.",
       .max = kMaxTierBlocks},
      {.name = "host_bytes",
       .member = &Values::host_bytes,
       .unit = "bytes",
       .doc = "Host memory (G2) over all ranks, instead of `host_blocks`.",
       .max = kMaxBytes},
      {.name = "disk_blocks",
       .member = &Values::disk_blocks,
       .unit = "blocks",
       .doc = "Blocks on disk (G3). 0: none, unless `disk_bytes` is set.",
       .max = kMaxTierBlocks},
      {.name = "disk_bytes",
       .member = &Values::disk_bytes,
       .unit = "bytes",
       .doc = "Disk space (G3) over all ranks, instead of `disk_blocks`.",
       .max = kMaxBytes},
      {.name = "policy",
       .member = &Values::policy,
       .doc = "Which idle block makes room for a new one.",
       .choices = policy_names()},
      {.name = "model",
       .member = &Values::model,
       .doc = "Name and revision of the weights: blocks of different models never meet."},
      {.name = "cache_salt",
       .member = &Values::cache_salt,
       .doc = "Keeps tenants apart: blocks of different salts never meet."},
      {.name = "transfer_timeout",
       .member = &Values::transfer_timeout,
       .unit = "ms",
       .doc =
           "How long a load from a lower tier may take, and any copy may wait for its start. 0: no "
           "limit. Only with `enable_offload`.",
       .max = kMaxTimeout},
      {.name = "copy_threads",
       .member = &Values::copy_threads,
       .unit = "threads",
       .doc = "Threads that copy between device and host memory, on each rank.",
       .min = 1,
       .max = 256},
      {.name = "disk_threads",
       .member = &Values::disk_threads,
       .unit = "threads",
       .doc = "Threads that read and write files, on each rank. Only with a disk tier.",
       .min = 1,
       .max = 256},
      {.name = "calibration_dir",
       .member = &Values::calibration_dir,
       .doc =
           "The folder that keeps what copies cost, as measured on this machine. Empty: `kvbm` in "
           "`XDG_CACHE_HOME`, or in `~/.cache`; `off`: kept nowhere."},
      {.name = "log_level",
       .member = &Values::log_level,
       .doc =
           "The least important records that are logged, to standard error. A program that hands "
           "in a log sink decides with its level instead.",
       .choices = level_names()},
  };
}

// Calls `f(value)` with the key's value in `config`.
template <class Config, class F>
decltype(auto) with_value(const ConfigKey& key, Config& config, F f) {
  return std::visit([&](auto member) { return f(config.*member); }, key.member);
}

// The type of a key's value, as an argument.
template <class T>
struct TypeOf {};

template <class F>
decltype(auto) with_type(const ConfigKey& key, F f) {
  return std::visit([&]<class T>(T KvBlockManagerConfig::* /*member*/) { return f(TypeOf<T>{}); },
                    key.member);
}

template <class T>
constexpr bool kIsInteger = std::same_as<T, uint32_t> || std::same_as<T, Milliseconds>;

uint64_t number_of(uint32_t value) { return value; }
uint64_t number_of(uint64_t value) { return value; }
// A negative duration is out of every range.
uint64_t number_of(Milliseconds value) { return static_cast<uint64_t>(value.count()); }

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::optional<bool> parse_boolean(std::string_view text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  return std::nullopt;
}

std::optional<LogLevel> parse_level(std::string_view text) {
  const auto found =
      std::ranges::find(kLevels, text, [](LogLevel level) { return to_string(level); });
  if (found == kLevels.end()) return std::nullopt;
  return *found;
}

bool is_choice(const ConfigKey& key, std::string_view text) {
  return key.choices.empty() || std::ranges::find(key.choices, text) != key.choices.end();
}

std::string joined(std::span<const std::string_view> words, char between) {
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty()) text += between;
    text += word;
  }
  return text;
}

std::string toml_real(double value) {
  char digits[32];
  const auto [end, error] = std::to_chars(std::begin(digits), std::end(digits), value);
  std::string text(digits, error == std::errc() ? end : digits);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

Error not_allowed(const ConfigKey& key) {
  return {ErrorCode::kInvalidArgument, format_text("allowed is {}", key.allowed())};
}

}  // namespace

std::string ConfigKey::allowed() const {
  if (!choices.empty()) return alternatives(choices);
  if (has_form != nullptr) return std::string(form);
  return with_type(*this, [this]<class T>(TypeOf<T> /*type*/) {
    if constexpr (std::same_as<T, bool>) {
      return std::string("true or false");
    } else if constexpr (kIsInteger<T>) {
      return format_text("an integer from {} to {}", min, max);
    } else if constexpr (std::same_as<T, uint64_t>) {
      return std::string("a number of bytes, or a size such as \"64 GiB\", below 8 EiB");
    } else if constexpr (std::same_as<T, double>) {
      return std::string("a number above 0, at most 1");
    } else if constexpr (std::same_as<T, Groups>) {
      return std::string("a list of groups such as full:layers=4;window:layers=2,blocks=8");
    } else {
      return std::string("a text without control characters");
    }
  });
}

std::string ConfigKey::placeholder() const {
  if (!choices.empty()) return joined(choices, '|');
  return with_type(*this, []<class T>(TypeOf<T> /*type*/) {
    if constexpr (std::same_as<T, bool>) {
      return std::string("true|false");
    } else if constexpr (kIsInteger<T>) {
      return std::string("INTEGER");
    } else if constexpr (std::same_as<T, uint64_t>) {
      return std::string("SIZE");
    } else if constexpr (std::same_as<T, double>) {
      return std::string("NUMBER");
    } else if constexpr (std::same_as<T, Groups>) {
      return std::string("SPEC");
    } else {
      return std::string("TEXT");
    }
  });
}

std::string ConfigKey::option() const {
  std::string text = "--" + std::string(name);
  std::ranges::replace(text, '_', '-');
  return text;
}

std::string ConfigKey::environment_variable() const {
  std::string text = "KVBM_";
  for (const char letter : name) {
    text += letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - 'a' + 'A') : letter;
  }
  return text;
}

std::string ConfigKey::value_in(const KvBlockManagerConfig& config) const {
  return with_value(*this, config, []<class T>(const T& value) {
    if constexpr (std::same_as<T, bool>) {
      return std::string(value ? "true" : "false");
    } else if constexpr (std::same_as<T, Milliseconds>) {
      return std::to_string(value.count());
    } else if constexpr (kIsInteger<T> || std::same_as<T, uint64_t>) {
      return std::to_string(value);
    } else if constexpr (std::same_as<T, double>) {
      return toml_real(value);
    } else if constexpr (std::same_as<T, Groups>) {
      return toml_text(format_groups(value));
    } else if constexpr (std::same_as<T, LogLevel>) {
      return toml_text(to_string(value));
    } else {
      return toml_text(value);
    }
  });
}

bool ConfigKey::is_default_in(const KvBlockManagerConfig& config) const {
  return std::visit([&config](auto each) { return config.*each == KvBlockManagerConfig{}.*each; },
                    member);
}

bool ConfigKey::accepts(ConfigLiteral literal) const {
  return with_type(*this, [literal]<class T>(TypeOf<T> /*type*/) {
    if constexpr (std::same_as<T, bool>) {
      return literal == ConfigLiteral::kBoolean;
    } else if constexpr (kIsInteger<T>) {
      return literal == ConfigLiteral::kInteger;
    } else if constexpr (std::same_as<T, uint64_t>) {
      return literal == ConfigLiteral::kInteger || literal == ConfigLiteral::kText;
    } else if constexpr (std::same_as<T, double>) {
      return literal == ConfigLiteral::kInteger || literal == ConfigLiteral::kReal;
    } else {
      return literal == ConfigLiteral::kText;
    }
  });
}

Status ConfigKey::set(KvBlockManagerConfig& config, std::string_view text) const {
  KvBlockManagerConfig changed;
  const bool is_readable = with_value(*this, changed, [&text]<class T>(T& value) {
    if constexpr (std::same_as<T, Groups>) {
      return true;
    } else {
      std::optional<T> parsed;
      if constexpr (std::same_as<T, bool>) {
        parsed = parse_boolean(text);
      } else if constexpr (std::same_as<T, Milliseconds>) {
        if (const auto count = parse_number<int64_t>(text)) parsed = Milliseconds(*count);
      } else if constexpr (std::same_as<T, uint64_t>) {
        if (const auto size = parse_size(text)) parsed = *size;
      } else if constexpr (std::same_as<T, LogLevel>) {
        parsed = parse_level(text);
      } else if constexpr (std::same_as<T, std::string>) {
        parsed = std::string(text);
      } else {
        parsed = parse_number<T>(text);
      }
      if (!parsed) return false;
      value = *std::move(parsed);
      return true;
    }
  });
  if (!is_readable) return make_error(not_allowed(*this));
  if (const auto* groups = std::get_if<Groups KvBlockManagerConfig::*>(&member)) {
    KVBM_ASSIGN_OR_RETURN(changed.**groups, parse_groups(text));
  }
  KVBM_TRY(check(changed));
  std::visit([&](auto each) { config.*each = std::move(changed.*each); }, member);
  return {};
}

Status ConfigKey::check(const KvBlockManagerConfig& config) const {
  return with_value(*this, config, [this]<class T>(const T& value) -> Status {
    if constexpr (std::same_as<T, Groups>) {
      return check_groups(value);
    } else {
      bool is_good = true;
      if constexpr (kIsInteger<T> || std::same_as<T, uint64_t>) {
        const uint64_t number = number_of(value);
        is_good = choices.empty() ? number >= min && number <= max
                                  : is_choice(*this, std::to_string(number));
      } else if constexpr (std::same_as<T, double>) {
        is_good = value > 0 && value <= 1;  // false for not-a-number
      } else if constexpr (std::same_as<T, std::string>) {
        is_good = !has_control_character(value) && is_choice(*this, value) &&
                  (has_form == nullptr || has_form(value));
      } else if constexpr (std::same_as<T, LogLevel>) {
        is_good = is_choice(*this, to_string(value));
      }
      if (!is_good) return make_error(not_allowed(*this));
      return {};
    }
  });
}

std::span<const ConfigKey> config_schema() {
  static const std::vector<ConfigKey> schema = make_schema();
  return schema;
}

const ConfigKey* find_config_key(std::string_view name) {
  const std::span<const ConfigKey> schema = config_schema();
  const auto found = std::ranges::find(schema, name, &ConfigKey::name);
  return found == schema.end() ? nullptr : &*found;
}

const ConfigKey& nearest_config_key(std::string_view wrong) {
  std::vector<std::string_view> names;
  for (const ConfigKey& key : config_schema()) names.push_back(key.name);
  return *find_config_key(internal::nearest_name(wrong, names));
}

}  // namespace kvbm
