// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_route.hpp"

#include <optional>
#include <set>
#include <string_view>
#include <tuple>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

constexpr StorageKind kSystem = StorageKind::kSystem;
constexpr StorageKind kPinned = StorageKind::kPinned;
constexpr StorageKind kDevice = StorageKind::kDevice;
constexpr StorageKind kFile = StorageKind::kFile;
constexpr StorageKind kAll[] = {kSystem, kPinned, kDevice, kFile};

// The table in words: which pairs go, on a device that can everything.
std::optional<TransferRoute> expected(StorageKind src, StorageKind dst) {
  if (src == kFile && dst == kFile) return std::nullopt;
  if (src == kFile) return TransferRoute::kFileToMemory;
  if (dst == kFile) return TransferRoute::kMemoryToFile;
  if (src == kDevice && dst == kDevice) return TransferRoute::kDeviceToDevice;
  if (src == kDevice) return TransferRoute::kDeviceToHost;
  if (dst == kDevice) return TransferRoute::kHostToDevice;
  return TransferRoute::kHostToHost;
}

TEST(TransferRoute, EveryPairOfStorageHasARouteOrAReason) {
  for (const bool host_accessible : {false, true}) {
    for (const bool pageable : {false, true}) {
      for (const StorageKind src : kAll) {
        for (const StorageKind dst : kAll) {
          std::optional<TransferRoute> route = expected(src, dst);
          const bool with_file = src == kFile || dst == kFile;
          if (with_file && !host_accessible && (src == kDevice || dst == kDevice)) route.reset();
          if (!with_file && !pageable && (src == kSystem || dst == kSystem)) route.reset();
          const Result<TransferRoute> found = choose_route(src, dst,
                                                           {.host_accessible = host_accessible,
                                                            .copies_pageable_host = pageable,
                                                            .page_bytes = 4096});
          ASSERT_EQ(found.has_value(), route.has_value())
              << to_string(src) << " to " << to_string(dst);
          if (found) {
            EXPECT_EQ(*found, *route);
          } else {
            EXPECT_EQ(found.error().code(), ErrorCode::kUnsupported);
            EXPECT_FALSE(found.error().message().empty());
          }
        }
      }
    }
  }
}

TEST(TransferRoute, RoutesHaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kNumTransferRoutes; ++i) {
    names.insert(to_string(static_cast<TransferRoute>(i)));
  }
  EXPECT_EQ(names.size(), kNumTransferRoutes);
}

}  // namespace
}  // namespace kvbm
