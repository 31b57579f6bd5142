// SPDX-License-Identifier: Apache-2.0
// kvbm_slot_header_corpus <folder>: writes the headers that slot_header_fuzz starts from.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <vector>

#include "kvbm/layout/slot_format.hpp"

namespace {

std::vector<std::byte> header(uint64_t header_bytes, uint64_t payload_bytes) {
  kvbm::SlotHeader values{.header_bytes = header_bytes,
                          .payload_bytes = payload_bytes,
                          .tag = {},
                          .payload_checksum = 0x0123'4567'89ab'cdef};
  for (size_t i = 0; i < values.tag.size(); ++i) values.tag[i] = static_cast<std::byte>(i * 7);
  std::vector<std::byte> bytes(header_bytes);
  kvbm::encode_slot_header(values, bytes);
  return bytes;
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
  std::vector<std::byte> newer = header(64, 65536);
  newer[4] = std::byte{2};
  std::vector<std::byte> damaged = header(64, 65536);
  damaged[20] ^= std::byte{1};
  std::vector<std::byte> truncated = header(64, 65536);
  truncated.resize(40);
  const bool written = write(folder / "block_64k", header(64, 65536)) &&
                       write(folder / "direct_io", header(4096, uint64_t{1} << 30)) &&
                       write(folder / "empty_slot", std::vector<std::byte>(64)) &&
                       write(folder / "newer_version", newer) &&
                       write(folder / "damaged", damaged) && write(folder / "truncated", truncated);
  return written ? 0 : 1;
}
