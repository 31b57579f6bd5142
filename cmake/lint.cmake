# SPDX-License-Identifier: Apache-2.0
#
# The checks of the tree itself, as ctests with the label lint, each beside a test that it can fail. A check whose tool is
# not installed (scripts/setup lint) is left out, and the summary says so.

# Builds what the checks look at: every header alone, and the program whose --help the documents are held against.
add_custom_target(kvbm_lint DEPENDS kvbm_header_check)

# kvbm_lint_test(<name> <command>...)
function(kvbm_lint_test name)
  add_test(NAME lint.${name} COMMAND ${ARGN} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(lint.${name} PROPERTIES LABELS lint TIMEOUT 300)
endfunction()

set(kvbm_scripts ${PROJECT_SOURCE_DIR}/scripts)
set(kvbm_python ${KVBM_PYTHON} -B)

kvbm_lint_test(layers ${kvbm_python} ${kvbm_scripts}/check_layers.py)
kvbm_lint_test(layers.can_fail ${kvbm_python} ${kvbm_scripts}/check_layers.py --self-test)

set(program "")
if(TARGET kvbm)
  add_dependencies(kvbm_lint kvbm)
  set(program --program $<TARGET_FILE:kvbm>)
endif()
kvbm_lint_test(docs ${kvbm_python} ${kvbm_scripts}/check_docs.py ${program})
kvbm_lint_test(docs.can_fail ${kvbm_python} ${kvbm_scripts}/check_docs.py --self-test)

find_program(KVBM_CLANG_FORMAT clang-format)
if(KVBM_CLANG_FORMAT)
  kvbm_lint_test(format ${kvbm_scripts}/check_format)
  kvbm_lint_test(format.can_fail ${kvbm_scripts}/check_format --self-test)
else()
  set_property(GLOBAL APPEND PROPERTY KVBM_ABSENT "clang-format")
endif()

find_program(KVBM_SHELLCHECK shellcheck)
if(KVBM_SHELLCHECK)
  kvbm_lint_test(shell ${kvbm_scripts}/check_shell)
  kvbm_lint_test(shell.can_fail ${kvbm_scripts}/check_shell --self-test)
else()
  set_property(GLOBAL APPEND PROPERTY KVBM_ABSENT "shellcheck")
endif()

# Hashes computed by another implementation, against the ones that the tests of tokens compare with.
execute_process(
  COMMAND ${kvbm_python} -c "import xxhash"
  RESULT_VARIABLE result
  OUTPUT_QUIET ERROR_QUIET)
if(NOT result EQUAL 0)
  set_property(GLOBAL APPEND PROPERTY KVBM_ABSENT "python3-xxhash")
elseif(EXISTS ${kvbm_scripts}/make_token_known_answers.py)
  kvbm_lint_test(token_known_answers ${kvbm_python} ${kvbm_scripts}/make_token_known_answers.py --check)
endif()

# --- the C++ of documents --------------------------------------------------------------------------
kvbm_lint_test(snippets.can_fail ${kvbm_python} ${kvbm_scripts}/check_snippets.py --self-test
               --compiler ${CMAKE_CXX_COMPILER})
if(TARGET kvbm_runtime)
  set(folder ${PROJECT_BINARY_DIR}/snippets)
  foreach(document README.md docs/guides/migration.md)
    set_property(
      DIRECTORY
      APPEND
      PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${document})
    execute_process(
      COMMAND ${kvbm_python} ${kvbm_scripts}/check_snippets.py --extract
              ${PROJECT_SOURCE_DIR}/${document} ${folder}
      OUTPUT_VARIABLE snippets
      OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    string(REPLACE "\n" ";" snippets "${snippets}")
    foreach(snippet IN LISTS snippets)
      string(REPLACE ".cpp" "" name "${snippet}")
      add_executable(kvbm_snippet_${name} ${folder}/${snippet})
      target_link_libraries(kvbm_snippet_${name} PRIVATE kvbm::runtime)
      set_target_properties(kvbm_snippet_${name} PROPERTIES EXPORT_COMPILE_COMMANDS OFF)
      add_dependencies(kvbm_lint kvbm_snippet_${name})
      add_test(NAME lint.snippets.${name} COMMAND kvbm_snippet_${name} WORKING_DIRECTORY ${folder})
      set_tests_properties(lint.snippets.${name} PROPERTIES LABELS lint TIMEOUT 300)
    endforeach()
  endforeach()
endif()
