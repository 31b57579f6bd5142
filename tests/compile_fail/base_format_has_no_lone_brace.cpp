// SPDX-License-Identifier: Apache-2.0
// A brace in a message is doubled; there are no format specifications.
#include "kvbm/base/text.hpp"

std::string message(int count) {
#ifdef KVBM_POSITIVE_CONTROL
  return kvbm::format_text("{} {{blocks}}", count);
#else
  return kvbm::format_text("{:x} blocks", count);
#endif
}
