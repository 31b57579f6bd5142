// SPDX-License-Identifier: Apache-2.0
// Random messages go through the codec and back; random damage is never taken for a message.
#include <string>

#include <gtest/gtest.h>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/protocol/codec.hpp"

#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using Bytes = std::vector<std::byte>;

// Small numbers mostly, all bits sometimes.
uint64_t number(Random& random) { return random.next() >> random.uniform(64); }

template <class Id>
Id id(Random& random) {
  return Id(static_cast<typename Id::Representation>(number(random)));
}

template <class E>
E any_of(Random& random, E last) {
  return static_cast<E>(random.uniform(static_cast<uint64_t>(last) + 1));
}

Place any_place(Random& random) { return {any_of(random, TierId::kG4), id<GroupId>(random)}; }

template <class Make>
auto any_list(Random& random, size_t max, Make make) {
  std::vector<decltype(make(random))> values(random.uniform(max + 1));
  for (auto& value : values) value = make(random);
  return values;
}

Gate any_gate(Random& random) {
  return {any_of(random, Gate::Kind::kOpDone), random.next(), id<LayerId>(random)};
}

Tag any_tag(Random& random) {
  Tag tag;
  for (std::byte& value : tag.bytes) value = static_cast<std::byte>(random.next());
  return tag;
}

void make(Random& random, CopyOp& op) {
  op.op = id<OpId>(random);
  op.src = any_place(random);
  op.dst = any_place(random);
  op.from = any_list(random, random.chance(0.1) ? 300 : 6, id<BlockId>);
  op.to = op.from;
  for (BlockId& block : op.to) block = id<BlockId>(random);
  if (random.chance(0.5)) op.tags.resize(op.from.size());
  for (Tag& tag : op.tags) tag = any_tag(random);
  op.after = any_list(random, 3, any_gate);
  op.timeout = std::chrono::nanoseconds(static_cast<int64_t>(number(random) >> 1));
  op.priority = any_of(random, Priority::kOffload);
}

CopyOp any_op(Random& random) {
  CopyOp op;
  make(random, op);
  return op;
}

void make(Random& random, StepPlan& plan) {
  plan = {.step = id<StepId>(random),
          .loads = any_list(random, 3, any_op),
          .stores = any_list(random, 3, any_op),
          .fences = any_list(random, 4, id<OpId>),
          .cancels = any_list(random, 4, id<OpId>)};
}

void make(Random& random, OpResult& result) {
  result = {.op = id<OpId>(random),
            .rank = id<RankId>(random),
            .outcome = any_of(random, Outcome::kCancelled),
            .bytes = number(random),
            .failed = {}};
  if (result.outcome == Outcome::kFailed) {
    result.failed = any_list(random, 9, [](Random& r) { return static_cast<uint32_t>(number(r)); });
  }
}

void make(Random& random, PlaceSpec& spec) {
  spec = {.place = any_place(random),
          .owner = any_of(random, Owner::kEngine),
          .spread = any_of(random, Spread::kReplicated),
          .num_blocks = static_cast<uint32_t>(number(random)),
          .rank_block_bytes = number(random)};
}

template <class T>
void make(Random& random, std::vector<T>& values) {
  values.resize(random.uniform(5));
  for (T& value : values) make(random, value);
}

template <class T>
T any(Random& random) {
  T value;
  make(random, value);
  return value;
}

// Gives a message the right length and checksum.
Bytes resealed(const Bytes& message) {
  ByteWriter out;
  out.bytes(message);
  out.patch_u32(16, static_cast<uint32_t>(message.size() - 20));
  out.patch_u64(4, checksum(out.view().subspan(12)));
  return std::move(out).take();
}

template <class T>
class ProtocolCodecProperty : public ::testing::Test {};

using Messages =
    ::testing::Types<CopyOp, StepPlan, OpResult, PlaceSpec, std::vector<CopyOp>,
                     std::vector<StepPlan>, std::vector<OpResult>, std::vector<PlaceSpec>>;
TYPED_TEST_SUITE(ProtocolCodecProperty, Messages);

TYPED_TEST(ProtocolCodecProperty, RandomMessagesComeBackAsTheyWere) {
  Random random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    const auto value = any<TypeParam>(random);
    const Result<TypeParam> back = decode<TypeParam>(encode(value));
    ASSERT_TRUE(back.has_value()) << back.error();
    ASSERT_EQ(*back, value);
  }
}

TYPED_TEST(ProtocolCodecProperty, RandomDamageIsRefused) {
  Random random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    Bytes message = encode(any<TypeParam>(random));
    const size_t at = random.uniform(message.size());
    message[at] ^= static_cast<std::byte>(1 + random.uniform(255));
    ASSERT_FALSE(decode<TypeParam>(message).has_value()) << "byte " << at;
  }
}

TYPED_TEST(ProtocolCodecProperty, DamageWithARightChecksumIsRefusedOrIsAnotherMessage) {
  Random random(testing::test_seed());
  int accepted = 0;
  for (int round = 0; round < 2000; ++round) {
    Bytes message = encode(any<TypeParam>(random));
    const size_t at = 20 + random.uniform(message.size() - 20);
    message[at] ^= static_cast<std::byte>(1 + random.uniform(255));
    message = resealed(message);
    const Result<TypeParam> found = decode<TypeParam>(message);
    if (!found) {
      ASSERT_EQ(found.error().code(), ErrorCode::kCorrupt) << found.error();
      continue;
    }
    ++accepted;
    ASSERT_EQ(encode(*found), message) << "byte " << at << " is not in the value";
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace kvbm
