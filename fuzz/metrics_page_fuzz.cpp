// SPDX-License-Identifier: Apache-2.0
// A page of metrics: no text crashes the reader, and what it says of a refused one names a line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kvbm/runtime/metrics_page.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const kvbm::Result<kvbm::MetricsPage> page = kvbm::MetricsPage::parse(text);
  if (!page) {
    if (!page.error().message().starts_with("line ")) std::abort();
    return 0;
  }
  for (const kvbm::MetricSample& sample : page->samples()) {
    if (sample.name.empty() || !page->has(sample.name)) std::abort();
  }
  return 0;
}
