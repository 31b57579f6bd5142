// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/tokens.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "kvbm/base/text.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/tokens/token_block_sequence.hpp"

#include "bindings/python/errors.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {
namespace {

[[noreturn]] void raise_invalid(std::string message) {
  raise(Error(ErrorCode::kInvalidArgument, std::move(message)));
}

void construct(TokenBlockSequence* self, const std::vector<uint32_t>& tokens, uint32_t block_size,
               uint64_t salt_hash) {
  if (block_size == 0) raise_invalid("block_size is 0");
  new (self) TokenBlockSequence(tokens, block_size, SaltHash(salt_hash));
}

/// Blocks from `first` on. Raises kvbm.InvalidArgumentError if there are fewer.
std::span<const TokenBlock> blocks_from(const TokenBlockSequence& self, size_t first) {
  if (first > self.num_blocks()) {
    raise_invalid(format_text("blocks from {} on of {}", first, self.num_blocks()));
  }
  return self.blocks().subspan(first);
}

std::vector<uint64_t> sequence_hashes(const TokenBlockSequence& self, size_t first) {
  std::vector<uint64_t> hashes;
  for (const TokenBlock& block : blocks_from(self, first)) {
    hashes.push_back(block.sequence_hash.value());
  }
  return hashes;
}

nb::list identities(const TokenBlockSequence& self, size_t first) {
  nb::list found;
  for (const TokenBlock& block : blocks_from(self, first)) {
    const Identity identity =
        Identity::from_hashes(block.sequence_hash, block.block_hash,
                              block.parent_sequence_hash.value_or(SequenceHash(0)), block.position);
    found.append(nb::bytes(identity.bytes.data(), Identity::kSize));
  }
  return found;
}

bool holds(const TokenBlockSequence& self, size_t first, const std::vector<uint32_t>& tokens) {
  const std::span<const Token> own = self.tokens();
  return first <= own.size() && tokens.size() <= own.size() - first &&
         std::ranges::equal(own.subspan(first, tokens.size()), tokens);
}

}  // namespace

void bind_tokens(nb::module_& module) {
  nb::class_<TokenBlockSequence>(
      module, "TokenBlockSequence",
      "Tokens cut into blocks of one size. A block that is full has a sequence hash, of its tokens "
      "and all before them, and an identity; BlockManager.keys names the same blocks by the same "
      "identities.\n\n"
      "Threads: one at a time.")
      .def("__init__", &construct, "tokens"_a, "block_size"_a, "salt_hash"_a = 0,
           "tokens: 32-bit unsigned. salt_hash, of hash_salt, keeps caches apart. Raises "
           "kvbm.InvalidArgumentError if block_size is 0.")
      .def("__len__", &TokenBlockSequence::total_tokens,
           "Tokens, those behind the last full block "
           "among them.")
      .def_prop_ro("block_size", &TokenBlockSequence::block_size, "Tokens of a block.")
      .def_prop_ro("salt_hash", [](const TokenBlockSequence& self) { return self.salt().value(); })
      .def_prop_ro("num_blocks", &TokenBlockSequence::num_blocks, "Full blocks.")
      .def(
          "extend",
          [](TokenBlockSequence& self, const std::vector<uint32_t>& tokens) {
            (void)self.extend(tokens);
          },
          "tokens"_a, "Appends tokens.")
      .def(
          "truncate",
          [](TokenBlockSequence& self, size_t num_tokens) { check(self.truncate(num_tokens)); },
          "num_tokens"_a,
          "Keeps the first num_tokens. Raises kvbm.InvalidArgumentError if there are fewer.")
      .def("holds", &holds, "first"_a, "tokens"_a,
           "Whether the tokens from position first on begin with these.")
      .def("sequence_hashes", &sequence_hashes, "first"_a = 0,
           "64 bits for each full block from block first on. Raises kvbm.InvalidArgumentError if "
           "there are fewer.")
      .def("identities", &identities, "first"_a = 0,
           nb::sig("def identities(self, first: int = 0) -> list[bytes]"),
           "32 bytes for each full block from block first on: what "
           "BlockManager.keys_from_identities "
           "and KvbmLeader.extend take. Raises kvbm.InvalidArgumentError if there are fewer.");

  module.def(
      "hash_salt",
      [](nb::bytes salt) {
        return hash_salt(std::as_bytes(std::span(salt.c_str(), salt.size()))).value();
      },
      "salt"_a, "64 bits of whatever has to keep caches apart: model, adapter, tenant.");
}

}  // namespace kvbm
