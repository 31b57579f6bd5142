// SPDX-License-Identifier: Apache-2.0
// KvBlockLayout: the order of a block's axes, its format.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// What a format can permute. The head dimension (hd) is innermost in each.
enum class BlockAxis : uint8_t {
  kLayer,  ///< nl
  kOuter,  ///< no: keys and values
  kHead,   ///< nh
  kPage,   ///< nt: the tokens of a block
};

inline constexpr size_t kNumBlockAxes = 4;
/// Outermost first.
using BlockAxisOrder = std::array<BlockAxis, kNumBlockAxes>;

/// "layer", "outer", "head", "page".
[[nodiscard]] std::string_view to_string(BlockAxis axis) noexcept;

/// Formats of one order are the same format whatever they are called: order decides everything but
/// the name.
/// Source: docs/formats/memory-layout.md
/// Threads: a value.
class KvBlockLayout {
 public:
  enum class Name : uint8_t {
    kUnknown,
    kUniversalTP,
    kUniversalPP,
    kOperationalHND,
    kOperationalNHD,
    kCustom,
  };

  static const KvBlockLayout kUnknown;         ///< opaque: copied to the same shape only
  static const KvBlockLayout kUniversalTP;     ///< [nh, nl, no, nt, hd]
  static const KvBlockLayout kUniversalPP;     ///< [nl, nh, no, nt, hd]
  static const KvBlockLayout kOperationalHND;  ///< [nl, no, nh, nt, hd]
  static const KvBlockLayout kOperationalNHD;  ///< [nl, no, nt, nh, hd]

  /// Unknown.
  constexpr KvBlockLayout() noexcept = default;

  /// Any order of the four axes, then hd. Errors: kInvalidArgument (an axis twice, with its name,
  /// or none of the four).
  [[nodiscard]] static Result<KvBlockLayout> custom(const BlockAxisOrder& order);

  [[nodiscard]] constexpr Name name() const noexcept { return name_; }
  [[nodiscard]] constexpr bool is_known() const noexcept { return name_ != Name::kUnknown; }
  /// Contract: known.
  [[nodiscard]] const BlockAxisOrder& order() const {
    KVBM_CONTRACT(is_known(), "an unknown format has no order of axes");
    return order_;
  }

  /// Whether bytes change their places on the way to `other`. Two unknown formats are taken for the
  /// same; one that is known and one that is not never are.
  [[nodiscard]] bool requires_transform(const KvBlockLayout& other) const noexcept;

  /// Layer and outer are outermost, so that layers can lie in memory of their own.
  [[nodiscard]] bool is_operational() const noexcept;
  /// One of the universal orders.
  [[nodiscard]] bool is_universal() const noexcept;

  /// Name and order.
  friend bool operator==(const KvBlockLayout&, const KvBlockLayout&) = default;

 private:
  constexpr KvBlockLayout(Name name, const BlockAxisOrder& order) noexcept
      : name_(name), order_(order) {}

  Name name_ = Name::kUnknown;
  BlockAxisOrder order_ = {};  // zero if unknown
};

inline constexpr KvBlockLayout KvBlockLayout::kUnknown{};
inline constexpr KvBlockLayout KvBlockLayout::kUniversalTP{
    Name::kUniversalTP, {BlockAxis::kHead, BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kPage}};
inline constexpr KvBlockLayout KvBlockLayout::kUniversalPP{
    Name::kUniversalPP, {BlockAxis::kLayer, BlockAxis::kHead, BlockAxis::kOuter, BlockAxis::kPage}};
inline constexpr KvBlockLayout KvBlockLayout::kOperationalHND{
    Name::kOperationalHND,
    {BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage}};
inline constexpr KvBlockLayout KvBlockLayout::kOperationalNHD{
    Name::kOperationalNHD,
    {BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kPage, BlockAxis::kHead}};

/// "unknown", "universal_tp", "universal_pp", "operational_hnd", "operational_nhd", and for a
/// custom one its order: "custom(page, layer, outer, head)".
[[nodiscard]] std::string to_string(const KvBlockLayout& format);

}  // namespace kvbm
