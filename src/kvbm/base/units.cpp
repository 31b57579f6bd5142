// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/units.hpp"

#include <array>
#include <limits>
#include <optional>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

__extension__ using uint128 = unsigned __int128;  // NOLINT(readability-identifier-naming)

struct Unit {
  std::string_view name;
  uint64_t bytes;
};

constexpr std::array<Unit, 11> kSizeUnits = {{
    {"", 1},
    {"B", 1},
    {"KiB", kKiB},
    {"MiB", kMiB},
    {"GiB", kGiB},
    {"TiB", kTiB},
    {"kB", 1'000},
    {"KB", 1'000},
    {"MB", 1'000'000},
    {"GB", 1'000'000'000},
    {"TB", 1'000'000'000'000},
}};

constexpr size_t kMaxFractionDigits = 9;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Takes the leading digits off `text`; nothing where their number does not fit 64 bits.
std::optional<uint64_t> take_number(std::string_view& text) {
  uint64_t number = 0;
  while (!text.empty() && is_digit(text.front())) {
    const auto digit = static_cast<uint64_t>(text.front() - '0');
    if (number > (std::numeric_limits<uint64_t>::max() - digit) / 10) return std::nullopt;
    number = number * 10 + digit;
    text.remove_prefix(1);
  }
  return number;
}

tl::unexpected<Error> bad_size(std::string_view text, std::string_view reason) {
  return make_error(ErrorCode::kInvalidArgument,
                    format_text("cannot read \"{}\" as a size: {}", text, reason));
}

/// `amount / unit` with three digits that matter, cut rather than rounded: 1023.9 never reads 1024.
std::string three_digits(uint64_t amount, uint64_t unit, std::string_view name) {
  const uint64_t whole = amount / unit;
  const auto decimals = [&](uint64_t scale) {
    return static_cast<uint64_t>(uint128{amount % unit} * scale / unit);
  };
  std::string text = std::to_string(whole);
  if (whole < 10) {
    const uint64_t hundredths = decimals(100);
    text.append(hundredths < 10 ? ".0" : ".").append(std::to_string(hundredths));
  } else if (whole < 100) {
    text.append(".").append(std::to_string(decimals(10)));
  }
  return text.append(" ").append(name);
}

std::string two_parts(uint64_t whole, std::string_view whole_unit, uint64_t rest,
                      std::string_view rest_unit) {
  return format_text("{} {} {}{} {}", whole, whole_unit, rest < 10 ? "0" : "", rest, rest_unit);
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  std::string_view rest = text;
  if (rest.empty() || !is_digit(rest.front())) return bad_size(text, "it starts with no digit");
  const std::optional<uint64_t> whole = take_number(rest);
  if (!whole) return bad_size(text, "it is 2^64 bytes or more");

  uint64_t fraction = 0;
  uint64_t fraction_scale = 1;
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    std::string_view digits = rest;
    while (!rest.empty() && is_digit(rest.front())) rest.remove_prefix(1);
    digits.remove_suffix(rest.size());
    if (digits.empty()) return bad_size(text, "no digit follows the point");
    if (digits.size() > kMaxFractionDigits) {
      return bad_size(text, "it has more than nine digits after the point");
    }
    for (size_t i = 0; i < digits.size(); ++i) fraction_scale *= 10;
    fraction = *take_number(digits);
  }
  while (rest.starts_with(' ')) rest.remove_prefix(1);

  for (const Unit& unit : kSizeUnits) {
    if (rest != unit.name) continue;
    const uint128 size =
        uint128{*whole} * unit.bytes + uint128{fraction} * unit.bytes / fraction_scale;
    if (size > std::numeric_limits<uint64_t>::max()) {
      return bad_size(text, "it is 2^64 bytes or more");
    }
    return static_cast<uint64_t>(size);
  }
  return bad_size(text, format_text("\"{}\" is no unit; say B, KiB, MiB, GiB, TiB (1024s) or "
                                    "kB, MB, GB, TB (1000s)",
                                    rest));
}

std::string format_size(uint64_t size_bytes) {
  static constexpr std::array<Unit, 4> kUnits = {
      {{"TiB", kTiB}, {"GiB", kGiB}, {"MiB", kMiB}, {"KiB", kKiB}}};
  for (const Unit& unit : kUnits) {
    if (size_bytes < unit.bytes) continue;
    const uint64_t whole = size_bytes / unit.bytes;
    const uint64_t part = size_bytes % unit.bytes;
    if (part == 0) return format_text("{} {}", whole, unit.name);
    const auto hundredths = static_cast<uint64_t>(uint128{part} * 100 / unit.bytes);
    return format_text("{}.{}{} {}", whole, hundredths < 10 ? "0" : "", hundredths, unit.name);
  }
  return format_text("{} B", size_bytes);
}

std::string format_duration(std::chrono::nanoseconds duration) {
  constexpr uint64_t kMicrosecond = 1'000;
  constexpr uint64_t kMillisecond = 1'000'000;
  constexpr uint64_t kSecond = 1'000'000'000;
  constexpr uint64_t kMinute = 60;
  constexpr uint64_t kHour = 60 * kMinute;
  constexpr uint64_t kDay = 24 * kHour;

  const int64_t count = duration.count();
  // The difference is exact even for the most negative number.
  const uint64_t ns =
      count < 0 ? uint64_t{0} - static_cast<uint64_t>(count) : static_cast<uint64_t>(count);
  std::string text = count < 0 ? "-" : "";
  const uint64_t seconds = ns / kSecond;
  if (ns < kMicrosecond) {
    text.append(std::to_string(ns)).append(" ns");
  } else if (ns < kMillisecond) {
    text.append(three_digits(ns, kMicrosecond, "us"));
  } else if (ns < kSecond) {
    text.append(three_digits(ns, kMillisecond, "ms"));
  } else if (seconds < kMinute) {
    text.append(three_digits(ns, kSecond, "s"));
  } else if (seconds < kHour) {
    text.append(two_parts(seconds / kMinute, "min", seconds % kMinute, "s"));
  } else if (seconds < kDay) {
    text.append(two_parts(seconds / kHour, "h", seconds % kHour / kMinute, "min"));
  } else {
    text.append(two_parts(seconds / kDay, "d", seconds % kDay / kHour, "h"));
  }
  return text;
}

std::string format_count(uint64_t count) {
  struct Scale {
    std::string_view name;
    uint64_t value;
  };
  static constexpr std::array<Scale, 5> kScales = {{{"P", 1'000'000'000'000'000},
                                                    {"T", 1'000'000'000'000},
                                                    {"G", 1'000'000'000},
                                                    {"M", 1'000'000},
                                                    {"k", 1'000}}};
  for (const Scale& scale : kScales) {
    if (count >= scale.value) return three_digits(count, scale.value, scale.name);
  }
  return std::to_string(count);
}

}  // namespace kvbm
