// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/kv_block_layout.hpp"

#include "kvbm/base/text.hpp"

namespace kvbm {

std::string_view to_string(BlockAxis axis) noexcept {
  switch (axis) {
    case BlockAxis::kLayer:
      return "layer";
    case BlockAxis::kOuter:
      return "outer";
    case BlockAxis::kHead:
      return "head";
    case BlockAxis::kPage:
      return "page";
  }
  return "unknown";
}

Result<KvBlockLayout> KvBlockLayout::custom(const BlockAxisOrder& order) {
  std::array<bool, kNumBlockAxes> there{};
  for (const BlockAxis axis : order) {
    const auto index = static_cast<size_t>(axis);
    if (index >= kNumBlockAxes) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("a format has an axis {}, which there is not", index));
    }
    if (there[index]) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("a format has the axis {} twice: it takes layer, outer, head "
                                    "and page once each",
                                    axis));
    }
    there[index] = true;
  }
  return KvBlockLayout(Name::kCustom, order);
}

bool KvBlockLayout::requires_transform(const KvBlockLayout& other) const noexcept {
  return is_known() != other.is_known() || order_ != other.order_;
}

bool KvBlockLayout::is_operational() const noexcept {
  return is_known() && order_[0] == BlockAxis::kLayer && order_[1] == BlockAxis::kOuter;
}

bool KvBlockLayout::is_universal() const noexcept {
  return is_known() && (order_ == kUniversalTP.order_ || order_ == kUniversalPP.order_);
}

std::string to_string(const KvBlockLayout& format) {
  switch (format.name()) {
    case KvBlockLayout::Name::kUnknown:
      return "unknown";
    case KvBlockLayout::Name::kUniversalTP:
      return "universal_tp";
    case KvBlockLayout::Name::kUniversalPP:
      return "universal_pp";
    case KvBlockLayout::Name::kOperationalHND:
      return "operational_hnd";
    case KvBlockLayout::Name::kOperationalNHD:
      return "operational_nhd";
    case KvBlockLayout::Name::kCustom:
      break;
  }
  const BlockAxisOrder& order = format.order();
  return format_text("custom({}, {}, {}, {})", order[0], order[1], order[2], order[3]);
}

}  // namespace kvbm
