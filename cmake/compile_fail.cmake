# SPDX-License-Identifier: Apache-2.0
#
# One kvbm_compile_fail test. Reads COMPILER, INCLUDES, DEFINITIONS, SOURCE, EXPECT.

set(command "${COMPILER}" -std=c++20 -fsyntax-only)
foreach(folder IN LISTS INCLUDES)
  list(APPEND command "-I${folder}")
endforeach()
foreach(definition IN LISTS DEFINITIONS)
  list(APPEND command "-D${definition}")
endforeach()

execute_process(
  COMMAND ${command} -DKVBM_POSITIVE_CONTROL "${SOURCE}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "The positive control does not compile: ${SOURCE}\n${output}")
endif()

execute_process(
  COMMAND ${command} "${SOURCE}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "This must not compile, but does: ${SOURCE}")
endif()
if(NOT output MATCHES "${EXPECT}")
  message(FATAL_ERROR "It fails to compile, but not for the expected reason /${EXPECT}/:\n${output}")
endif()
