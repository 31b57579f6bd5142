// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/errors.hpp"

#include <unistd.h>

#include <array>
#include <cstddef>
#include <string>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace nb = nanobind;

namespace kvbm {
namespace {

constexpr size_t kNumCodes = static_cast<size_t>(ErrorCode::kInternal) + 1;

/// The classes of kvbm.errors by code; they live as long as the process.
std::array<PyObject*, kNumCodes>& classes() {
  static std::array<PyObject*, kNumCodes> the_classes{};
  return the_classes;
}

}  // namespace

void bind_errors(nb::module_& module) {
  const nb::object base = nb::module_::import_("kvbm.errors").attr("Error");
  module.attr("Error") = base;
  for (nb::handle of_code : base.attr("__subclasses__")()) {
    const auto code = std::string(nb::str(of_code.attr("code")).c_str());
    for (size_t i = 0; i < kNumCodes; ++i) {
      if (code == to_string(static_cast<ErrorCode>(i))) classes()[i] = of_code.inc_ref().ptr();
    }
  }
  for (size_t i = 0; i < kNumCodes; ++i) {
    if (classes()[i] != nullptr) continue;
    const std::string code(to_string(static_cast<ErrorCode>(i)));
    throw nb::import_error(("kvbm.errors has no class for the code " + code).c_str());
  }
  // NOLINTNEXTLINE(bugprone-throw-keyword-missing): it registers the class.
  nb::exception<ContractViolation>(module, "ContractViolation", PyExc_RuntimeError);
}

nb::object to_exception(const Error& error) {
  return nb::borrow(classes().at(static_cast<size_t>(error.code())))(error.describe().c_str());
}

void raise(const Error& error) {
  const nb::object exception = to_exception(error);
  PyErr_SetObject(exception.type().ptr(), exception.ptr());
  throw nb::python_error();
}

void check_process(std::string_view what, pid_t process) {
  if (process == getpid()) return;
  raise(Error(ErrorCode::kUnsupported,
              format_text("this {} belongs to process {}, which forked: its threads are not here; "
                          "make another one in process {}",
                          what, process, getpid())));
}

}  // namespace kvbm
