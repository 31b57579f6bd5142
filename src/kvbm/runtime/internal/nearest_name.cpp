// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/nearest_name.hpp"

#include <algorithm>
#include <vector>

#include "kvbm/base/contract.hpp"

namespace kvbm::internal {

size_t edit_distance(std::string_view a, std::string_view b) {
  // Rows i - 2, i - 1 and i of the table of distances between prefixes.
  std::vector<size_t> before_last(b.size() + 1);
  std::vector<size_t> last(b.size() + 1);
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

std::string_view nearest_name(std::string_view wrong, std::span<const std::string_view> names) {
  KVBM_CONTRACT(!names.empty(), "the nearest of no names");
  std::string word(wrong.substr(0, 64));
  for (char& letter : word) {
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    if (letter == '-') letter = '_';
  }
  return *std::ranges::min_element(
      names, {}, [&word](std::string_view name) { return edit_distance(word, name); });
}

std::string shown_text(std::string_view text) {
  constexpr size_t kShown = 80;
  size_t end = std::min(text.size(), kShown);
  // Not through the middle of a UTF-8 sequence.
  while (end > 0 && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80) {
    --end;
  }
  std::string out = "\"";
  for (const char letter : text.substr(0, end)) {
    const bool is_control = static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F;
    out += is_control ? '?' : letter;
  }
  out += end < text.size() ? "…\"" : "\"";
  return out;
}

}  // namespace kvbm::internal
