// SPDX-License-Identifier: Apache-2.0
// kvbm_metrics_doc <file>: writes the table of docs/metrics.md anew.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "kvbm/runtime/metrics_doc.hpp"

namespace {

kvbm::Status rewrite(const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::string document{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  KVBM_ASSIGN_OR_RETURN(const auto series, kvbm::documented_series());
  KVBM_ASSIGN_OR_RETURN(const std::string text,
                        kvbm::with_metrics_table(document, kvbm::metrics_table(series)));
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (out) return {};
  return kvbm::make_error(kvbm::ErrorCode::kIo, std::string("cannot write ") + path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <file>\n", argv[0]);
    return 2;
  }
  const kvbm::Status written = rewrite(argv[1]);
  if (written) return 0;
  std::fprintf(stderr, "%s\n", written.error().describe().c_str());
  return 1;
}
