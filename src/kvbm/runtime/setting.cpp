// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/setting.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <iterator>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/runtime/connector_config.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"
#include "kvbm/runtime/internal/parse_number.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {
namespace {

using internal::parse_number;
using Milliseconds = std::chrono::milliseconds;
using Groups = std::vector<GroupConfig>;
using Seconds = std::chrono::duration<double>;

constexpr std::string_view kAuto = "auto";

template <class T>
constexpr bool kIsInteger = std::same_as<T, uint32_t> || std::same_as<T, uint64_t>;

// The type of a setting's value, as an argument.
template <class T>
struct TypeOf {};

template <class Values, class F>
decltype(auto) with_type(const Setting<Values>& setting, F f) {
  return std::visit([&]<class T>(T Values::* /*member*/) { return f(TypeOf<T>{}); },
                    setting.member);
}

std::string joined(std::span<const std::string_view> words, std::string_view between,
                   std::string_view last) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) text += i + 1 == words.size() ? last : between;
    text += words[i];
  }
  return text;
}

// A text without control characters.
std::string toml_text(std::string_view text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    out += letter;
  }
  return out + '"';
}

std::string number_text(double value) {
  char digits[32];
  return std::string(digits, std::to_chars(std::begin(digits), std::end(digits), value).ptr);
}

std::string real_text(double value) {
  std::string text = number_text(value);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

std::optional<bool> parse_boolean(std::string_view text, BooleanWords words) {
  std::string word(text);
  const bool more = words == BooleanWords::kMore;
  if (more) {
    for (char& c : word) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  }
  if (word == "true" || word == "1" || (more && (word == "yes" || word == "on"))) return true;
  if (word == "false" || word == "0" || (more && (word == "no" || word == "off"))) return false;
  return std::nullopt;
}

std::optional<LogLevel> parse_level(std::string_view text) {
  for (const LogLevel level : {LogLevel::kTrace, LogLevel::kDebug, LogLevel::kInfo,
                               LogLevel::kWarning, LogLevel::kError, LogLevel::kOff}) {
    if (to_string(level) == text) return level;
  }
  return std::nullopt;
}

// False for not-a-number.
bool is_share(double value) { return value > 0 && value <= 1; }

template <class Values>
bool is_seconds(const Setting<Values>& setting, double value) {
  return value > 0 && value <= static_cast<double>(setting.max);
}

template <class Values>
bool is_in_range(const Setting<Values>& setting, uint64_t number) {
  return number >= setting.min && number <= setting.max;
}

template <class Values>
bool is_choice(const Setting<Values>& setting, std::string_view text) {
  return setting.choices.empty() ||
         std::ranges::find(setting.choices, text) != setting.choices.end();
}

template <class Values>
bool is_good_text(const Setting<Values>& setting, std::string_view text) {
  const bool has_control_character = std::ranges::any_of(text, [](char letter) {
    return static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F;
  });
  return !has_control_character && text.size() >= setting.min && is_choice(setting, text) &&
         (setting.has_form == nullptr || setting.has_form(text));
}

template <class Values, class T>
bool is_good(const Setting<Values>& setting, const T& value) {
  if constexpr (std::same_as<T, bool>) {
    return true;
  } else if constexpr (kIsInteger<T>) {
    return setting.choices.empty() ? is_in_range(setting, value)
                                   : is_choice(setting, std::to_string(value));
  } else if constexpr (std::same_as<T, Milliseconds>) {
    // A negative one is out of every range.
    return is_in_range(setting, static_cast<uint64_t>(value.count()));
  } else if constexpr (std::same_as<T, Duration>) {
    return is_seconds(setting, Seconds(value).count());
  } else if constexpr (std::same_as<T, double>) {
    return is_share(value);
  } else if constexpr (std::same_as<T, std::optional<double>>) {
    return !value || is_share(*value);
  } else if constexpr (std::same_as<T, LogLevel>) {
    return is_choice(setting, to_string(value));
  } else {
    return is_good_text(setting, value);
  }
}

// The value that `text` is, in its range or not.
template <class T, class Values>
std::optional<T> parse(const Setting<Values>& setting, std::string_view text) {
  if constexpr (std::same_as<T, bool>) {
    return parse_boolean(text, setting.words);
  } else if constexpr (std::same_as<T, Milliseconds>) {
    const auto count = parse_number<int64_t>(text);
    return count ? std::optional(Milliseconds(*count)) : std::nullopt;
  } else if constexpr (std::same_as<T, Duration>) {
    const auto seconds = parse_number<double>(text);
    // What is out of the range may be out of a Duration's, too.
    if (!seconds || !is_seconds(setting, *seconds)) return std::nullopt;
    return std::chrono::ceil<Duration>(Seconds(*seconds));
  } else if constexpr (std::same_as<T, std::optional<double>>) {
    if (text == kAuto) return std::optional<T>(T());
    const auto share = parse_number<double>(text);
    return share ? std::optional<T>(share) : std::nullopt;
  } else if constexpr (std::same_as<T, LogLevel>) {
    return parse_level(text);
  } else if constexpr (std::same_as<T, std::string>) {
    return std::string(text);
  } else {
    if (!setting.is_size()) return parse_number<T>(text);
    const auto size = parse_size(text);
    return size ? std::optional(static_cast<T>(*size)) : std::nullopt;
  }
}

template <class Values>
tl::unexpected<Error> not_allowed(const Setting<Values>& setting) {
  return make_error(ErrorCode::kInvalidArgument, format_text("allowed is {}", setting.allowed()));
}

}  // namespace

