# SPDX-License-Identifier: Apache-2.0
#
# Whether there is CUDA in this build: KVBM_WITH_CUDA = ON, OFF or AUTO; KVBM_REQUIRE_CUDA (option or environment) makes its
# absence an error. Looks for nvcc in CUDA_PATH, CUDA_HOME, the PATH and /usr/local/cuda. Sets kvbm_state_CUDA to Built (language
# CUDA, target CUDA::cudart_static and CMAKE_CUDA_ARCHITECTURES are there then) or LeftOut.

set(kvbm_default "80,86,89,90,100,120")
if(NOT "$ENV{CUDA_ARCHS}" STREQUAL "")
  set(kvbm_default "$ENV{CUDA_ARCHS}")
endif()
set(CUDA_ARCHS "${kvbm_default}" CACHE STRING "SM versions to compile kernels for, with commas")
set(kvbm_default OFF)
if("$ENV{KVBM_REQUIRE_CUDA}" MATCHES "^(1|ON|on|TRUE|true|YES|yes)$")
  set(kvbm_default ON)
endif()
option(KVBM_REQUIRE_CUDA "Fail to configure without nvcc" ${kvbm_default})

string(TOUPPER "${KVBM_WITH_CUDA}" kvbm_cuda_wanted)
if(NOT kvbm_cuda_wanted MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "KVBM_WITH_CUDA=${KVBM_WITH_CUDA}: say ON, OFF or AUTO")
endif()

set(kvbm_state_CUDA LeftOut)
if(kvbm_cuda_wanted STREQUAL "OFF")
  set(kvbm_cuda_line "off, as asked")
else()
  find_program(
    KVBM_NVCC nvcc
    HINTS "$ENV{CUDA_PATH}/bin" "$ENV{CUDA_HOME}/bin"
    PATHS /usr/local/cuda/bin
    DOC "The CUDA compiler")
  if(KVBM_NVCC)
    set(kvbm_state_CUDA Built)
  else()
    set(kvbm_cuda_line "off (AUTO): no nvcc in CUDA_PATH, CUDA_HOME, PATH or /usr/local/cuda")
  endif()
endif()
if(kvbm_state_CUDA STREQUAL "LeftOut" AND (KVBM_REQUIRE_CUDA OR kvbm_cuda_wanted STREQUAL "ON"))
  message(FATAL_ERROR "CUDA is asked for (KVBM_WITH_CUDA=${KVBM_WITH_CUDA}, KVBM_REQUIRE_CUDA=${KVBM_REQUIRE_CUDA}), "
                      "and is ${kvbm_cuda_line}. Install the CUDA toolkit, 12.0 or newer, or set CUDA_PATH to it.")
endif()

if(kvbm_state_CUDA STREQUAL "Built")
  # What this toolkit does not know is left out. The lowest is there as PTX too, for GPUs newer than all of them.
  execute_process(
    COMMAND ${KVBM_NVCC} --list-gpu-code
    OUTPUT_VARIABLE kvbm_known
    COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9]+" kvbm_known "${kvbm_known}")
  string(REGEX MATCHALL "[0-9]+" kvbm_archs "${CUDA_ARCHS}")
  list(SORT kvbm_archs COMPARE NATURAL)
  list(REMOVE_DUPLICATES kvbm_archs)
  set(CMAKE_CUDA_ARCHITECTURES "")
  set(kvbm_beyond "")
  foreach(arch IN LISTS kvbm_archs)
    if(NOT arch IN_LIST kvbm_known)
      list(APPEND kvbm_beyond ${arch})
    elseif(CMAKE_CUDA_ARCHITECTURES)
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch}-real)
    else()
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch})
    endif()
  endforeach()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    message(FATAL_ERROR "CUDA_ARCHS=${CUDA_ARCHS} names no SM version that ${KVBM_NVCC} knows: ${kvbm_known}")
  endif()

  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${KVBM_NVCC}" CACHE FILEPATH "The CUDA compiler")
  endif()
  if(KVBM_CCACHE AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${KVBM_CCACHE}")
  endif()
  # The runtime is linked in, and finds the driver by itself: one program for machines with and without a GPU.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  find_package(CUDAToolkit 12.0 REQUIRED)

  list(JOIN CMAKE_CUDA_ARCHITECTURES " " kvbm_archs)
  set(kvbm_cuda_line "on (${kvbm_cuda_wanted}): ${CUDAToolkit_VERSION}, SM ${kvbm_archs}")
  if(kvbm_beyond)
    list(JOIN kvbm_beyond " " kvbm_beyond)
    string(APPEND kvbm_cuda_line ", left out as not known to this toolkit: ${kvbm_beyond}")
  endif()
endif()
set_property(GLOBAL APPEND PROPERTY KVBM_BACKEND_LINES "KVBM_WITH_CUDA: ${kvbm_cuda_line}")
