// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/layout_handle.hpp"

#include "kvbm/base/text.hpp"

namespace kvbm {

Result<LayoutHandle> LayoutHandle::from_bits(uint64_t low, uint64_t high) {
  if (high > 0xffff) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("no layout handle: its upper half is {}", HexText{high}));
  }
  return LayoutHandle{WorkerId(low), static_cast<uint16_t>(high)};
}

std::string to_string(const LayoutHandle& handle) {
  return format_text("worker {} layout {}", handle.worker, handle.layout);
}

}  // namespace kvbm
