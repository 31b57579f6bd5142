// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/text.hpp"

#include <array>
#include <charconv>

namespace kvbm {
namespace {

template <class Number>
void append_number(std::string& out, Number number) {
  std::array<char, 32> digits;
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), number);
  out.append(digits.data(), end);
}

}  // namespace

void TextValue::append_to(std::string& out) const {
  std::visit(
      [&out](const auto& value) {
        using T = std::remove_cvref_t<decltype(value)>;
        if constexpr (std::same_as<T, bool>) {
          out.append(value ? "true" : "false");
        } else if constexpr (std::same_as<T, std::string_view>) {
          out.append(value);
        } else if constexpr (std::same_as<T, HexText>) {
          out.append(internal::id_text(value.value, true));
        } else {
          append_number(out, value);
        }
      },
      value_);
}

namespace internal {

std::string fill_in(std::string_view format, std::span<const TextValue> values) {
  std::string out;
  out.reserve(format.size() + 16 * values.size());
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '{' && format[i] != '}') {
      out.push_back(format[i]);
      continue;
    }
    // TextFormat has checked that a brace is followed by its twin or closes a place.
    if (format[i] == '{' && format[i + 1] == '}') {
      values[next++].append_to(out);
    } else {
      out.push_back(format[i]);
    }
    ++i;
  }
  return out;
}

}  // namespace internal
}  // namespace kvbm
