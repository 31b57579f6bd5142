// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/address_ranges.hpp"

#include <iterator>
#include <map>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/seed.hpp"

namespace kvbm::internal {
namespace {

const std::byte* at(uintptr_t address) { return reinterpret_cast<const std::byte*>(address); }

uintptr_t found(const AddressRanges& ranges, uintptr_t address) {
  AddressFinder finder(ranges.list());
  const AddressRange* const range = finder.find(address);
  return range == nullptr ? 0 : range->begin;
}

TEST(AddressRangesTest, HasWhatWasAddedFromItsFirstByteToItsLast) {
  AddressRanges ranges;
  EXPECT_EQ(found(ranges, 100), 0u);
  ranges.add(at(100), 10);
  EXPECT_EQ(found(ranges, 99), 0u);
  EXPECT_EQ(found(ranges, 100), 100u);
  EXPECT_EQ(found(ranges, 109), 100u);
  EXPECT_EQ(found(ranges, 110), 0u);
  ranges.remove(at(101));
  EXPECT_EQ(found(ranges, 105), 100u);
  ranges.remove(at(100));
  EXPECT_EQ(found(ranges, 105), 0u);
}

TEST(AddressRangesTest, AListStaysAsItWas) {
  AddressRanges ranges;
  ranges.add(at(100), 10);
  AddressFinder before(ranges.list());
  ranges.remove(at(100));
  EXPECT_NE(before.find(100), nullptr);
  EXPECT_EQ(found(ranges, 100), 0u);
}

TEST(AddressRangesTest, FindsInAnyOrderWhatAMapFinds) {
  Random random(testing::test_seed());
  AddressRanges ranges;
  std::map<uintptr_t, uintptr_t> oracle;
  for (uintptr_t address = 1000; oracle.size() < 60;) {
    address += random.uniform(50);  // some touch
    const uintptr_t size = random.uniform_between(1, 50);
    oracle[address] = address + size;
    address += size;
  }
  std::vector<uintptr_t> begins;
  for (const auto& [begin, end] : oracle) begins.push_back(begin);
  random.shuffle(std::span(begins));
  for (const uintptr_t begin : begins) ranges.add(at(begin), oracle[begin] - begin);
  for (size_t i = 0; i < 20; ++i) {
    ranges.remove(at(begins[i]));
    oracle.erase(begins[i]);
  }
  AddressFinder finder(ranges.list());
  const auto expect_found = [&](uintptr_t address) {
    const auto behind = oracle.upper_bound(address);
    const bool has = behind != oracle.begin() && address < std::prev(behind)->second;
    const AddressRange* const range = finder.find(address);
    ASSERT_EQ(range != nullptr, has) << address;
    if (has) {
      ASSERT_EQ(range->begin, std::prev(behind)->first);
    }
  };
  for (uintptr_t address = 900; address < 6000; ++address) expect_found(address);
  for (int i = 0; i < 5000; ++i) expect_found(900 + random.uniform(6000));
}

}  // namespace
}  // namespace kvbm::internal