template <class Values>
std::string Setting<Values>::allowed() const {
  if (!choices.empty()) return joined(choices, ", ", " or ");
  if (!form.empty()) return std::string(form);
  return with_type(*this, [this]<class T>(TypeOf<T> /*type*/) -> std::string {
    if constexpr (std::same_as<T, bool>) {
      return words == BooleanWords::kFew ? "true or false"
                                         : "true or false (or 1, 0, yes, no, on, off)";
    } else if constexpr (kIsInteger<T> || std::same_as<T, Milliseconds>) {
      return format_text("an integer from {} to {}", min, max);
    } else if constexpr (std::same_as<T, Duration>) {
      return format_text("a number of seconds above 0, at most {}", max);
    } else if constexpr (std::same_as<T, double>) {
      return "a number above 0, at most 1";
    } else if constexpr (std::same_as<T, std::optional<double>>) {
      return format_text("{}, or a number above 0, at most 1", kAuto);
    } else if constexpr (std::same_as<T, Groups>) {
      return "a list of groups such as full:layers=4;window:layers=2,blocks=8";
    } else {
      return "a text without control characters";
    }
  });
}

template <class Values>
std::string Setting<Values>::placeholder() const {
  if (!choices.empty()) return joined(choices, "|", "|");
  return with_type(*this, [this]<class T>(TypeOf<T> /*type*/) -> std::string {
    if constexpr (std::same_as<T, bool>) {
      return "true|false";
    } else if constexpr (kIsInteger<T> || std::same_as<T, Milliseconds>) {
      return is_size() ? "SIZE" : "INTEGER";
    } else if constexpr (std::same_as<T, Groups>) {
      return "SPEC";
    } else if constexpr (std::same_as<T, std::string> || std::same_as<T, LogLevel>) {
      return "TEXT";
    } else {
      return "NUMBER";
    }
  });
}

template <class Values>
std::string Setting<Values>::value_in(const Values& values) const {
  return std::visit(
      [&values]<class T>(T Values::*each) -> std::string {
        const T& value = values.*each;
        if constexpr (std::same_as<T, bool>) {
          return value ? "true" : "false";
        } else if constexpr (std::same_as<T, Milliseconds>) {
          return std::to_string(value.count());
        } else if constexpr (std::same_as<T, Duration>) {
          return number_text(Seconds(value).count());
        } else if constexpr (std::same_as<T, double>) {
          return real_text(value);
        } else if constexpr (std::same_as<T, std::optional<double>>) {
          return value ? number_text(*value) : toml_text(kAuto);
        } else if constexpr (std::same_as<T, Groups>) {
          return toml_text(format_groups(value));
        } else if constexpr (std::same_as<T, LogLevel>) {
          return toml_text(to_string(value));
        } else if constexpr (std::same_as<T, std::string>) {
          return toml_text(value);
        } else {
          return std::to_string(value);
        }
      },
      member);
}

template <class Values>
bool Setting<Values>::is_default_in(const Values& values) const {
  return std::visit([&values](auto each) { return values.*each == Values{}.*each; }, member);
}

template <class Values>
bool Setting<Values>::accepts(ConfigLiteral literal) const {
  using enum ConfigLiteral;
  return with_type(*this, [this, literal]<class T>(TypeOf<T> /*type*/) {
    const bool is_number = literal == kInteger || literal == kReal;
    if constexpr (std::same_as<T, bool>) {
      return literal == kBoolean;
    } else if constexpr (kIsInteger<T> || std::same_as<T, Milliseconds>) {
      return literal == kInteger || (is_size() && literal == kText);
    } else if constexpr (std::same_as<T, double> || std::same_as<T, Duration>) {
      return is_number;
    } else if constexpr (std::same_as<T, std::optional<double>>) {
      return is_number || literal == kText;
    } else {
      return literal == kText;
    }
  });
}

template <class Values>
Status Setting<Values>::set(Values& values, std::string_view text,
                            std::optional<ConfigLiteral> literal) const {
  if (literal && !accepts(*literal)) return not_allowed(*this);
  return std::visit(
      [&]<class T>(T Values::*each) -> Status {
        if constexpr (std::same_as<T, Groups>) {
          KVBM_ASSIGN_OR_RETURN(Groups groups, parse_groups(text));
          KVBM_TRY(check_groups(groups));
          values.*each = std::move(groups);
        } else {
          std::optional<T> value = parse<T>(*this, text);
          if (!value || !is_good(*this, *value)) return not_allowed(*this);
          values.*each = *std::move(value);
        }
        return {};
      },
      member);
}

template <class Values>
Status Setting<Values>::check(const Values& values) const {
  return std::visit(
      [&]<class T>(T Values::*each) -> Status {
        if constexpr (std::same_as<T, Groups>) {
          return check_groups(values.*each);
        } else {
          if (!is_good(*this, values.*each)) return not_allowed(*this);
          return {};
        }
      },
      member);
}

template <class Values>
const Setting<Values>* SettingTable<Values>::find(std::string_view name) const {
  const auto found = std::ranges::find(settings_, name, &Setting<Values>::name);
  return found == settings_.end() ? nullptr : &*found;
}

template <class Values>
const Setting<Values>& SettingTable<Values>::nearest(std::string_view wrong) const {
  std::vector<std::string_view> names;
  for (const Setting<Values>& setting : settings_) names.push_back(setting.name);
  return *find(internal::nearest_name(wrong, names));
}

template <class Values>
std::string SettingTable<Values>::key_of(std::string_view name) const {
  return name_.empty() ? std::string(name) : format_text("{}.{}", name_, name);
}

template struct Setting<KvBlockManagerConfig>;
template struct Setting<ConnectorConfig>;
template class SettingTable<KvBlockManagerConfig>;
template class SettingTable<ConnectorConfig>;

}  // namespace kvbm
