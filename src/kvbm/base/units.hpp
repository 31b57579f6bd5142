// SPDX-License-Identifier: Apache-2.0
// Sizes, durations and counts: constants, and the text that people write and read.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"

namespace kvbm {

inline constexpr uint64_t kKiB = uint64_t{1} << 10;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kGiB = uint64_t{1} << 30;
inline constexpr uint64_t kTiB = uint64_t{1} << 40;

inline namespace literals {
consteval uint64_t operator""_KiB(unsigned long long count) { return count * kKiB; }
consteval uint64_t operator""_MiB(unsigned long long count) { return count * kMiB; }
consteval uint64_t operator""_GiB(unsigned long long count) { return count * kGiB; }
consteval uint64_t operator""_TiB(unsigned long long count) { return count * kTiB; }
}  // namespace literals

/// Reads a size in bytes: a decimal number, perhaps with a fraction, perhaps spaces, then a unit.
/// Units are exact in spelling: none or `B`; `KiB MiB GiB TiB` count 1024s; `kB KB MB GB TB` count
/// 1000s. A part of a byte is dropped ("0.3 GiB" is 322122547).
/// Errors: kInvalidArgument for a sign, an exponent, a bare `K`/`M`/`G`/`T` (1000 or 1024?),
/// anything after the unit, more than nine digits of fraction, or 2^64 bytes and more.
[[nodiscard]] Result<uint64_t> parse_size(std::string_view text);

/// "0 B", "64 KiB", "1.50 GiB": the largest 1024-unit that fits; two decimals unless it is exact.
/// An exact text reads back to the same number.
[[nodiscard]] std::string format_size(uint64_t size_bytes);

/// "850 ns", "1.50 ms", "12.3 s", "2 min 05 s", "3 h 07 min".
[[nodiscard]] std::string format_duration(std::chrono::nanoseconds duration);

/// "999", "12.3 k", "4.56 M", "7.89 G": three digits that matter.
[[nodiscard]] std::string format_count(uint64_t count);

}  // namespace kvbm
