// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_notification.hpp"

void listen(const kvbm::TransferCompleteNotification& notification) {
#ifdef KVBM_POSITIVE_CONTROL
  notification.on_done([](const kvbm::TransferResult&) noexcept {});
#else
  notification.on_done([](const kvbm::TransferResult&) {});
#endif
}
