// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/mutex.hpp"

#include <array>
#include <cstddef>
#include <string>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

#ifdef NDEBUG
constexpr bool kChecked = false;
#else
constexpr bool kChecked = true;
#endif

/// The locks that this thread holds, in the order it took them.
class Witness {
 public:
  void check_may_lock(const Mutex& wanted) const {
    for (size_t i = 0; i < count_; ++i) {
      const Mutex& held = *held_[i];
      if (&held != &wanted && place(wanted) < place(held)) continue;
      throw ContractViolation(
          format_text("lock order: {} is wanted while {} is held; a thread takes locks from the "
                      "highest rank down",
                      describe(wanted), describe(held)));
    }
  }

  void check_holds_only(const Mutex& mutex) const {
    KVBM_CONTRACT(
        count_ == 1 && held_[0] == &mutex,
        format_text("waiting on a condition of {} needs that lock and no other", describe(mutex)));
  }

  void add(const Mutex& mutex) {
    KVBM_CONTRACT(count_ < held_.size(), "a thread holds more locks than there are ranks");
    held_[count_++] = &mutex;
  }

  void remove(const Mutex& mutex) noexcept {
    for (size_t i = count_; i-- > 0;) {
      if (held_[i] != &mutex) continue;
      for (size_t j = i + 1; j < count_; ++j) held_[j - 1] = held_[j];
      --count_;
      return;
    }
  }

 private:
  static unsigned place(const Mutex& mutex) noexcept {
    return static_cast<unsigned>(mutex.rank()) << 8U | mutex.order();
  }
  static std::string describe(const Mutex& mutex) {
    return format_text("'{}' (rank {}, order {})", mutex.name(), static_cast<int>(mutex.rank()),
                       mutex.order());
  }

  std::array<const Mutex*, 32> held_{};
  size_t count_ = 0;
};

[[maybe_unused]] thread_local constinit Witness witness;

}  // namespace

bool lock_order_is_checked() noexcept { return kChecked; }

void Mutex::lock() {
  if constexpr (kChecked) witness.check_may_lock(*this);
  mutex_.lock();
  if constexpr (kChecked) witness.add(*this);
}

void Mutex::unlock() {
  if constexpr (kChecked) witness.remove(*this);
  mutex_.unlock();
}

bool Mutex::try_lock() {
  const bool locked = mutex_.try_lock();
  if constexpr (kChecked) {
    if (locked) witness.add(*this);
  }
  return locked;
}

void CondVar::wait(Mutex& mutex) {
  if constexpr (kChecked) witness.check_holds_only(mutex);
  std::unique_lock<std::mutex> native(mutex.mutex_, std::adopt_lock);
  condition_.wait(native);
  native.release();
}

bool CondVar::wait_until(Mutex& mutex, TimePoint deadline) {
  if (deadline == kNever) {
    wait(mutex);
    return true;
  }
  if constexpr (kChecked) witness.check_holds_only(mutex);
  std::unique_lock<std::mutex> native(mutex.mutex_, std::adopt_lock);
  const std::cv_status status = condition_.wait_until(native, deadline);
  native.release();
  return status == std::cv_status::no_timeout;
}

}  // namespace kvbm
