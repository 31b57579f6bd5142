// SPDX-License-Identifier: Apache-2.0
// BlockChecksum: BLAKE3 of one block after the other, on one thread.
#include <cstdint>
#include <cstring>

#include <benchmark/benchmark.h>

#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/system_memory.hpp"
#include "kvbm/transfer/block_checksum.hpp"

namespace kvbm {
namespace {

constexpr LayoutConfig kConfig{.num_blocks = 64,
                               .num_layers = 32,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 1024,
                               .dtype_width_bytes = 2,
                               .num_heads = 8};

/// Argument: whether the block is one run of 2 MiB (NHD), or 8,192 of 256 bytes (universal).
void BM_BlockChecksum(benchmark::State& state) {
  const KvBlockLayout format =
      state.range(0) == 0 ? KvBlockLayout::kOperationalNHD : KvBlockLayout::kUniversalTP;
  const uint64_t size = required_bytes(kConfig, LayoutKind::kFullyContiguous).value();
  const SystemMemory memory = SystemMemory::create({.size_bytes = size}).value();
  std::memset(memory.data(), 1, size);
  const PhysicalLayout layout =
      PhysicalLayout::fully_contiguous(kConfig, memory.region(), format).value();
  uint32_t block = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(block_checksum(layout, BlockId{block}));
    block = (block + 1) % kConfig.num_blocks;
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kConfig.block_bytes()));
}
BENCHMARK(BM_BlockChecksum)->ArgName("in_pieces")->Arg(0)->Arg(1);

}  // namespace
}  // namespace kvbm
