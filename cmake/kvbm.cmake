# SPDX-License-Identifier: Apache-2.0
#
# The vocabulary of kvbm's CMakeLists: kvbm_room, kvbm_test, kvbm_fuzz, kvbm_compile_fail, kvbm_backend.

include(GoogleTest)

# Everything a kvbm target has in common. `src` is the include root of the product; tests also see the repository root
# (for "tests/support/x.hpp").
add_library(kvbm_product INTERFACE)
target_include_directories(kvbm_product INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>)
target_compile_features(kvbm_product INTERFACE cxx_std_20)
target_link_libraries(kvbm_product INTERFACE tl::expected Threads::Threads)

# Compiles every header of every room alone. Not part of `all`; `make lint` builds it.
add_custom_target(kvbm_header_check)

# kvbm_rooms(<out>): the rooms of cmake/layers.txt, lowest rank first; only those in KVBM_ROOMS if that is set.
function(kvbm_rooms out)
  set_property(
    DIRECTORY
    APPEND
    PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/layers.txt")
  file(STRINGS "${PROJECT_SOURCE_DIR}/cmake/layers.txt" rows REGEX "^room[ ]")
  set(rooms "")
  foreach(row IN LISTS rows)
    string(REGEX REPLACE "^room +([^ ]+) .*$" "\\1" room "${row}")
    list(APPEND rooms "${room}")
  endforeach()
  foreach(wanted IN LISTS KVBM_ROOMS)
    if(NOT wanted IN_LIST rooms)
      message(FATAL_ERROR "KVBM_ROOMS names '${wanted}', which is no room of cmake/layers.txt")
    endif()
  endforeach()
  if(KVBM_ROOMS)
    # Close KVBM_ROOMS under "may include": walk from the highest rank down.
    set(wanted base ${KVBM_ROOMS})
    set(reversed ${rows})
    list(REVERSE reversed)
    foreach(row IN LISTS reversed)
      string(REGEX MATCH "^room +([^ ]+) +[0-9]+ +(.*)$" matched "${row}")
      if("*" IN_LIST wanted OR CMAKE_MATCH_1 IN_LIST wanted)
        string(REGEX REPLACE " +" ";" below "${CMAKE_MATCH_2}")
        list(APPEND wanted ${CMAKE_MATCH_1} ${below})
      endif()
    endforeach()
    set(chosen "")
    foreach(room IN LISTS rooms)
      if(room IN_LIST wanted)
        list(APPEND chosen "${room}")
      endif()
    endforeach()
    set(rooms ${chosen})
  endif()
  set(${out} "${rooms}" PARENT_SCOPE)
endfunction()

# The targets of rooms given by name: "tokens adapters/zmq" -> "kvbm::tokens kvbm::adapters_zmq".
function(kvbm_room_targets out)
  set(targets "")
  foreach(room IN LISTS ARGN)
    string(REPLACE "/" "_" room "${room}")
    list(APPEND targets "kvbm::${room}")
  endforeach()
  set(${out} "${targets}" PARENT_SCOPE)
endfunction()

# Refuses arguments that a function does not know.
macro(kvbm_check_arguments function)
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${function}: what is '${ARG_UNPARSED_ARGUMENTS}'?")
  endif()
  if(ARG_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "${function}: nothing after ${ARG_KEYWORDS_MISSING_VALUES}")
  endif()
endmacro()

# kvbm_room(<room> [SOURCES <file>...] [DEPS <room>...] [LIBS <target>...] [PUBLIC_LIBS <target>...])
#
# The room of the current folder as the static library kvbm_<room>, alias kvbm::<room>. DEPS are other rooms (public; base
# need not be named); LIBS are foreign libraries, which stay private to the room's sources; PUBLIC_LIBS is for the rare
# foreign library that a header shows.
function(kvbm_room room)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "SOURCES;DEPS;LIBS;PUBLIC_LIBS")
  kvbm_check_arguments("kvbm_room(${room})")
  string(REPLACE "/" "_" id "${room}")
  if(NOT room STREQUAL "base")
    list(PREPEND ARG_DEPS base)
    list(REMOVE_DUPLICATES ARG_DEPS)
  endif()
  kvbm_room_targets(deps ${ARG_DEPS})

  set(target kvbm_${id})
  if(ARG_SOURCES)
    add_library(${target} STATIC ${ARG_SOURCES})
    target_link_libraries(
      ${target}
      PUBLIC kvbm_product ${deps} ${ARG_PUBLIC_LIBS}
      PRIVATE ${ARG_LIBS} $<BUILD_INTERFACE:kvbm_warnings>)
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE kvbm_product ${deps} ${ARG_PUBLIC_LIBS} ${ARG_LIBS})
  endif()
  add_library(kvbm::${id} ALIAS ${target})
  set_property(GLOBAL APPEND PROPERTY KVBM_ROOM_LIST ${room})
  kvbm_header_check_of(${id} ${ARG_LIBS})
