// SPDX-License-Identifier: Apache-2.0
// nearest_name: what a mistyped word was most likely meant to be.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace kvbm::internal {

/// How many letters have to be put in, taken out, replaced or swapped with their neighbour to turn
/// one word into the other.
[[nodiscard]] size_t edit_distance(std::string_view a, std::string_view b);

/// The name at the smallest edit distance, the first one of several. Upper case and `-` count as
/// lower case and `_`; only the first 64 letters of `wrong` are looked at. Contract: `names` is not
/// empty.
[[nodiscard]] std::string_view nearest_name(std::string_view wrong,
                                            std::span<const std::string_view> names);

/// A text for a message: quoted, without control characters, and cut where it is long.
[[nodiscard]] std::string shown_text(std::string_view text);

}  // namespace kvbm::internal
