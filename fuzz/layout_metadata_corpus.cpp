// SPDX-License-Identifier: Apache-2.0
// kvbm_layout_metadata_corpus <folder>: writes the metadata that layout_metadata_fuzz starts from.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <vector>

#include "kvbm/transfer/serialized_layout.hpp"

#include "tests/support/sample_metadata.hpp"

namespace {

using Bytes = std::vector<std::byte>;

Bytes pack(const kvbm::LayoutMetadata& metadata) {
  const kvbm::SerializedLayout packed = kvbm::SerializedLayout::pack(metadata).value();
  return {packed.as_bytes().begin(), packed.as_bytes().end()};
}

/// Interleaved layers of one tensor with gaps, one page map each.
kvbm::LayoutMetadata of_an_engine() {
  const kvbm::LayoutConfig config{.num_blocks = 10,
                                  .num_layers = 3,
                                  .outer_dim = 2,
                                  .page_size = 4,
                                  .inner_dim = 16,
                                  .dtype_width_bytes = 2,
                                  .num_heads = 4};
  std::vector<kvbm::PageMap> maps;
  for (uint16_t layer = 0; layer < 3; ++layer) {
    maps.push_back(
        kvbm::PageMap::create({.region = kvbm::testing::region_at(0x1000 + layer * 512, 15360),
                               .num_blocks = 10,
                               .block_stride = 1536,
                               .layers = {kvbm::LayerId{layer}, 1},
                               .outer_dim = 2,
                               .outer_stride = 256,
                               .num_heads = 4,
                               .head_stride = 8,
                               .page_size = 4,
                               .page_stride = 32,
                               .run_bytes = 8})
            .value());
  }
  kvbm::LayoutMetadata metadata{.worker = {kvbm::WorkerId{1}, "engine"}};
  metadata.layouts.push_back({.handle = {kvbm::WorkerId{1}, 9},
                              .layout = kvbm::LayoutDescriptor::of(
                                  kvbm::PhysicalLayout::from_page_maps(config, maps).value())});
  return metadata;
}

bool write(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) std::fprintf(stderr, "cannot write %s\n", path.c_str());
  return static_cast<bool>(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <folder>\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  const Bytes sample = pack(kvbm::testing::sample_metadata());
  Bytes newer = sample;
  newer[12] = std::byte{2};
  Bytes damaged = sample;
  damaged[100] ^= std::byte{1};
  Bytes truncated = sample;
  truncated.resize(200);
  const bool written = write(folder / "four_layouts", sample) &&
                       write(folder / "engine", pack(of_an_engine())) &&
                       write(folder / "no_layout", pack({.worker = {kvbm::WorkerId{1}, "a"}})) &&
                       write(folder / "newer_version", kvbm::testing::resealed_metadata(newer)) &&
                       write(folder / "damaged", damaged) && write(folder / "truncated", truncated);
  return written ? 0 : 1;
}
