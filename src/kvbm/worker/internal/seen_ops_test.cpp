// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/internal/seen_ops.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

namespace kvbm::internal {
namespace {

TEST(SeenOps, HasWhatHasComeInWhateverOrder) {
  Random random(7);
  std::vector<uint64_t> order(200);
  std::iota(order.begin(), order.end(), 1);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.uniform(i)]);
  SeenOps seen;
  std::set<uint64_t> come;
  for (const uint64_t id : order) {
    seen.insert(OpId(id));
    come.insert(id);
    for (uint64_t other = 1; other <= 201; ++other) {
      ASSERT_EQ(seen.contains(OpId(other)), come.contains(other)) << other << " after " << id;
    }
  }
  seen.insert(OpId(5));
  EXPECT_FALSE(seen.contains(OpId(201))) << "the same one again is not the next one";
}

}  // namespace
}  // namespace kvbm::internal
