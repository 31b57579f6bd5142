// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tokens/token_hash.hpp"

#include <array>
#include <bit>

#include "kvbm/base/hash.hpp"

namespace kvbm {

static_assert(std::endian::native == std::endian::little,
              "tokens are hashed where they lie; a big-endian machine must turn them around first");

SaltHash hash_salt(std::span<const std::byte> salt) noexcept { return SaltHash(xxh3_64(salt)); }

SaltHash hash_salt(std::string_view salt) noexcept { return hash_salt(bytes_of(salt)); }

BlockHash hash_block(std::span<const Token> tokens, SaltHash salt) noexcept {
  return BlockHash(xxh3_64(std::as_bytes(tokens), salt.value()));
}

SequenceHash first_sequence_hash(BlockHash block) noexcept { return SequenceHash(block.value()); }

SequenceHash next_sequence_hash(SequenceHash parent, BlockHash block) noexcept {
  const std::array<uint64_t, 2> link = {parent.value(), block.value()};
  return SequenceHash(xxh3_64(std::as_bytes(std::span(link))));
}

}  // namespace kvbm
