// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block_key.hpp"

#include <ostream>
#include <string_view>
#include <type_traits>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/tokens/token_block_sequence.hpp"

namespace kvbm {

static_assert(std::is_trivially_copyable_v<BlockKey> && sizeof(BlockKey) == 48);

NamespaceId Namespace::id() const {
  ByteWriter fields;
  fields.string(model);
  fields.u64(weights_epoch);
  fields.string(dtype);
  fields.u32(num_heads);
  fields.u32(num_layers);
  fields.u32(tokens_per_block);
  fields.string(identity_scheme);
  fields.string(tenant_salt);
  return NamespaceId(xxh3_64(fields.view()));
}

Result<Identity> Identity::from_bytes(std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() > kSize) {
    return make_error(ErrorCode::kInvalidArgument, "an identity has 1 to 32 bytes, not " +
                                                       std::to_string(bytes.size()) +
                                                       "; hash a longer one");
  }
  Identity identity;
  std::memcpy(identity.bytes.data(), bytes.data(), bytes.size());
  if (bytes.size() < kSize) identity.bytes[kSize - 1] = static_cast<std::byte>(bytes.size());
  return identity;
}

Identity Identity::from_hashes(SequenceHash sequence, BlockHash block, SequenceHash parent,
                               uint64_t position) noexcept {
  const std::array<uint64_t, 4> words = {sequence.value(), block.value(), parent.value(), position};
  Identity identity;
  for (size_t i = 0; i < kSize; ++i) {
    identity.bytes[i] = static_cast<std::byte>((words[i / 8] >> (8 * (i % 8))) & 0xff);
  }
  return identity;
}

std::string to_string(const BlockKey& key) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text = to_string(key.ns) + '/' + to_string(key.group) + '/';
  for (const std::byte byte : key.identity.bytes) {
    text += kDigits[std::to_integer<size_t>(byte) >> 4];
    text += kDigits[std::to_integer<size_t>(byte) & 0xf];
  }
  return text;
}

std::ostream& operator<<(std::ostream& out, const BlockKey& key) { return out << to_string(key); }

std::vector<BlockKey> block_keys_from_tokens(const TokenBlockSequence& sequence, NamespaceId ns,
                                             GroupId group) {
  std::vector<BlockKey> keys;
  keys.reserve(sequence.num_blocks());
  for (const TokenBlock& block : sequence.blocks()) {
    keys.push_back({ns, group,
                    Identity::from_hashes(block.sequence_hash, block.block_hash,
                                          block.parent_sequence_hash.value_or(SequenceHash(0)),
                                          block.position)});
  }
  return keys;
}

}  // namespace kvbm
