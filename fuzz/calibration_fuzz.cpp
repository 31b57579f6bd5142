// SPDX-License-Identifier: Apache-2.0
// Calibrations: no text crashes the reader, what it refuses it explains in one printable line, and
// what it accepts it writes and reads back equal.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kvbm/runtime/calibration_file.hpp"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto read =
      kvbm::parse_calibration(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!read) {
    const std::string& message = read.error().message();
    require(message.size() < 200);
    require(
        std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c <= '~'; }));
    return 0;
  }
  const std::string written = kvbm::format_calibration(*read);
  const auto again = kvbm::parse_calibration(written);
  require(again.has_value() && kvbm::format_calibration(*again) == written);
  return 0;
}
