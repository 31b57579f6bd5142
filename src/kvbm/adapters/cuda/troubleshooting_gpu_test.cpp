// SPDX-License-Identifier: Apache-2.0
// Provokes every message that docs/guides/troubleshooting.md quotes and that needs a GPU. The guide
// is compiled in: such a machine has programs alone.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/adapters/cuda/cuda_device.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_pages.hpp"

#include "tests/support/require.hpp"
#include "tests/support/test_gpu.hpp"
#include "tests/support/troubleshooting_guide.hpp"

namespace kvbm {

extern const char* const kTroubleshootingGuide;  // generated, see CMakeLists.txt

namespace {

template <class T>
std::string message_of(const Result<T>& result) {
  return result ? "it succeeded" : result.error().message();
}

TEST(Troubleshooting, OnAGpu) {
  NullLogSink log;
  ThreadExecutor executor{log};
  auto created = CudaDevice::create({.executor = executor, .ordinal = testing::test_gpu()});
  if (!created) KVBM_SKIP("gpu", created.error().message());
  CudaDevice& device = **created;
  std::istringstream text(kTroubleshootingGuide);
  testing::TroubleshootingGuide guide(
      text, [](const std::string& heading) { return heading == "On a GPU"; });

  guide.said(message_of(CudaDevice::create({.executor = executor, .ordinal = 4096})));
  guide.said(message_of(device.allocate(uint64_t{1} << 60, 256)));

  const HostPages pages = HostPages::map({.size_bytes = 1 << 20}).value();
  ASSERT_TRUE(device.pinner()->pin(pages.data(), pages.size_bytes()));
  guide.said(message_of(device.pinner()->pin(pages.data(), pages.size_bytes())));
  device.pinner()->unpin(pages.data(), pages.size_bytes());

  const DeviceMemory memory = device.allocate(4096, 256).value();
  std::vector<std::byte> pageable(4096);
  const auto copy = [&](CopyMethod method) {
    StridedCopyBatch batch{.pairs = make_block_pairs({BlockId(0)}),
                           .pieces = {{.src = pageable.data(), .dst = memory.data(), .bytes = 64}}};
    batch.method = method;
    return batch;
  };
  ASSERT_TRUE(device.info().capabilities.kernel_copies);
  const StreamRef own = device.create_stream("own").value();
  Status refused = device.copy(own, copy(CopyMethod::kKernel));
  if (refused) refused = device.record(own).wait();
  guide.said(message_of(refused));

  guide.said(message_of(device.copy(own, copy(CopyMethod::kRing))));

  cudaStream_t native = nullptr;
  ASSERT_EQ(::cudaSetDevice(testing::test_gpu()), cudaSuccess);
  ASSERT_EQ(::cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  const StreamRef engine =
      device.adopt_stream(reinterpret_cast<uintptr_t>(native), "engine").value();
  ASSERT_EQ(::cudaStreamBeginCapture(native, cudaStreamCaptureModeRelaxed), cudaSuccess);
  guide.said(message_of(device.copy(engine, copy(CopyMethod::kEngine))));
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(::cudaStreamEndCapture(native, &graph), cudaSuccess);
  if (graph != nullptr) ::cudaGraphDestroy(graph);
  EXPECT_TRUE(device.destroy_stream(engine));
  ::cudaStreamDestroy(native);

  guide.expect_all_were_said();
}

}  // namespace
}  // namespace kvbm
