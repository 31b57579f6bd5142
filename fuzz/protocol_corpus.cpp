// SPDX-License-Identifier: Apache-2.0
// kvbm_protocol_corpus <folder>: writes the messages that protocol_fuzz starts from.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "kvbm/protocol/codec.hpp"

namespace {

using kvbm::BlockId;
using kvbm::CopyOp;
using kvbm::Gate;
using kvbm::GroupId;
using kvbm::LayerId;
using kvbm::OpId;
using kvbm::OpResult;
using kvbm::Outcome;
using kvbm::PlaceSpec;
using kvbm::RankId;
using kvbm::StepId;
using kvbm::StepPlan;
using kvbm::TierId;

CopyOp onboard() {
  CopyOp op;
  op.op = OpId(7);
  op.src = {TierId::kG2, GroupId(0)};
  op.dst = {TierId::kG1, GroupId(0)};
  op.from = {BlockId(3), BlockId(4), BlockId(5), BlockId(17)};
  op.to = {BlockId(100), BlockId(101), BlockId(102), BlockId(90)};
  op.timeout = std::chrono::seconds(30);
  op.priority = kvbm::Priority::kOnboard;
  return op;
}

CopyOp to_disk() {
  CopyOp op;
  op.op = OpId(8);
  op.src = {TierId::kG2, GroupId(1)};
  op.dst = {TierId::kG3, GroupId(1)};
  op.from = {BlockId(1)};
  op.to = {BlockId(2)};
  op.tags.resize(1);
  op.tags[0].bytes.fill(std::byte{0x5A});
  op.after = {Gate::layer_end(StepId(2), LayerId(31)), Gate::op_done(OpId(7))};
  return op;
}

StepPlan step() {
  StepPlan plan;
  plan.step = StepId(2);
  plan.loads = {onboard()};
  plan.stores = {to_disk()};
  plan.fences = {OpId(5), OpId(6)};
  plan.cancels = {OpId(4)};
  return plan;
}

OpResult failure() {
  OpResult result;
  result.op = OpId(8);
  result.rank = RankId(1);
  result.outcome = Outcome::kFailed;
  result.bytes = 1 << 16;
  result.failed = {0, 3};
  return result;
}

PlaceSpec host() {
  PlaceSpec spec;
  spec.place = {TierId::kG2, GroupId(1)};
  spec.spread = kvbm::Spread::kReplicated;
  spec.num_blocks = 1000;
  spec.rank_block_bytes = 1 << 20;
  return spec;
}

bool write(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) std::fprintf(stderr, "cannot write %s\n", path.c_str());
  return static_cast<bool>(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <folder>\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  std::vector<std::byte> newer = kvbm::encode(host());
  newer[12] = std::byte{2};
  std::vector<std::byte> short_list = kvbm::encode(onboard());
  short_list.resize(short_list.size() - 5);
  const bool written =
      write(folder / "copy_op_onboard", kvbm::encode(onboard())) &&
      write(folder / "copy_op_to_disk", kvbm::encode(to_disk())) &&
      write(folder / "step_plan", kvbm::encode(step())) &&
      write(folder / "op_result", kvbm::encode(failure())) &&
      write(folder / "place_spec", kvbm::encode(host())) &&
      write(folder / "copy_op_batch", kvbm::encode(std::vector<CopyOp>{onboard(), to_disk()})) &&
      write(folder / "step_plan_batch", kvbm::encode(std::vector<StepPlan>{StepPlan{}, step()})) &&
      write(folder / "op_result_batch",
            kvbm::encode(std::vector<OpResult>{failure(), OpResult{}})) &&
      write(folder / "place_spec_batch",
            kvbm::encode(std::vector<PlaceSpec>{host(), PlaceSpec{}})) &&
      write(folder / "newer_version", newer) && write(folder / "truncated", short_list);
  return written ? 0 : 1;
}
