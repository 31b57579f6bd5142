// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/machine_memory.hpp"

#include <gtest/gtest.h>

#include "kvbm/base/units.hpp"

#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

class MachineMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_.write("proc/meminfo",
                "MemTotal:        8388608 kB\n"
                "MemFree:          100000 kB\n"
                "MemAvailable:    4194304 kB\n"
                "HugePages_Free:        3\n"
                "Hugepagesize:       2048 kB\n");
  }

  MachineMemory memory() {
    const auto memory = read_machine_memory(root_.path());
    EXPECT_TRUE(memory.has_value()) << memory.error();
    return memory.value_or(MachineMemory{});
  }

  testing::TemporaryFolder root_;
};

TEST_F(MachineMemoryTest, TellsWhatTheKernelTells) {
  const MachineMemory found = memory();
  EXPECT_EQ(found.total, 8 * kGiB);
  EXPECT_EQ(found.available, 4 * kGiB);
  EXPECT_EQ(found.huge_page_size, 2 * kMiB);
  EXPECT_EQ(found.huge_pages_free, 3U);
}

TEST_F(MachineMemoryTest, HonoursTheLimitOfAControlGroup) {
  root_.write("sys/fs/cgroup/memory.max", "1073741824\n");
  root_.write("sys/fs/cgroup/memory.current", "536870912\n");
  EXPECT_EQ(memory().total, kGiB);
  EXPECT_EQ(memory().available, kGiB / 2);
  // Cached file pages go as soon as memory is needed.
  root_.write("sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 268435456\n");
  EXPECT_EQ(memory().available, kGiB * 3 / 4);
}

TEST_F(MachineMemoryTest, HonoursTheLimitOfAnOldControlGroup) {
  root_.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
  root_.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2147483648\n");
  EXPECT_EQ(memory().available, 0U);
}

TEST_F(MachineMemoryTest, IgnoresAControlGroupWithoutALimit) {
  root_.write("sys/fs/cgroup/memory.max", "max\n");
  root_.write("sys/fs/cgroup/memory.current", "536870912\n");
  EXPECT_EQ(memory().available, 4 * kGiB);
}

TEST_F(MachineMemoryTest, SaysSoWhereTheKernelDoesNotTell) {
  const auto memory = read_machine_memory(root_.path() / "proc");
  ASSERT_FALSE(memory.has_value());
  EXPECT_EQ(memory.error().code(), ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace kvbm
