// SPDX-License-Identifier: Apache-2.0
// kvbm.PhysicalLayout: a layout together with the memory under it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/system_memory.hpp"

#include "bindings/python/live_objects.hpp"

namespace kvbm {

/// What Python's object, managers, running transfers and tensors share.
/// Ownership: owns its memory or keeps the tensors. Threads: any thread; immutable.
struct HeldLayout {
  HeldLayout(PhysicalLayout the_layout, std::vector<SystemMemory> the_memory,
             std::vector<nanobind::ndarray<>> the_tensors)
      : memory(std::move(the_memory)),
        tensors(std::move(the_tensors)),
        layout(std::move(the_layout)) {}

  const Alive alive{live_objects().layouts};
  const std::vector<SystemMemory> memory;
  const std::vector<nanobind::ndarray<>> tensors;  // nanobind lets go of them with the GIL
  const PhysicalLayout layout;
};

/// kvbm.PhysicalLayout
struct Layout {
  std::shared_ptr<const HeldLayout> held;
};

void bind_layout(nanobind::module_& module);

}  // namespace kvbm
