// SPDX-License-Identifier: Apache-2.0
// Blocks between files and a real GPU by the real libcufile, in whichever mode it has here.
//
// KVBM_CUFILE names another library than the system's; KVBM_CUFILE_DIR, with colons, folders to
// try.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/runtime/gds.hpp"
#include "kvbm/runtime/transfer_manager_builder.hpp"

#include "tests/support/recording_log_sink.hpp"
#include "tests/support/require.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using testing::tag_of;

constexpr LayoutConfig kConfig{.num_blocks = 48,
                               .num_layers = 16,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 1024,
                               .dtype_width_bytes = 2};

std::string library() {
  const char* const named = std::getenv("KVBM_CUFILE");
  return named != nullptr ? named : GdsOptions().library;
}

std::vector<std::string> folders() {
  std::vector<std::string> all;
  if (const char* const named = std::getenv("KVBM_CUFILE_DIR")) {
    std::istringstream in(named);
    for (std::string folder; std::getline(in, folder, ':');) all.push_back(folder);
  }
  all.push_back(::testing::TempDir());
  all.emplace_back("/dev/shm");
  return all;
}

class CufileOnAGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto gpus = find_accelerators();
    if (!gpus || gpus->empty()) KVBM_SKIP("gpu", gpus ? "no GPU" : gpus.error().message());
    const auto found = find_gds(library());
    if (!found) GTEST_SKIP() << found.error();
    std::printf("%s, %s\n", found->version.c_str(),
                found->is_direct ? "GPU Direct Storage" : "compatibility mode");
    is_direct_ = found->is_direct;
  }

  [[nodiscard]] std::unique_ptr<OwnedTransferManager> manager(GdsCompatibility compatibility) {
    return TransferManagerBuilder()
        .cuda_device_id(0)
        .capabilities({.allow_gds = true})
        .gds({.library = library(), .compatibility = compatibility})
        .log(log_)
        .build()
        .value();
  }

  testing::RecordingLogSink log_;
  bool is_direct_ = false;
};

/// libcufile opens a file once more by its path, so it has one to the end of the test.
class NamedFile {
 public:
  explicit NamedFile(const std::string& folder) : path_(folder + "/kvbm_cufile_XXXXXX") {
    file_ = File(::mkstemp(path_.data()));
    EXPECT_EQ(::ftruncate(file_.fd(), static_cast<off_t>(size_bytes())), 0);
    file_.try_direct();
  }
  ~NamedFile() { ::unlink(path_.c_str()); }
  NamedFile(const NamedFile&) = delete;
  NamedFile& operator=(const NamedFile&) = delete;

  [[nodiscard]] MemoryRegion region() const {
    return MemoryRegion::of_file(file_.ref(), 0, size_bytes());
  }

 private:
  [[nodiscard]] static uint64_t size_bytes() {
    return required_bytes(kConfig, LayoutKind::kFileSlots, kDirectSlots).value();
  }

  std::string path_;
  File file_;
};

/// A place of each kind, and what blocks hold.
struct Places {
  Places(const OwnedTransferManager& owner, const std::string& folder)
      : manager(owner),
        host(owner.layout()
                 .with_config(kConfig)
                 .fully_contiguous()
                 .allocate_pinned(owner.pinned_memory())
                 .build()
                 .value()),
        src(owner.layout()
                .with_config(kConfig)
                .fully_contiguous()
                .allocate_device(owner.device())
                .build()
                .value()),
        dst(owner.layout()
                .with_config(kConfig)
                .layer_separate(BlockDimension::kBlockIsFirst)
                .allocate_device(owner.device())
                .build()
                .value()),
        named(folder),
        file(PhysicalLayout::file_slots(kConfig, named.region(), kDirectSlots).value()) {
    host_handle = manager->register_layout(host).value();
    src_handle = manager->register_layout(src).value();
    dst_handle = manager->register_layout(dst).value();
    file_handle = manager->register_layout(file).value();
    Random random(1);
    content.resize(kConfig.num_blocks * kConfig.block_bytes());
    for (std::byte& byte : content) byte = static_cast<std::byte>(random.next());
    std::copy(content.begin(), content.end(), bytes().begin());
    for (uint32_t i = 0; i < kConfig.num_blocks; ++i) {
      ids.emplace_back(i);
      tags.push_back(tag_of(i));
    }
  }

