// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/mutex.hpp"

#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class LockOrder : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!lock_order_is_checked()) GTEST_SKIP() << "this build does not check the lock order";
  }

  Mutex tiers_{LockRank::kTiers, "tiers"};
  Mutex registry_{LockRank::kBlocks, "blocks.registry", 1};
  Mutex store_{LockRank::kBlocks, "blocks.store"};
  Mutex metrics_{LockRank::kMetrics, "metrics"};
};

TEST_F(LockOrder, HigherRoomsFirstIsAllowed) {
  for (int i = 0; i < 2; ++i) {
    const MutexLock tiers(tiers_);
    const MutexLock registry(registry_);
    const MutexLock store(store_);
    const MutexLock metrics(metrics_);
  }
}

// The analysis of clang would refuse these at compile time.
TEST_F(LockOrder, ALowerRoomFirstThrowsAndNamesBothLocks) KVBM_NO_THREAD_SAFETY_ANALYSIS {
  const MutexLock store(store_);
  try {
    tiers_.lock();
    FAIL() << "the lock was taken";
  } catch (const ContractViolation& violation) {
    EXPECT_THAT(violation.what(), AllOf(HasSubstr("'tiers'"), HasSubstr("'blocks.store'")));
  }
  EXPECT_TRUE(tiers_.try_lock()) << "the refused lock must be free";
  tiers_.unlock();
}

TEST_F(LockOrder, WithinARoomTheHigherOrderComesFirst) KVBM_NO_THREAD_SAFETY_ANALYSIS {
  const MutexLock store(store_);
  EXPECT_THROW(registry_.lock(), ContractViolation);
}

TEST_F(LockOrder, TwoLocksOfOnePlaceDoNotNest) KVBM_NO_THREAD_SAFETY_ANALYSIS {
  Mutex other(LockRank::kBlocks, "blocks.other_store");
  const MutexLock store(store_);
  EXPECT_THROW(other.lock(), ContractViolation);
  EXPECT_THROW(store_.lock(), ContractViolation) << "not recursive";
}

TEST_F(LockOrder, AnUnlockedMutexIsForgottenWhateverTheOrderOfUnlocking)
KVBM_NO_THREAD_SAFETY_ANALYSIS {
  tiers_.lock();
  store_.lock();
  tiers_.unlock();
  EXPECT_THROW(tiers_.lock(), ContractViolation);
  store_.unlock();
  tiers_.lock();
  tiers_.unlock();
}

TEST_F(LockOrder, TryLockMayTakeAnyOrderAndCounts) KVBM_NO_THREAD_SAFETY_ANALYSIS {
  ASSERT_TRUE(store_.try_lock());
  EXPECT_THROW(registry_.lock(), ContractViolation) << "the store is held";
  ASSERT_TRUE(tiers_.try_lock());
  store_.unlock();
  { const MutexLock registry(registry_); }
  tiers_.unlock();
}

TEST_F(LockOrder, EachThreadHasItsOwnOrder) {
  const MutexLock store(store_);
  std::thread([this] { const MutexLock tiers(tiers_); }).join();
}

TEST_F(LockOrder, WaitingWithAnotherLockHeldThrows) {
  CondVar condition;
  const MutexLock tiers(tiers_);
  const MutexLock store(store_);
  EXPECT_THROW(condition.wait(store_), ContractViolation);
  EXPECT_THROW(static_cast<void>(condition.wait_until(store_, TimePoint::min())),
               ContractViolation);
}

TEST(Mutex, TryLockFailsWhileAnotherThreadHoldsIt) {
  Mutex mutex(LockRank::kTokens);
  const MutexLock lock(mutex);
  bool taken = true;
  std::thread([&]() KVBM_NO_THREAD_SAFETY_ANALYSIS { taken = mutex.try_lock(); }).join();
  EXPECT_FALSE(taken);
}

TEST(Mutex, KeepsThreadsApart) {
  Mutex mutex(LockRank::kTokens, "tokens.test");
  int counter = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) {
        const MutexLock lock(mutex);
        ++counter;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter, 20000);
}

TEST(CondVar, WakesAWaiter) {
  Mutex mutex(LockRank::kTokens);
  CondVar changed;
  bool ready = false;
  std::thread setter([&] {
    const MutexLock lock(mutex);
    ready = true;
    changed.notify_all();
  });
  {
    const MutexLock lock(mutex);
    while (!ready) changed.wait(mutex);
    EXPECT_TRUE(ready);
  }
  setter.join();
}

TEST(CondVar, WaitUntilEndsAtTheDeadlineWithTheLockHeld) {
  Mutex mutex(LockRank::kTokens);
  CondVar changed;
  const SystemClock clock;
  const TimePoint deadline = clock.now() + std::chrono::milliseconds(5);
  const MutexLock lock(mutex);
  while (changed.wait_until(mutex, deadline)) {
  }
  EXPECT_GE(clock.now(), deadline);
  bool taken = true;
  std::thread([&]() KVBM_NO_THREAD_SAFETY_ANALYSIS { taken = mutex.try_lock(); }).join();
  EXPECT_FALSE(taken);
}

}  // namespace
}  // namespace kvbm
