// SPDX-License-Identifier: Apache-2.0
// TokenBlock: the names of one full block of a token sequence.
#pragma once

#include <cstddef>
#include <optional>

#include "kvbm/base/ids.hpp"

namespace kvbm {

/// Only full blocks have names; a partial one may still change. The tokens lie in the sequence:
/// TokenBlockSequence::tokens_of.
struct TokenBlock {
  size_t position = 0;  ///< index among the blocks of its sequence
  BlockHash block_hash;
  SequenceHash sequence_hash;
  std::optional<SequenceHash> parent_sequence_hash{};  ///< none for the first block

  friend bool operator==(const TokenBlock&, const TokenBlock&) = default;
};

}  // namespace kvbm
