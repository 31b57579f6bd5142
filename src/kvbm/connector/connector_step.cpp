// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_step.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/protocol/codec.hpp"

namespace kvbm {
namespace {

constexpr std::array<std::byte, 4> kMagic = {std::byte{'K'}, std::byte{'V'}, std::byte{'B'},
                                             std::byte{'C'}};
constexpr uint16_t kVersion = 1;
constexpr size_t kChecksumOffset = kMagic.size();
constexpr size_t kCheckedOffset = kChecksumOffset + sizeof(uint64_t);
constexpr size_t kMinLoadBytes = 2 * sizeof(uint32_t);  // two empty lists

}  // namespace

std::vector<std::byte> encode(const ConnectorStep& step) {
  ByteWriter out;
  out.bytes(kMagic);
  out.u64(0);  // the checksum
  out.u16(kVersion);
  const std::vector<std::byte> plan = encode(step.plan);
  out.count(plan.size());
  out.bytes(plan);
  out.count(step.ended_loads.size());
  for (const EndedLoad& load : step.ended_loads) {
    out.string(load.request);
    out.count(load.failed.size());
    for (const BlockId block : load.failed) out.u32(block.value());
  }
  out.patch_u64(kChecksumOffset, checksum(out.view().subspan(kCheckedOffset)));
  return std::move(out).take();
}

Result<ConnectorStep> decode_connector_step(std::span<const std::byte> message) {
  ByteReader in(message);
  const auto magic = in.bytes(kMagic.size());
  if (in.ok() && !std::equal(magic.begin(), magic.end(), kMagic.begin())) {
    in.fail("no connector step");
  }
  const uint64_t expected = in.u64();
  const uint16_t version = in.u16();
  if (in.ok() && version != kVersion) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("a connector step of version {}; this library reads {}", version, kVersion));
  }
  if (in.ok() && expected != checksum(message.subspan(kCheckedOffset))) in.fail("wrong checksum");
  ConnectorStep step;
  const auto plan_bytes = in.bytes(in.count(1));
  if (in.ok()) {
    KVBM_ASSIGN_OR_RETURN(step.plan, decode<StepPlan>(plan_bytes));
  }
  const size_t num_loads = in.count(kMinLoadBytes);
  step.ended_loads.reserve(num_loads);
  for (size_t i = 0; i < num_loads && in.ok(); ++i) {
    EndedLoad& load = step.ended_loads.emplace_back();
    load.request = std::string(in.string());
    for (const uint32_t block : in.u32_array()) load.failed.emplace_back(block);
  }
  KVBM_TRY(in.finish());
  return step;
}

}  // namespace kvbm
