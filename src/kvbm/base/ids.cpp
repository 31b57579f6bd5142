// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/ids.hpp"

#include <array>
#include <ostream>

namespace kvbm {
namespace internal {

std::string id_text(uint64_t value, bool hexadecimal) {
  if (!hexadecimal) return std::to_string(value);
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text(16, '0');
  for (size_t i = text.size(); i-- > 0; value >>= 4) text[i] = kDigits[value & 0xF];
  return text;
}

std::ostream& print_id(std::ostream& out, uint64_t value, bool hexadecimal) {
  return out << id_text(value, hexadecimal);
}

}  // namespace internal

std::string_view to_string(TierId tier) noexcept {
  static constexpr std::array<std::string_view, kNumTiers> kNames = {"G1", "G2", "G3", "G4"};
  const auto index = static_cast<size_t>(tier);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::ostream& operator<<(std::ostream& out, TierId tier) { return out << to_string(tier); }

}  // namespace kvbm
