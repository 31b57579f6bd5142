// SPDX-License-Identifier: Apache-2.0
// A request may be refused: then there is no notification to wait for.
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/coroutine.hpp"

kvbm::testing::Coroutine copy(kvbm::TransferManager& manager, kvbm::TransferRequest request) {
  const auto copied = manager.execute_transfer(request);
#ifdef KVBM_POSITIVE_CONTROL
  if (copied) static_cast<void>(co_await *copied);
#else
  static_cast<void>(co_await copied);
#endif
}
