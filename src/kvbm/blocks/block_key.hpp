// SPDX-License-Identifier: Apache-2.0
// BlockKey: what a block is, wherever it is stored. Namespace, layer group and 32 opaque bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iosfwd>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

class TokenBlockSequence;

namespace internal {
struct NamespaceIdTag : HashTag {};
}  // namespace internal

/// Keys of different namespaces never meet: see Namespace.
using NamespaceId = StrongId<internal::NamespaceIdTag, uint64_t>;

/// What has to be equal for two blocks of equal identity to hold the same bytes.
struct Namespace {
  std::string model;           ///< name and revision of the weights
  uint64_t weights_epoch = 0;  ///< changes with every update of the weights in place
  std::string dtype;           ///< of the cache: "bf16", "fp8_e4m3"
  uint32_t num_heads = 0;      ///< KV heads of the whole model, not of one rank
  uint32_t num_layers = 0;     ///< of the whole model
  uint32_t tokens_per_block = 0;
  std::string identity_scheme;  ///< how identities are made: "kvbm-xxh3", "sha256"
  std::string tenant_salt;      ///< keeps tenants apart

  /// XXH3-64 of the fields, each text with its length before it.
  [[nodiscard]] NamespaceId id() const;

  friend bool operator==(const Namespace&, const Namespace&) = default;
};

/// 32 opaque bytes that name a block's content and its whole prefix. Equal bytes are the same
/// block: nothing ever looks inside.
struct Identity {
  static constexpr size_t kSize = 32;

  alignas(8) std::array<std::byte, kSize> bytes{};

  /// Up to 32 bytes of an engine's own hash. Shorter ones are padded with zeros and end in their
  /// length, so that different lengths never collide; one of 32 bytes has no room for that, so a
  /// namespace takes either identities of 32 bytes or shorter ones (Namespace::identity_scheme).
  /// Errors: kInvalidArgument if empty or longer.
  [[nodiscard]] static Result<Identity> from_bytes(std::span<const std::byte> bytes);

  /// The four numbers as little-endian u64, in this order.
  [[nodiscard]] static Identity from_hashes(SequenceHash sequence, BlockHash block,
                                            SequenceHash parent, uint64_t position) noexcept;

  friend bool operator==(const Identity& a, const Identity& b) noexcept {
    return std::memcmp(a.bytes.data(), b.bytes.data(), kSize) == 0;
  }
};

/// The registry's key. Trivially copyable; compares all of it, so a hash collision is never a hit.
struct BlockKey {
  NamespaceId ns;
  GroupId group;
  Identity identity;

  friend bool operator==(const BlockKey& a, const BlockKey& b) noexcept {
    return a.identity == b.identity && a.ns == b.ns && a.group == b.group;
  }
};

namespace internal {
/// 64 x 64 -> 128 bits, folded: the result depends on all bits of both factors.
[[nodiscard]] inline uint64_t fold_multiply(uint64_t a, uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a} * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}
}  // namespace internal

/// A well mixed hash of all fields. Not stable between versions: it is never stored or sent.
[[nodiscard]] inline uint64_t hash_of(const BlockKey& key) noexcept {
  // Numbers without structure: fractions of the square roots of 2, 3, 5, 6 and 7.
  constexpr uint64_t kA = 0x6a09e667f3bcc908;
  constexpr uint64_t kB = 0xbb67ae8584caa73b;
  constexpr uint64_t kC = 0x3c6ef372fe94f82b;
  constexpr uint64_t kD = 0x7311c2812425cfa0;
  constexpr uint64_t kE = 0xa54ff53a5f1d36f1;
  std::array<uint64_t, 4> words;
  std::memcpy(words.data(), key.identity.bytes.data(), Identity::kSize);
  const uint64_t low = internal::fold_multiply(words[0] ^ kA, words[1] ^ kB);
  const uint64_t high = internal::fold_multiply(words[2] ^ kC ^ key.group.value(), words[3] ^ kD);
  return internal::fold_multiply(low ^ key.ns.value(), high ^ kE);
}

/// `ns/group/identity` in hexadecimal, for logs.
[[nodiscard]] std::string to_string(const BlockKey& key);
std::ostream& operator<<(std::ostream& out, const BlockKey& key);

/// The keys of the full blocks of a sequence: its own hashes as one source of identities,
/// Identity::from_hashes with 0 for the parent of the first block. The parent of the key at i > 0
/// is the key at i - 1.
[[nodiscard]] std::vector<BlockKey> block_keys_from_tokens(const TokenBlockSequence& sequence,
                                                           NamespaceId ns, GroupId group);

}  // namespace kvbm

template <>
struct std::hash<kvbm::BlockKey> {
  [[nodiscard]] size_t operator()(const kvbm::BlockKey& key) const noexcept {
    return kvbm::hash_of(key);
  }
};
