// SPDX-License-Identifier: Apache-2.0
// PerTier: one value for each tier that a replay has.
#pragma once

#include "kvbm/base/contract.hpp"
#include "kvbm/base/ids.hpp"

namespace kvbm {

template <class T>
struct PerTier {
  T g1{};
  T g2{};
  T g3{};

  /// Contract: G1, G2 or G3.
  [[nodiscard]] T& of(TierId tier) { return pick(*this, tier); }
  [[nodiscard]] const T& of(TierId tier) const { return pick(*this, tier); }
  [[nodiscard]] T total() const { return static_cast<T>(g1 + g2 + g3); }

  friend bool operator==(const PerTier&, const PerTier&) = default;

 private:
  template <class Self>
  static auto& pick(Self& self, TierId tier) {
    KVBM_CONTRACT(tier <= TierId::kG3, "a replay has the tiers G1 to G3");
    return tier == TierId::kG1 ? self.g1 : tier == TierId::kG2 ? self.g2 : self.g3;
  }
};

}  // namespace kvbm