  [[nodiscard]] std::span<std::byte> bytes() const {
    const MemoryRegion region = host.page_maps().front().region();
    return {region.base(), kConfig.num_blocks * kConfig.block_bytes()};
  }
  [[nodiscard]] TransferRequest request(LayoutHandle from, LayoutHandle to) const {
    TransferRequest request{.src = from, .src_ids = ids, .dst = to, .dst_ids = ids};
    if (from == file_handle || to == file_handle) request.options.tags = tags;
    return request;
  }
  [[nodiscard]] TransferCompleteNotification run(LayoutHandle from, LayoutHandle to) const {
    TransferCompleteNotification done = manager->execute_transfer(request(from, to)).value();
    static_cast<void>(done.wait());
    return done;
  }
  [[nodiscard]] std::string explain(LayoutHandle from, LayoutHandle to) const {
    return manager->explain_transfer(request(from, to)).value();
  }
  /// From the second place of the GPU to the host.
  void expect_content() const {
    std::fill(bytes().begin(), bytes().end(), std::byte{0});
    ASSERT_TRUE(run(dst_handle, host_handle).wait());
    EXPECT_TRUE(std::equal(content.begin(), content.end(), bytes().begin()));
  }

  const OwnedTransferManager& manager;
  PhysicalLayout host, src, dst;
  NamedFile named;
  PhysicalLayout file;
  LayoutHandle host_handle, src_handle, dst_handle, file_handle;
  std::vector<BlockId> ids;
  std::vector<SlotTag> tags;
  std::vector<std::byte> content;
};

TEST_F(CufileOnAGpu, BlocksGoBetweenFileAndGpuInOneHop) {
  const auto manager = this->manager(GdsCompatibility::kTake);
  for (const std::string& folder : folders()) {
    if (!std::filesystem::is_directory(folder)) continue;
    Places places(*manager, folder);
    const std::string text = places.explain(places.src_handle, places.file_handle);
    std::printf("%s: %s\n", folder.c_str(), text.c_str());
    if (!text.starts_with("device to file (file engine)")) continue;
    ASSERT_TRUE(places.run(places.host_handle, places.src_handle).wait());
    const auto written = places.run(places.src_handle, places.file_handle);
    ASSERT_TRUE(written.wait()) << written.wait().error();
    EXPECT_EQ(written.result().bytes, places.content.size());
    const auto read = places.run(places.file_handle, places.dst_handle);
    ASSERT_TRUE(read.wait()) << read.wait().error();
    places.expect_content();

    // The host finds the same slots, and a wrong tag is found by the GPU's checksums' way as well.
    std::fill(places.bytes().begin(), places.bytes().end(), std::byte{0});
    ASSERT_TRUE(places.run(places.file_handle, places.host_handle).wait());
    EXPECT_TRUE(std::equal(places.content.begin(), places.content.end(), places.bytes().begin()));

    // A damaged byte in the file.
    const MemoryRegion slot = places.file.slot(BlockId{7});
    const auto unit = static_cast<off_t>(slot.file_offset() + places.file.slots()->header_bytes);
    const std::unique_ptr<void, void (*)(void*)> page(std::aligned_alloc(4096, 4096), &std::free);
    ASSERT_EQ(::pread(slot.file().fd, page.get(), 4096, unit), 4096);
    static_cast<std::byte*>(page.get())[99] ^= std::byte{4};
    ASSERT_EQ(::pwrite(slot.file().fd, page.get(), 4096, unit), 4096);
    const auto damaged = places.run(places.file_handle, places.dst_handle);
    ASSERT_FALSE(damaged.wait());
    EXPECT_EQ(damaged.wait().error().code(), ErrorCode::kCorrupt);
    EXPECT_EQ(damaged.result().failed, std::vector<uint32_t>{7});
    return;
  }
  GTEST_SKIP() << "libcufile takes files of none of the folders";
}

TEST_F(CufileOnAGpu, WhatItDoesNotTakeIsStaged) {
  const auto manager = this->manager(GdsCompatibility::kRefuse);
  Places places(*manager, ::testing::TempDir());
  if (is_direct_) GTEST_SKIP() << "GPU Direct Storage is here";
  const std::string text = places.explain(places.src_handle, places.file_handle);
  EXPECT_NE(text.find("compatibility mode"), std::string::npos) << text;
  ASSERT_TRUE(places.run(places.host_handle, places.src_handle).wait());
  ASSERT_TRUE(places.run(places.src_handle, places.file_handle).wait());
  ASSERT_TRUE(places.run(places.file_handle, places.dst_handle).wait());
  places.expect_content();
}

}  // namespace
}  // namespace kvbm
