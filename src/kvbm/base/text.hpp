// SPDX-License-Identifier: Apache-2.0
// format_text: messages with `{}` in them, for errors and logs.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "kvbm/base/ids.hpp"

namespace kvbm {

/// A hash, printed as 16 hexadecimal digits.
struct HexText {
  uint64_t value = 0;
};

/// What a message or a log field can show: numbers, booleans, texts, ids and hashes, and
/// enumerators whose to_string returns std::string_view. Borrows texts.
class TextValue {
 public:
  using Variant = std::variant<bool, int64_t, uint64_t, double, std::string_view, HexText>;

  template <class T>
  TextValue(const T& value)  // NOLINT(google-explicit-constructor): every argument becomes one
      : value_(to_variant(value)) {}

  [[nodiscard]] const Variant& variant() const noexcept { return value_; }
  void append_to(std::string& out) const;

 private:
  template <class T>
  static Variant to_variant(const T& value) {
    if constexpr (std::same_as<T, bool>) {
      return value;
    } else if constexpr (std::same_as<T, char>) {
      return std::string_view(&value, 1);
    } else if constexpr (std::signed_integral<T>) {
      return static_cast<int64_t>(value);
    } else if constexpr (std::unsigned_integral<T>) {
      return static_cast<uint64_t>(value);
    } else if constexpr (std::floating_point<T>) {
      return static_cast<double>(value);
    } else if constexpr (std::same_as<T, HexText>) {
      return value;
    } else if constexpr (requires { T::kHexadecimal; }) {
      if constexpr (T::kHexadecimal) {
        return HexText{value.value()};
      } else {
        return uint64_t{value.value()};
      }
    } else if constexpr (requires {
                           { to_string(value) } -> std::same_as<std::string_view>;
                         }) {
      return to_string(value);
    } else {
      static_assert(
          std::is_convertible_v<const T&, std::string_view>,
          "a message shows numbers, texts, ids and enumerators; turn this into a text first");
      return std::string_view(value);
    }
  }

  Variant value_;
};

/// A literal checked at compile time: as many `{}` as there are arguments. `{{` and `}}` are
/// braces; there are no format specifications.
template <class... Args>
class TextFormat {
 public:
  template <size_t N>
  consteval TextFormat(const char (&literal)[N])  // NOLINT(google-explicit-constructor)
      : text_(literal, N - 1) {
    size_t places = 0;
    for (size_t i = 0; i < text_.size(); ++i) {
      if (text_[i] != '{' && text_[i] != '}') continue;
      const bool has_next = i + 1 < text_.size();
      if (has_next && text_[i] == '{' && text_[i + 1] == '}') {
        ++places;
      } else if (!has_next || text_[i + 1] != text_[i]) {
        lone_brace_in_format();
      }
      ++i;
    }
    if (places != sizeof...(Args)) number_of_places_differs_from_number_of_arguments();
  }

  [[nodiscard]] constexpr std::string_view text() const noexcept { return text_; }

 private:
  // Not constexpr: a call makes the compiler stop and show the name.
  static void lone_brace_in_format() {}
  static void number_of_places_differs_from_number_of_arguments() {}

  std::string_view text_;
};

namespace internal {
[[nodiscard]] std::string fill_in(std::string_view format, std::span<const TextValue> values);
}

/// `format_text("block {} of {} is {}", block, TierId::kG2, state)`.
template <class... Args>
[[nodiscard]] std::string format_text(TextFormat<std::type_identity_t<Args>...> format,
                                      const Args&... args) {
  if constexpr (sizeof...(Args) == 0) {
    return internal::fill_in(format.text(), {});
  } else {
    const TextValue values[] = {TextValue(args)...};
    return internal::fill_in(format.text(), values);
  }
}

}  // namespace kvbm
