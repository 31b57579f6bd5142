// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/block_checksum.hpp"

#include <blake3.h>

#include <cstdint>
#include <cstring>

#include "kvbm/transfer/internal/host_blocks.hpp"

namespace kvbm {
namespace {

/// BLAKE3 of runs that come one after the other. Runs that touch are hashed where they lie, short
/// ones are gathered first: the hash is fast on a KiB and more at a time.
class RunHasher {
 public:
  RunHasher() noexcept { blake3_hasher_init(&hasher_); }

  void add(const std::byte* run, size_t size) noexcept {
    if (run != end_) {
      take_stretch();
      begin_ = run;
    }
    end_ = run + size;
  }

  [[nodiscard]] BlockChecksum finish() noexcept {
    take_stretch();
    take_gathered();
    BlockChecksum checksum;
    static_assert(sizeof(checksum.bytes) == BLAKE3_OUT_LEN);
    blake3_hasher_finalize(&hasher_, reinterpret_cast<uint8_t*>(checksum.bytes.data()),
                           checksum.bytes.size());
    return checksum;
  }

 private:
  static constexpr size_t kShortBytes = 4096;

  void take_stretch() noexcept {
    const auto size = static_cast<size_t>(end_ - begin_);
    if (size == 0) return;
    if (size >= kShortBytes) {
      take_gathered();
      blake3_hasher_update(&hasher_, begin_, size);
      return;
    }
    if (num_gathered_ + size > gathered_.size()) take_gathered();
    std::memcpy(gathered_.data() + num_gathered_, begin_, size);
    num_gathered_ += size;
  }

  void take_gathered() noexcept {
    blake3_hasher_update(&hasher_, gathered_.data(), num_gathered_);
    num_gathered_ = 0;
  }

  blake3_hasher hasher_;
  const std::byte* begin_ = nullptr;  // what touches so far
  const std::byte* end_ = nullptr;
  std::array<std::byte, 4 * kShortBytes> gathered_;
  size_t num_gathered_ = 0;
};

BlockChecksum checksum_of(const LayoutView& view, BlockId block) {
  RunHasher hasher;
  internal::for_each_run(view, block, [&](const internal::RunPosition&, const std::byte* run) {
    hasher.add(run, view.run_bytes());
    return true;
  });
  return hasher.finish();
}

}  // namespace

std::string to_string(const BlockChecksum& checksum) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  text.reserve(2 * checksum.bytes.size());
  for (const std::byte byte : checksum.bytes) {
    text += kDigits[std::to_integer<size_t>(byte >> 4)];
    text += kDigits[std::to_integer<size_t>(byte & std::byte{15})];
  }
  return text;
}

Result<BlockChecksum> block_checksum(const LayoutView& view, BlockId block) {
  KVBM_TRY(internal::check_host_blocks(view, std::span(&block, 1), "checksums"));
  return checksum_of(view, block);
}

Result<BlockChecksum> block_checksum(const LayoutView& view, BlockId block, LayerRange layers) {
  KVBM_ASSIGN_OR_RETURN(const LayoutView some, view.slice(layers));
  return block_checksum(some, block);
}

Result<std::vector<BlockChecksum>> block_checksums(const LayoutView& view,
                                                   std::span<const BlockId> ids) {
  KVBM_TRY(internal::check_host_blocks(view, ids, "checksums"));
  std::vector<BlockChecksum> checksums;
  checksums.reserve(ids.size());
  for (const BlockId id : ids) checksums.push_back(checksum_of(view, id));
  return checksums;
}

}  // namespace kvbm
