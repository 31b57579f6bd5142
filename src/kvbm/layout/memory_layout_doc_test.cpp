// SPDX-License-Identifier: Apache-2.0
// The example of docs/formats/memory-layout.md against the code.
#include <array>
#include <cstdint>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/layout/layout_view.hpp"
#include "kvbm/layout/physical_layout.hpp"

#include "tests/support/guarded_place.hpp"

namespace kvbm {
namespace {

constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 40,
                               .dtype_width_bytes = 2,
                               .num_heads = 5,
                               .alignment = 256};

std::string document() {
  std::ifstream file(KVBM_TEST_SOURCE_DIR "/../../../docs/formats/memory-layout.md");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Row {
  std::string kind;
  std::string format;
  std::array<std::string, 6> numbers;  ///< block, layer, outer, head, page, run
};

/// The cells of a row of a table, without spaces and code marks.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream rest(line.substr(1));
  for (std::string cell; std::getline(rest, cell, '|');) {
    const size_t first = cell.find_first_not_of(" `");
    const size_t last = cell.find_last_not_of(" `");
    cells.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
  }
  return cells;
}

std::vector<Row> rows_of_the_example() {
  const std::string text = document();
  std::istringstream lines(text.substr(std::min(text.find("## Example"), text.size())));
  std::vector<Row> rows;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| `")) continue;
    const std::vector<std::string> cells = cells_of(line);
    if (cells.size() != 8) {
      ADD_FAILURE() << line;
      continue;
    }
    Row row{.kind = cells[0], .format = cells[1], .numbers = {}};
    std::copy(cells.begin() + 2, cells.end(), row.numbers.begin());
    rows.push_back(row);
  }
  return rows;
}

std::optional<LayoutKind> kind_named(const std::string& name) {
  for (const LayoutKind kind : {LayoutKind::kFullyContiguous, LayoutKind::kLayerSeparateBlockFirst,
                                LayoutKind::kLayerSeparateBlockSecond, LayoutKind::kFileSlots}) {
    if (to_string(kind) == name) return kind;
  }
  return std::nullopt;
}

std::optional<KvBlockLayout> format_named(const std::string& name) {
  const KvBlockLayout custom = KvBlockLayout::custom({BlockAxis::kPage, BlockAxis::kLayer,
                                                      BlockAxis::kOuter, BlockAxis::kHead})
                                   .value();
  for (const KvBlockLayout& format :
       {KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP, KvBlockLayout::kOperationalHND,
        KvBlockLayout::kOperationalNHD, custom}) {
    if (to_string(format) == name) return format;
  }
  return std::nullopt;
}

TEST(MemoryLayoutDoc, ItsExampleIsWhatTheCodeDoes) {
  std::set<std::pair<std::string, std::string>> seen;
  for (const Row& row : rows_of_the_example()) {
    SCOPED_TRACE(row.kind + " " + row.format);
    const auto kind = kind_named(row.kind);
    const auto format = format_named(row.format);
    ASSERT_TRUE(kind && format);
    seen.insert({row.kind, row.format});
    const testing::GuardedPlace place(kConfig, *kind, StorageKind::kSystem, {}, *format);
    const PhysicalLayout& layout = place.layout();
    const uint32_t index = layout.page_map_of(LayerId{1});
    const PageMap& map = layout.page_maps()[index];
    const BlockStrides strides = map.strides();
    const MemoryRegion run = layout.head_region(BlockId{2}, LayerId{1}, 1, 1, 2);
    const uint64_t at = run.is_file() ? run.file_offset() - map.region().file_offset()
                                      : static_cast<uint64_t>(run.base() - map.region().base());
    const std::array<uint64_t, 6> found{map.block_stride(), strides.layer, strides.outer,
                                        strides.head,       strides.page,  at};
    for (size_t i = 0; i < found.size(); ++i) {
      if (map.layers().count == 1 && i == 1) {
        EXPECT_EQ(row.numbers[i], "–");
      } else {
        EXPECT_EQ(row.numbers[i], std::to_string(found[i])) << "column " << i + 2;
      }
    }
    EXPECT_EQ(run.size_bytes(), 16U);
  }
  // Each kind with each format that it takes, and a custom one.
  EXPECT_EQ(seen.size(), 4U + 1 + 2 + 2 + 4);
}

TEST(MemoryLayoutDoc, ItsSliceIsWhatTheCodeDoes) {
  const testing::GuardedPlace place(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                                    KvBlockLayout::kUniversalTP);
  const LayoutView slice =
      LayoutView(place.layout()).slice(LayerRange{LayerId{1}, 2})->slice(HeadRange{1, 2}).value();
  const uint64_t start =
      2 * place.layout().page_maps().front().block_stride() + slice.offset(LayerId{1});
  const std::string sentence = "1 × 128 = " + std::to_string(start) + " there: two pieces of " +
                               std::to_string(2 * slice.strides(0).layer) + " bytes, " +
                               std::to_string(slice.strides(0).head) + " apart";
  EXPECT_NE(document().find(sentence), std::string::npos) << sentence;
}

}  // namespace
}  // namespace kvbm
