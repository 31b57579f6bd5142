# SPDX-License-Identifier: Apache-2.0
#
# Compiler warnings, for kvbm's own code only (foreign headers are system headers).

option(KVBM_WERROR "Treat warnings as errors" OFF)

add_library(kvbm_warnings INTERFACE)
target_compile_options(
  kvbm_warnings
  INTERFACE -Wall
            -Wextra
            -Wpedantic
            -Wconversion
            -Wshadow
            $<$<BOOL:${KVBM_WERROR}>:-Werror>
            # The lock annotations of kvbm/base are checked by clang alone.
            $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
