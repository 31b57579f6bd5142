// SPDX-License-Identifier: Apache-2.0
// Tokens and the hashes that name them; all XXH3-64 over little-endian bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvbm/base/ids.hpp"

namespace kvbm {

using Token = uint32_t;

/// Of whatever must keep caches apart (model, adapter, tenant): XXH3-64 of the bytes, seed 0.
[[nodiscard]] SaltHash hash_salt(std::span<const std::byte> salt) noexcept;
[[nodiscard]] SaltHash hash_salt(std::string_view salt) noexcept;

/// Of a block's own tokens, wherever they stand: XXH3-64 of the tokens as u32, seed = salt hash.
[[nodiscard]] BlockHash hash_block(std::span<const Token> tokens, SaltHash salt) noexcept;

/// Of a block and its whole prefix. The first block's is its block hash; any other's is XXH3-64 of
/// (parent's sequence hash, block hash) as two u64, seed 0.
[[nodiscard]] SequenceHash first_sequence_hash(BlockHash block) noexcept;
[[nodiscard]] SequenceHash next_sequence_hash(SequenceHash parent, BlockHash block) noexcept;

}  // namespace kvbm
