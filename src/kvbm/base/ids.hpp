// SPDX-License-Identifier: Apache-2.0
// Ids and hashes as types, so that a block is never taken for a layer.
#pragma once

#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>

namespace kvbm {

namespace internal {
std::ostream& print_id(std::ostream& out, uint64_t value, bool hexadecimal);
[[nodiscard]] std::string id_text(uint64_t value, bool hexadecimal);
}  // namespace internal

/// An integer that only compares with its own kind. `Tag` tells kinds apart and says how they
/// print: ids as a decimal number, hashes (`Tag::kHexadecimal`) as 16 hexadecimal digits.
template <class Tag, std::unsigned_integral Rep>
class StrongId {
 public:
  using Representation = Rep;
  static constexpr bool kHexadecimal = Tag::kHexadecimal;

  constexpr StrongId() noexcept = default;
  explicit constexpr StrongId(Rep value) noexcept : value_(value) {}

  [[nodiscard]] constexpr Rep value() const noexcept { return value_; }

  friend constexpr bool operator==(StrongId, StrongId) noexcept = default;
  friend constexpr std::strong_ordering operator<=>(StrongId, StrongId) noexcept = default;

  friend std::ostream& operator<<(std::ostream& out, StrongId id) {
    return internal::print_id(out, id.value_, kHexadecimal);
  }
  [[nodiscard]] friend std::string to_string(StrongId id) {
    return internal::id_text(id.value_, kHexadecimal);
  }

 private:
  Rep value_ = 0;
};

namespace internal {
struct IdTag {
  static constexpr bool kHexadecimal = false;
};
struct HashTag {
  static constexpr bool kHexadecimal = true;
};
struct BlockIdTag : IdTag {};
struct LayerIdTag : IdTag {};
struct GroupIdTag : IdTag {};
struct RankIdTag : IdTag {};
struct WorkerIdTag : IdTag {};
struct OpIdTag : IdTag {};
struct StepIdTag : IdTag {};
struct RequestIdTag : IdTag {};
struct SequenceHashTag : HashTag {};
struct BlockHashTag : HashTag {};
struct SaltHashTag : HashTag {};
}  // namespace internal

using BlockId = StrongId<internal::BlockIdTag, uint32_t>;      ///< a slot inside one place
using LayerId = StrongId<internal::LayerIdTag, uint16_t>;      ///< a layer of the model
using GroupId = StrongId<internal::GroupIdTag, uint16_t>;      ///< a group of layers that are alike
using RankId = StrongId<internal::RankIdTag, uint16_t>;        ///< a worker's index among its peers
using WorkerId = StrongId<internal::WorkerIdTag, uint64_t>;    ///< a worker, unique in the cluster
using OpId = StrongId<internal::OpIdTag, uint64_t>;            ///< one operation of a leader
using StepId = StrongId<internal::StepIdTag, uint64_t>;        ///< one forward step of an engine
using RequestId = StrongId<internal::RequestIdTag, uint64_t>;  ///< one request of an engine

using SequenceHash =
    StrongId<internal::SequenceHashTag, uint64_t>;             ///< a block and its whole prefix
using BlockHash = StrongId<internal::BlockHashTag, uint64_t>;  ///< a block's own tokens
using SaltHash = StrongId<internal::SaltHashTag, uint64_t>;    ///< what keeps caches apart

/// Where blocks can live, nearest first; the value is an index.
enum class TierId : uint8_t {
  kG1,  ///< device memory
  kG2,  ///< host memory
  kG3,  ///< local disk
  kG4,  ///< object store or remote host
};

inline constexpr size_t kNumTiers = 4;

/// "G1" … "G4".
[[nodiscard]] std::string_view to_string(TierId tier) noexcept;
std::ostream& operator<<(std::ostream& out, TierId tier);

}  // namespace kvbm

template <class Tag, class Rep>
struct std::hash<kvbm::StrongId<Tag, Rep>> {
  [[nodiscard]] size_t operator()(kvbm::StrongId<Tag, Rep> id) const noexcept {
    return std::hash<Rep>{}(id.value());
  }
};
