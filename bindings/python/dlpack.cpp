// SPDX-License-Identifier: Apache-2.0
// Source: DLPack 1.0, dlpack.h: DLManagedTensor and DLManagedTensorVersioned.
#include "bindings/python/dlpack.hpp"

#include <utility>

#include "kvbm/base/contract.hpp"

namespace nb = nanobind;

namespace kvbm {
namespace {

constexpr uint64_t kReadOnly = 1;
constexpr uint64_t kIsCopied = 2;

struct Unversioned {
  static constexpr const char* kName = "dltensor";

  nb::dlpack::dltensor tensor;
  void* context;
  void (*deleter)(Unversioned*);
};

struct Versioned {
  static constexpr const char* kName = "dltensor_versioned";

  uint32_t major;
  uint32_t minor;
  void* context;
  void (*deleter)(Versioned*);
  uint64_t flags;
  nb::dlpack::dltensor tensor;
};

template <class Managed>
struct Exported {
  HostTensor tensor;
  Managed managed{};
};

template <class Managed>
nb::object make_capsule(std::unique_ptr<Exported<Managed>> exported) {
  HostTensor& from = exported->tensor;
  Managed& managed = exported->managed;
  managed.tensor.data = from.data;
  managed.tensor.device = {1, 0};  // kDLCPU
  managed.tensor.ndim = static_cast<int32_t>(from.shape.size());
  managed.tensor.dtype = from.dtype;
  managed.tensor.shape = from.shape.data();
  managed.tensor.strides = from.strides.data();
  managed.context = exported.get();
  managed.deleter = [](Managed* done) { delete static_cast<Exported<Managed>*>(done->context); };
  PyObject* capsule = PyCapsule_New(&managed, Managed::kName, [](PyObject* unused) {
    // A consumer renames the capsule and calls the deleter itself.
    if (PyCapsule_IsValid(unused, Managed::kName) == 0) return;
    auto* tensor = static_cast<Managed*>(PyCapsule_GetPointer(unused, Managed::kName));
    tensor->deleter(tensor);
  });
  if (capsule == nullptr) throw nb::python_error();
  (void)exported.release();
  return nb::steal(capsule);
}

}  // namespace

nb::object to_dlpack(HostTensor tensor, DlpackVersion version) {
  if (version == DlpackVersion::kUnversioned) {
    KVBM_CONTRACT(!tensor.read_only, "an unversioned DLPack tensor cannot be read-only");
    auto exported = std::make_unique<Exported<Unversioned>>();
    exported->tensor = std::move(tensor);
    return make_capsule(std::move(exported));
  }
  auto exported = std::make_unique<Exported<Versioned>>();
  exported->managed.major = 1;
  exported->managed.minor = 0;
  exported->managed.flags = (tensor.read_only ? kReadOnly : 0) | (tensor.is_copy ? kIsCopied : 0);
  exported->tensor = std::move(tensor);
  return make_capsule(std::move(exported));
}

}  // namespace kvbm
