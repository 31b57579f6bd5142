// SPDX-License-Identifier: Apache-2.0
// TokenBlockSequence: tokens cut into blocks of one size, hashed as they fill.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/tokens/token_block.hpp"
#include "kvbm/tokens/token_hash.hpp"

namespace kvbm {

/// Full blocks `[first, last)` of a sequence.
struct BlockRange {
  size_t first = 0;
  size_t last = 0;

  [[nodiscard]] size_t size() const noexcept { return last - first; }
  [[nodiscard]] bool empty() const noexcept { return first == last; }
  friend bool operator==(const BlockRange&, const BlockRange&) = default;
};

/// Grows and shrinks at its end. A block is hashed as soon as it is full; what follows the last
/// full block is the partial block, which has no hash. Equal tokens, block size and salt give equal
/// blocks, however the sequence came to be. Ownership: owns its tokens; spans that it returns last
/// until it changes. Threads: one thread at a time.
class TokenBlockSequence {
 public:
  /// Contract: block_size > 0.
  TokenBlockSequence(std::span<const Token> tokens, uint32_t block_size, SaltHash salt);

  /// Returns the index of the block that this token filled, if it did.
  std::optional<size_t> append(Token token);
  /// Returns the blocks that these tokens filled. Contract: `tokens` does not lie in this sequence.
  BlockRange extend(std::span<const Token> tokens);

  /// Keeps the first `num_tokens`. Errors: kInvalidArgument if there are fewer.
  Status truncate(size_t num_tokens);
  /// Drops the last `num_tokens`. Errors: kInvalidArgument if there are fewer.
  Status unwind(size_t num_tokens);
  /// Drops the last token and returns it; nothing from an empty sequence.
  std::optional<Token> pop();
  void clear() noexcept;

  [[nodiscard]] std::span<const TokenBlock> blocks() const noexcept { return blocks_; }
  [[nodiscard]] size_t num_blocks() const noexcept { return blocks_.size(); }
  [[nodiscard]] std::span<const Token> tokens() const noexcept { return tokens_; }
  [[nodiscard]] size_t total_tokens() const noexcept { return tokens_.size(); }
  /// Contract: `block` < num_blocks().
  [[nodiscard]] std::span<const Token> tokens_of(size_t block) const;
  /// The tokens after the last full block: less than a block of them.
  [[nodiscard]] std::span<const Token> current_block() const noexcept;

  [[nodiscard]] uint32_t block_size() const noexcept { return block_size_; }
  [[nodiscard]] SaltHash salt() const noexcept { return salt_; }

  friend bool operator==(const TokenBlockSequence&, const TokenBlockSequence&) = default;

 private:
  void commit_full_blocks();

  std::vector<Token> tokens_;
  std::vector<TokenBlock> blocks_;
  uint32_t block_size_;
  SaltHash salt_;
};

}  // namespace kvbm