endfunction()

# One source per header, which includes it twice and nothing else: it needs no help and is guarded.
function(kvbm_header_check_of id)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/src"
       "${CMAKE_CURRENT_SOURCE_DIR}/*.hpp")
  set(sources "")
  foreach(header IN LISTS headers)
    string(MAKE_C_IDENTIFIER "${header}" name)
    set(source "${PROJECT_BINARY_DIR}/header_check/${name}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"${header}\"\n#include \"${header}\"\n")
    list(APPEND sources "${source}")
  endforeach()
  if(sources)
    add_library(kvbm_${id}_headers OBJECT EXCLUDE_FROM_ALL ${sources})
    target_link_libraries(kvbm_${id}_headers PRIVATE kvbm::${id} kvbm_warnings ${ARGN})
    target_compile_options(kvbm_${id}_headers PRIVATE -O0 -g0)
    add_dependencies(kvbm_header_check kvbm_${id}_headers)
  endif()
endfunction()

# kvbm_test(<room> <kind> SOURCES <file>... [DEPS <room>...] [LIBS <target>...] [NAME <word>] [TIMEOUT <seconds>])
#
# One GoogleTest program, kvbm_<room>_<kind>_test (with NAME: kvbm_<room>_<word>_<kind>_test), whose cases become ctests
# labelled <kind> and <room>. The room is linked if there is one of that name; for a folder under tests/ use a name such as
# tests_model and list the rooms in DEPS. KVBM_TEST_SOURCE_DIR is the folder of the test's CMakeLists.txt.
function(kvbm_test room kind)
  cmake_parse_arguments(PARSE_ARGV 2 ARG "" "NAME;TIMEOUT" "SOURCES;DEPS;LIBS")
  kvbm_check_arguments("kvbm_test(${room} ${kind})")
  if(NOT KVBM_TESTS)
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  string(REPLACE "/" "_" id "${room}")
  set(target kvbm_${id}_${kind}_test)
  if(ARG_NAME)
    set(target kvbm_${id}_${ARG_NAME}_${kind}_test)
  endif()
  if(TARGET kvbm_${id})
    list(PREPEND ARG_DEPS ${room})
    list(REMOVE_DUPLICATES ARG_DEPS)
  endif()
  kvbm_room_targets(deps ${ARG_DEPS})

  add_executable(${target} ${ARG_SOURCES})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${target}
                             PRIVATE KVBM_TEST_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
  target_link_libraries(${target} PRIVATE ${deps} kvbm_product kvbm_warnings ${ARG_LIBS}
                                          GTest::gmock GTest::gtest_main)
  gtest_discover_tests(
    ${target}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    TEST_PREFIX "${id}."
    TEST_LIST ${target}_cases
    PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  # Two labels do not survive PROPERTIES above (the list is flattened), so ctest sets them after the discovery.
  set(labels "${CMAKE_CURRENT_BINARY_DIR}/${target}_labels.cmake")
  string(CONCAT script "if(${target}_cases)\n"
                "  set_tests_properties(\${${target}_cases} PROPERTIES LABELS \"${kind};${id}\")\n"
                "endif()\n")
  file(CONFIGURE OUTPUT "${labels}" CONTENT "${script}" @ONLY)
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${labels}")
  kvbm_tests_of(${id} ${target})
  if(kind STREQUAL "gpu")
    kvbm_tests_of(gpu ${target})  # kvbm_gpu_tests: all that a machine with a GPU runs
    set_property(GLOBAL APPEND PROPERTY KVBM_GPU_TEST_PROGRAMS ${target})
  endif()
endfunction()

# The target kvbm_<room>_tests builds all test programs of a room.
function(kvbm_tests_of id target)
  if(NOT TARGET kvbm_${id}_tests)
    add_custom_target(kvbm_${id}_tests)
  endif()
  add_dependencies(kvbm_${id}_tests ${target})
endfunction()

# kvbm_fuzz(<name> SOURCES <x_fuzz.cpp>... [DEPS <room>...] [LIBS <target>...] [MUTATIONS <count>])
#
# A fuzz target: SOURCES define LLVMFuzzerTestOneInput. Every build makes kvbm_fuzz_<name>_replay and a ctest (label fuzz)
# that feeds it each file of fuzz/corpus/<name>/ and MUTATIONS (20000) seeded mutations of them. With clang and KVBM_FUZZ=ON
# there is also kvbm_fuzz_<name>, the real libFuzzer program with ASan and UBSan.
function(kvbm_fuzz name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "MUTATIONS" "SOURCES;DEPS;LIBS")
  kvbm_check_arguments("kvbm_fuzz(${name})")
  if(NOT ARG_MUTATIONS)
    set(ARG_MUTATIONS 20000)
  endif()
  kvbm_room_targets(deps ${ARG_DEPS})
  set(programs kvbm_fuzz_${name}_replay)
  add_executable(kvbm_fuzz_${name}_replay ${ARG_SOURCES}
                                          ${PROJECT_SOURCE_DIR}/fuzz/replay_main.cpp)
  if(KVBM_FUZZ)
    list(APPEND programs kvbm_fuzz_${name})
    add_executable(kvbm_fuzz_${name} ${ARG_SOURCES})
    # KVBM_FUZZ instruments every room (see the end of this file); only the program links the engine with its main().
    target_link_options(kvbm_fuzz_${name} PRIVATE -fsanitize=fuzzer)
  endif()
  foreach(program IN LISTS programs)
    target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${program} PRIVATE ${deps} kvbm_product kvbm_warnings ${ARG_LIBS})
  endforeach()
  add_test(NAME fuzz.${name}
           COMMAND kvbm_fuzz_${name}_replay --mutations ${ARG_MUTATIONS}
                   ${PROJECT_SOURCE_DIR}/fuzz/corpus/${name})
  set_tests_properties(fuzz.${name} PROPERTIES LABELS "fuzz" TIMEOUT 300)
