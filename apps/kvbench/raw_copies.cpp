// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/raw_copies.hpp"

#include <chrono>
#include <cstddef>
#include <cstring>
#include <utility>

#include "kvbm/device/event.hpp"
#include "kvbm/device/strided_copy.hpp"

namespace kvbm {
namespace {

void copy_pairs(const CopyPairs& pairs) {
  for (size_t i = 0; i < pairs.src.size(); ++i) {
    std::memcpy(pairs.dst[i], pairs.src[i], pairs.bytes);
  }
}

/// As the document of the kernels has it: universal is [nh, nl, no, nt, hd], a chunk [nt, nh, hd].
void permute(const PermutedBlocks& blocks) {
  const uint64_t run = blocks.head_dim * blocks.dtype_width_bytes;
  const uint64_t planes = blocks.num_layers * blocks.outer_dim;
  for (size_t i = 0; i < blocks.chunks.size(); ++i) {
    auto* const chunk = static_cast<std::byte*>(blocks.chunks[i]);
    auto* const universal = static_cast<std::byte*>(blocks.universal[i / planes]);
    for (uint64_t token = 0; token < blocks.page_size; ++token) {
      for (uint64_t head = 0; head < blocks.num_heads; ++head) {
        std::byte* const here = chunk + (token * blocks.num_heads + head) * run;
        std::byte* const there =
            universal + ((head * planes + i % planes) * blocks.page_size + token) * run;
        std::memcpy(blocks.to_universal ? there : here, blocks.to_universal ? here : there, run);
      }
    }
  }
}

/// On a device whose memory the host addresses.
class HostCopies final : public RawCopies {
 public:
  HostCopies(Device& device, StreamRef stream) : device_(device), stream_(stream) {}
  ~HostCopies() override { static_cast<void>(device_.destroy_stream(stream_)); }

  [[nodiscard]] bool has_batch() const override { return false; }
  [[nodiscard]] StreamRef stream() const override { return stream_; }
  Result<double> time(const SubmitCopy& submit) override {
    return time_on_host(device_, stream_, submit);
  }

  Result<SubmitCopy> vectorized(CopyPairs pairs) override {
    return by_one_thread(std::move(pairs), copy_pairs);
  }
  Result<SubmitCopy> permuted(PermutedBlocks blocks) override {
    return by_one_thread(std::move(blocks), permute);
  }
  Result<SubmitCopy> batched(CopyPairs pairs) override {
    return SubmitCopy(
        [this, batch = batch_of(pieces_of(pairs))] { return device_.copy(stream_, batch); });
  }
  Result<SubmitCopy> one_by_one(CopyPairs pairs) override {
    std::vector<StridedCopyBatch> batches;
    for (const StridedPiece& piece : pieces_of(pairs)) batches.push_back(batch_of({piece}));
    return SubmitCopy([this, batches = std::move(batches)]() -> Status {
      for (const StridedCopyBatch& batch : batches) KVBM_TRY(device_.copy(stream_, batch));
      return {};
    });
  }

 private:
  template <class Work, class Copy>
  SubmitCopy by_one_thread(Work work, Copy copy) {
    return [this, copy, kept = std::make_shared<const Work>(std::move(work))] {
      return device_.launch(stream_, [copy, kept]() -> Status {
        copy(*kept);
        return {};
      });
    };
  }

  static std::vector<StridedPiece> pieces_of(const CopyPairs& pairs) {
    std::vector<StridedPiece> pieces;
    pieces.reserve(pairs.src.size());
    for (size_t i = 0; i < pairs.src.size(); ++i) {
      pieces.push_back({.src = static_cast<const std::byte*>(pairs.src[i]),
                        .dst = static_cast<std::byte*>(pairs.dst[i]),
                        .bytes = pairs.bytes});
    }
    return pieces;
  }
  [[nodiscard]] StridedCopyBatch batch_of(std::vector<StridedPiece> pieces) const {
    return {.pairs = one_, .pieces = std::move(pieces)};
  }

  Device& device_;
  const StreamRef stream_;
  const BlockPairList one_ = make_block_pairs({BlockId(0)});
};

}  // namespace

Result<double> time_on_host(Device& device, StreamRef stream, const SubmitCopy& submit) {
  using WallClock = std::chrono::steady_clock;
  const auto start = WallClock::now();
  KVBM_TRY(submit());
  const Event event = device.record(stream);
  while (!event.done()) {
  }
  const std::chrono::duration<double, std::milli> passed = WallClock::now() - start;
  KVBM_TRY(Status(event.status()));
  return passed.count();
}

Result<std::unique_ptr<RawCopies>> RawCopies::create(const OpenedDevice& device) {
  if (device.adopt_stream) return create_cuda_copies(device);
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, device.device->create_stream("kvbench-raw"));
  return std::make_unique<HostCopies>(*device.device, stream);
}

}  // namespace kvbm
