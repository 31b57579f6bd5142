// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tokens/token_block_sequence.hpp"

#include <functional>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

TokenBlockSequence::TokenBlockSequence(std::span<const Token> tokens, uint32_t block_size,
                                       SaltHash salt)
    : block_size_(block_size), salt_(salt) {
  KVBM_CONTRACT(block_size > 0, "a block holds at least one token");
  extend(tokens);
}

std::optional<size_t> TokenBlockSequence::append(Token token) {
  tokens_.push_back(token);
  if (tokens_.size() % block_size_ != 0) return std::nullopt;
  commit_full_blocks();
  return blocks_.size() - 1;
}

BlockRange TokenBlockSequence::extend(std::span<const Token> tokens) {
  const size_t num_blocks_before = blocks_.size();
  const std::less<> before;  // a total order, also of pointers into different arrays
  KVBM_CONTRACT(before(tokens.data(), tokens_.data()) ||
                    !before(tokens.data(), tokens_.data() + tokens_.size()),
                "a sequence is extended by its own tokens; copy them first");
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  commit_full_blocks();
  return {.first = num_blocks_before, .last = blocks_.size()};
}

Status TokenBlockSequence::truncate(size_t num_tokens) {
  if (num_tokens > tokens_.size()) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("cannot truncate a sequence of {} tokens to {}", tokens_.size(), num_tokens));
  }
  tokens_.resize(num_tokens);
  blocks_.resize(num_tokens / block_size_);
  return {};
}

Status TokenBlockSequence::unwind(size_t num_tokens) {
  if (num_tokens > tokens_.size()) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("cannot take {} tokens off a sequence of {}", num_tokens, tokens_.size()));
  }
  return truncate(tokens_.size() - num_tokens);
}

std::optional<Token> TokenBlockSequence::pop() {
  if (tokens_.empty()) return std::nullopt;
  const Token last = tokens_.back();
  tokens_.pop_back();
  blocks_.resize(tokens_.size() / block_size_);
  return last;
}

void TokenBlockSequence::clear() noexcept {
  tokens_.clear();
  blocks_.clear();
}

std::span<const Token> TokenBlockSequence::tokens_of(size_t block) const {
  KVBM_CONTRACT(block < blocks_.size(),
                format_text("block {} of {} full ones", block, blocks_.size()));
  return std::span(tokens_).subspan(block * block_size_, block_size_);
}

std::span<const Token> TokenBlockSequence::current_block() const noexcept {
  return std::span(tokens_).subspan(blocks_.size() * block_size_);
}

void TokenBlockSequence::commit_full_blocks() {
  const size_t num_full = tokens_.size() / block_size_;
  while (blocks_.size() < num_full) {
    const std::span<const Token> tokens =
        std::span(tokens_).subspan(blocks_.size() * block_size_, block_size_);
    TokenBlock block;
    block.position = blocks_.size();
    block.block_hash = hash_block(tokens, salt_);
    if (blocks_.empty()) {
      block.sequence_hash = first_sequence_hash(block.block_hash);
    } else {
      const SequenceHash parent = blocks_.back().sequence_hash;
      block.parent_sequence_hash = parent;
      block.sequence_hash = next_sequence_hash(parent, block.block_hash);
    }
    blocks_.push_back(block);
  }
}

}  // namespace kvbm