endfunction()

# kvbm_compile_fail(NAME <name> SOURCE <x.cpp> EXPECT <regex> [DEPS <room>...] [ROOM <room>])
#
# A test (compile_fail.<name>, labels unit and <room>) that passes only if SOURCE does not compile AND the compiler's words
# match EXPECT AND the same file compiles with -DKVBM_POSITIVE_CONTROL, so that a typing slip is not taken for proof.
# Example, in tests/compile_fail/CMakeLists.txt:
#
#   kvbm_compile_fail(NAME mutable_block_is_move_only SOURCE mutable_block_is_move_only.cpp
#                     DEPS blocks EXPECT "use of deleted function|call to (implicitly-)?deleted")
#
#   // mutable_block_is_move_only.cpp
#   #include "kvbm/blocks/mutable_block.hpp"
#   kvbm::MutableBlock pass(kvbm::MutableBlock& block) {
#   #ifdef KVBM_POSITIVE_CONTROL
#     return std::move(block);
#   #else
#     return block;
#   #endif
#   }
function(kvbm_compile_fail)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "" "NAME;SOURCE;EXPECT;ROOM" "DEPS")
  kvbm_check_arguments("kvbm_compile_fail(${ARG_NAME})")
  foreach(required NAME SOURCE EXPECT)
    if(NOT ARG_${required})
      message(FATAL_ERROR "kvbm_compile_fail(${ARG_NAME}): ${required} is missing")
    endif()
  endforeach()
  if(NOT KVBM_TESTS)
    return()
  endif()
  if(NOT ARG_ROOM)
    list(GET ARG_DEPS 0 ARG_ROOM)
  endif()
  kvbm_room_targets(deps ${ARG_DEPS})
  # An object library that is never built: it collects the include folders and definitions of DEPS.
  set(target kvbm_compile_fail_${ARG_NAME})
  add_library(${target} OBJECT EXCLUDE_FROM_ALL ${ARG_SOURCE})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${target} PRIVATE kvbm_product ${deps})
  set_target_properties(${target} PROPERTIES EXPORT_COMPILE_COMMANDS OFF)
  set(includes "$<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>")
  set(definitions "$<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>")
  add_test(
    NAME compile_fail.${ARG_NAME}
    COMMAND
      ${CMAKE_COMMAND} "-DCOMPILER=${CMAKE_CXX_COMPILER}"
      "-DINCLUDES=$<JOIN:${includes},$<SEMICOLON>>" "-DDEFINITIONS=$<JOIN:${definitions},$<SEMICOLON>>"
      "-DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}/${ARG_SOURCE}" "-DEXPECT=${ARG_EXPECT}" -P
      ${PROJECT_SOURCE_DIR}/cmake/compile_fail.cmake)
  set_tests_properties(compile_fail.${ARG_NAME} PROPERTIES LABELS "unit;${ARG_ROOM}" TIMEOUT 300)
