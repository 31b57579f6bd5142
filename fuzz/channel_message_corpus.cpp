// SPDX-License-Identifier: Apache-2.0
// kvbm_channel_message_corpus <folder>: writes the messages that channel_message_fuzz starts from.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kvbm/adapters/zmq/channel_message.hpp"

namespace {

using kvbm::BlockId;
using kvbm::ChannelMessage;
using kvbm::CopyOp;
using kvbm::GroupId;
using kvbm::OpId;
using kvbm::OpResult;
using kvbm::PlaceSpec;
using kvbm::RankId;
using kvbm::TierId;
using std::chrono::seconds;

PlaceSpec host() {
  PlaceSpec spec;
  spec.place = {TierId::kG2, GroupId(0)};
  spec.num_blocks = 1000;
  spec.rank_block_bytes = 1 << 20;
  return spec;
}

CopyOp to_disk() {
  CopyOp op;
  op.op = OpId(8);
  op.src = {TierId::kG2, GroupId(0)};
  op.dst = {TierId::kG3, GroupId(0)};
  op.from = {BlockId(1), BlockId(2)};
  op.to = {BlockId(5), BlockId(6)};
  op.tags.resize(2);
  op.after = {kvbm::Gate::op_done(OpId(7))};
  return op;
}

OpResult failure() {
  OpResult result;
  result.op = OpId(8);
  result.rank = RankId(1);
  result.outcome = kvbm::Outcome::kFailed;
  result.failed = {0, 3};
  return result;
}

bool write(const std::filesystem::path& path, const std::vector<std::byte>& bytes) {
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
  const std::vector<ChannelMessage> messages = {
      kvbm::HelloMessage{.rank = RankId(1), .secret = "secret", .places = {host()}},
      kvbm::WelcomeMessage{.heartbeat_interval = seconds(1), .dead_after = seconds(10)},
      kvbm::ProvideMessage{.request = 1, .places = {host(), host()}},
      kvbm::ProvidedMessage{.request = 1},
      kvbm::RefusalMessage{.request = 1, .code = kvbm::ErrorCode::kExhausted, .text = "full"},
      kvbm::OperationsMessage{.ops = {to_disk(), CopyOp{}}, .cancels = {OpId(3)}},
      kvbm::ResultsMessage{.results = {failure(), OpResult{}}},
      kvbm::HeartbeatMessage{},
      kvbm::GoodbyeMessage{},
      kvbm::ShrunkMessage{.place = host().place, .num_blocks = 12}};
  for (const ChannelMessage& message : messages) {
    if (!write(folder / std::string(name_of(message)), encode(message))) return 1;
  }
  std::vector<std::byte> newer = kvbm::encode(kvbm::HeartbeatMessage{});
  newer[12] = std::byte{3};
  std::vector<std::byte> cut_off = kvbm::encode(messages.front());
  cut_off.resize(cut_off.size() - 5);
  return write(folder / "newer_version", newer) && write(folder / "cut_off", cut_off) ? 0 : 1;
}
