// SPDX-License-Identifier: Apache-2.0
// UniqueFunction: a move-only callable; small captures cost no allocation.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "kvbm/base/contract.hpp"

namespace kvbm {

template <class Signature>
class UniqueFunction;

/// Owns a callable of any type, copyable or not. Captures of up to kInlineBytes (nothrow movable,
/// no stricter alignment than std::max_align_t) are held inline; larger ones in one allocation.
/// Errors: calling an empty one is a ContractViolation.
/// Threads: one thread at a time.
template <class R, class... Args>
class UniqueFunction<R(Args...)> {
 public:
  static constexpr size_t kInlineBytes = 64;

  UniqueFunction() noexcept = default;

  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, UniqueFunction> &&
           std::is_invocable_r_v<R, std::decay_t<F>&, Args...>)
      UniqueFunction(
          F&& callable) {  // NOLINT(google-explicit-constructor): a callable is a function
    using Callable = std::decay_t<F>;
    if constexpr (held_inline<Callable>()) {
      ::new (static_cast<void*>(storage_)) Callable(std::forward<F>(callable));
    } else {
      ::new (static_cast<void*>(storage_)) Callable*(new Callable(std::forward<F>(callable)));
    }
    operations_ = &kOperations<Callable>;
  }

  UniqueFunction(UniqueFunction&& other) noexcept { take(other); }
  UniqueFunction& operator=(UniqueFunction&& other) noexcept {
    if (this != &other) {
      reset();
      take(other);
    }
    return *this;
  }
  UniqueFunction(const UniqueFunction&) = delete;
  UniqueFunction& operator=(const UniqueFunction&) = delete;
  ~UniqueFunction() { reset(); }

  [[nodiscard]] explicit operator bool() const noexcept { return operations_ != nullptr; }

  R operator()(Args... args) {
    KVBM_CONTRACT(operations_ != nullptr, "an empty function was called");
    return operations_->call(storage_, std::forward<Args>(args)...);
  }

  /// Destroys the callable; the function is empty afterwards.
  void reset() noexcept {
    if (const Operations* operations = std::exchange(operations_, nullptr)) {
      operations->destroy(storage_);
    }
  }

  /// Whether a callable of type F costs no allocation.
  template <class F>
  [[nodiscard]] static constexpr bool held_inline() noexcept {
    return sizeof(F) <= kInlineBytes && alignof(F) <= alignof(std::max_align_t) &&
           std::is_nothrow_move_constructible_v<F>;
  }

 private:
  struct Operations {
    R (*call)(std::byte* storage, Args&&... args);
    void (*move)(std::byte* to, std::byte* from) noexcept;
    void (*destroy)(std::byte* storage) noexcept;
  };

  template <class F>
  [[nodiscard]] static F& callable_in(std::byte* storage) noexcept {
    if constexpr (held_inline<F>()) {
      return *std::launder(reinterpret_cast<F*>(storage));
    } else {
      return **std::launder(reinterpret_cast<F**>(storage));
    }
  }

  template <class F>
  static constexpr Operations kOperations{
      .call = [](std::byte* storage, Args&&... args) -> R {
        if constexpr (std::is_void_v<R>) {
          static_cast<void>(callable_in<F>(storage)(std::forward<Args>(args)...));
        } else {
          return callable_in<F>(storage)(std::forward<Args>(args)...);
        }
      },
      .move =
          [](std::byte* to, std::byte* from) noexcept {
            if constexpr (held_inline<F>()) {
              F& source = callable_in<F>(from);
              ::new (static_cast<void*>(to)) F(std::move(source));
              source.~F();
            } else {
              ::new (static_cast<void*>(to)) F*(&callable_in<F>(from));
            }
          },
      .destroy =
          [](std::byte* storage) noexcept {
            if constexpr (held_inline<F>()) {
              callable_in<F>(storage).~F();
            } else {
              delete &callable_in<F>(storage);
            }
          },
  };

  void take(UniqueFunction& other) noexcept {
    operations_ = std::exchange(other.operations_, nullptr);
    if (operations_ != nullptr) operations_->move(storage_, other.storage_);
  }

  alignas(std::max_align_t) std::byte storage_[kInlineBytes];
  const Operations* operations_ = nullptr;
};

}  // namespace kvbm