endfunction()

# kvbm_backend(<WORD> <adapter folder> [NEEDS <target>] [PACKAGES <debian package>...]): honours KVBM_WITH_<WORD> = ON, OFF
# or AUTO. Without the target of cmake/packages.cmake that it needs, ON fails and names the packages, AUTO leaves it out.
# Sets kvbm_state_<WORD> to Built, LeftOut or NotYet.
function(kvbm_backend word folder)
  cmake_parse_arguments(PARSE_ARGV 2 ARG "" "NEEDS" "PACKAGES")
  kvbm_check_arguments("kvbm_backend(${word})")
  set(wanted "${KVBM_WITH_${word}}")
  string(TOUPPER "${wanted}" wanted)
  if(NOT wanted MATCHES "^(ON|OFF|AUTO)$")
    message(FATAL_ERROR "KVBM_WITH_${word}=${KVBM_WITH_${word}}: say ON, OFF or AUTO")
  endif()
  if(NOT EXISTS "${PROJECT_SOURCE_DIR}/src/kvbm/adapters/${folder}/CMakeLists.txt")
    if(wanted STREQUAL "ON")
      message(
        FATAL_ERROR
          "KVBM_WITH_${word}=ON, but kvbm ${PROJECT_VERSION} has no ${word} adapter yet. "
          "Configure with KVBM_WITH_${word}=AUTO or OFF; the build without it is complete.")
    endif()
    set(state NotYet)
    set(line "off: not available in this version (${wanted})")
  elseif(wanted STREQUAL "OFF")
    set(state LeftOut)
    set(line "off, as asked")
  elseif(ARG_NEEDS AND NOT TARGET ${ARG_NEEDS})
    list(JOIN ARG_PACKAGES " " packages)
    if(wanted STREQUAL "ON")
      message(FATAL_ERROR "KVBM_WITH_${word}=ON needs these Debian packages (elsewhere: their equivalents):\n"
                          "  ${packages}")
    endif()
    set(state LeftOut)
    set(line "off (AUTO): not installed: ${packages}")
  else()
    set(state Built)
    set(line "on (${wanted})")
  endif()
  set(kvbm_state_${word} ${state} PARENT_SCOPE)
  set_property(GLOBAL APPEND PROPERTY KVBM_BACKEND_LINES "KVBM_WITH_${word}: ${line}")
endfunction()

function(kvbm_summary)
  get_property(rooms GLOBAL PROPERTY KVBM_ROOM_LIST)
  get_property(backends GLOBAL PROPERTY KVBM_BACKEND_LINES)
  list(JOIN rooms " " rooms)
  string(TOUPPER "${CMAKE_BUILD_TYPE}" type)
  message(STATUS "kvbm ${PROJECT_VERSION}")
  message(STATUS "  compiler    ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, "
                 "${CMAKE_BUILD_TYPE} (${CMAKE_CXX_FLAGS_${type}}), ccache ${KVBM_CCACHE}")
  message(STATUS "  options     tests ${KVBM_TESTS}, bench ${KVBM_BENCH}, fuzz ${KVBM_FUZZ}, "
                 "warnings as errors ${KVBM_WERROR}, sanitizers [${KVBM_SANITIZE}], "
                 "coverage ${KVBM_COVERAGE}")
  message(STATUS "  rooms       ${rooms}")
  message(STATUS "  BLAKE3      ${kvbm_blake3_line}")
  foreach(line IN LISTS backends)
    message(STATUS "  backend     ${line}")
  endforeach()
  get_property(absent GLOBAL PROPERTY KVBM_ABSENT)
  if(absent)
    list(JOIN absent ", " absent)
    message(STATUS "  lint        left out, not installed (scripts/setup lint): ${absent}")
  endif()
endfunction()

if(KVBM_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "KVBM_FUZZ=ON needs clang (CC=clang CXX=clang++): libFuzzer is part of it. "
                        "Without KVBM_FUZZ the corpora are replayed with any compiler.")
  endif()
  # Rooms are instrumented too, else the fuzzer would be blind inside them.
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link,address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
endif()
