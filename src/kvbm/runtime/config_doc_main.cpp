// SPDX-License-Identifier: Apache-2.0
// kvbm_config_doc <file>: writes docs/configuration.md.
#include <cstdio>
#include <fstream>

#include "kvbm/runtime/config_doc.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <file>\n", argv[0]);
    return 2;
  }
  std::ofstream file(argv[1], std::ios::binary);
  file << kvbm::config_doc();
  file.close();
  if (file) return 0;
  std::fprintf(stderr, "cannot write %s\n", argv[1]);
  return 1;
}
