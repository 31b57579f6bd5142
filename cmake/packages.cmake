# SPDX-License-Identifier: Apache-2.0
#
# Every foreign package is found here, once. What is missing is reported together, by the name of its Debian package.

set(kvbm_missing "")

# kvbm_package(<cmake package> <target that must exist> <debian package>)
macro(kvbm_package package target debian)
  find_package(${package} QUIET)
  if(NOT TARGET ${target})
    list(APPEND kvbm_missing ${debian})
  endif()
endmacro()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

kvbm_package(tl-expected tl::expected libexpected-dev)
kvbm_package(nlohmann_json nlohmann_json::nlohmann_json nlohmann-json3-dev)
kvbm_package(tomlplusplus tomlplusplus::tomlplusplus libtomlplusplus-dev)
kvbm_package(CLI11 CLI11::CLI11 libcli11-dev)
kvbm_package(fmt fmt::fmt libfmt-dev)
kvbm_package(spdlog spdlog::spdlog libspdlog-dev)

find_package(PkgConfig QUIET)
if(NOT PkgConfig_FOUND)
  list(APPEND kvbm_missing pkg-config)
else()
  pkg_check_modules(xxhash QUIET IMPORTED_TARGET libxxhash)
  if(NOT TARGET PkgConfig::xxhash)
    list(APPEND kvbm_missing libxxhash-dev)
  endif()
endif()

include(blake3)

# What an adapter needs may be absent: kvbm_backend() sees to it.
if(PkgConfig_FOUND)
  pkg_check_modules(cppzmq QUIET IMPORTED_TARGET cppzmq)
  pkg_check_modules(httplib QUIET IMPORTED_TARGET cpp-httplib)
endif()

if(KVBM_TESTS)
  kvbm_package(GTest GTest::gtest_main libgtest-dev)
  if(NOT TARGET GTest::gmock)
    list(APPEND kvbm_missing libgmock-dev)
  endif()
  if(NOT KVBM_PYTHON)
    list(APPEND kvbm_missing python3)
  endif()
endif()
if(KVBM_BENCH)
  kvbm_package(benchmark benchmark::benchmark libbenchmark-dev)
endif()

if(kvbm_missing)
  list(REMOVE_DUPLICATES kvbm_missing)
  list(JOIN kvbm_missing " " kvbm_missing)
  message(FATAL_ERROR "Packages are missing. Run scripts/setup, or install these Debian packages "
                      "(elsewhere: their equivalents):\n  ${kvbm_missing}")
endif()
