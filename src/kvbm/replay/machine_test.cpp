// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/machine.hpp"

#include <gtest/gtest.h>

#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

TEST(Machine, TellsTheSpaceOfAFolder) {
  const testing::TemporaryFolder folder;
  const auto disk = read_disk_space(folder.path());
  ASSERT_TRUE(disk.has_value()) << disk.error();
  EXPECT_GT(disk->total, 0U);
  EXPECT_LE(disk->free, disk->total);
  EXPECT_FALSE(disk->file_system.empty());
  EXPECT_FALSE(read_disk_space(folder.path() / "none").has_value());
}

}  // namespace
}  // namespace kvbm
