// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_route.hpp"

#include <set>
#include <string_view>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

TEST(TransferRoute, RoutesHaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kNumTransferRoutes; ++i) {
    names.insert(to_string(static_cast<TransferRoute>(i)));
  }
  EXPECT_EQ(names.size(), kNumTransferRoutes);
}

}  // namespace
}  // namespace kvbm
