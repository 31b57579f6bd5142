/* SPDX-License-Identifier: Apache-2.0
 *
 * A program in C that has the installed header and library of the kernels and nothing else of kvbm.
 * It calls the six functions of Dynamo's kvbm-kernels through pointers of the types that its
 * callers use, so that another signature does not compile. Without memory of a GPU it launches
 * nothing. */
#include <stdio.h>

#include <kvbm/kernels.h>

_Static_assert(KVBM_KERNELS_F16 == 0 && KVBM_KERNELS_BF16 == 1 && KVBM_KERNELS_F32 == 2 &&
                   KVBM_KERNELS_F64 == 3,
               "types of elements");
_Static_assert(KVBM_KERNELS_NHD == 0 && KVBM_KERNELS_HND == 1, "layouts");
_Static_assert(KVBM_KERNELS_BATCH_WITH_FALLBACK == 0 && KVBM_KERNELS_FALLBACK_ONLY == 1 &&
                   KVBM_KERNELS_BATCH_ONLY == 2,
               "modes of a batch");

typedef int (*to_universal_function)(void* const*, const void* const*, size_t, size_t, size_t,
                                     size_t, size_t, size_t, int, int, struct CUstream_st*);
typedef int (*from_universal_function)(const void* const*, void* const*, size_t, size_t, size_t,
                                       size_t, size_t, size_t, int, int, struct CUstream_st*);
typedef int (*vectorized_function)(void**, void**, size_t, int, struct CUstream_st*);
typedef int (*batch_function)(const void* const*, void* const*, size_t, size_t, int,
                              struct CUstream_st*);
typedef bool (*question)(void);

static int failures = 0;

static void expect(int found, int expected, const char* what) {
  if (found == expected) return;
  fprintf(stderr, "%s: %d, not %d\n", what, found, expected);
  failures++;
}

int main(void) {
  const to_universal_function to_universal = kvbm_kernels_launch_universal_from_block;
  const from_universal_function from_universal = kvbm_kernels_launch_block_from_universal;
  const vectorized_function vectorized = kvbm_kernels_launch_vectorized_copy;
  const batch_function batch = kvbm_kernels_memcpy_batch;
  const question has_batch = kvbm_kernels_has_memcpy_batch_async;
  const question is_stub = kvbm_kernels_is_stub_build;

  expect(to_universal(NULL, NULL, 0, 1, 1, 1, 1, 1, 0, 0, NULL), 0, "no blocks to universal");
  expect(from_universal(NULL, NULL, 0, 1, 1, 1, 1, 1, 0, 0, NULL), 0, "no blocks from universal");
  expect(vectorized(NULL, NULL, 16, 0, NULL), 0, "no pairs");
  expect(batch(NULL, NULL, 16, 0, 0, NULL), 0, "no copies");
  expect(to_universal(NULL, NULL, 1, 1, 1, 1, 1, 1, 0, 0, NULL), 1, "null tables to universal");
  expect(from_universal(NULL, NULL, 1, 1, 1, 1, 1, 1, 0, 0, NULL), 1, "null tables from universal");
  expect(vectorized(NULL, NULL, 16, 1, NULL), 1, "null tables of pairs");
  expect(batch(NULL, NULL, 16, 1, 0, NULL), 1, "null tables of copies");
  if (is_stub()) {
    char byte = 0;
    void* to[] = {&byte};
    const void* from[] = {&byte};
    expect(has_batch(), false, "batches of a stub");
    expect(to_universal(to, from, 1, 1, 1, 1, 1, 1, 4, 0, NULL), KVBM_KERNELS_NOT_SUPPORTED,
           "work of a stub");
    expect(batch(from, to, 1, 1, 0, NULL), KVBM_KERNELS_NOT_SUPPORTED, "copies of a stub");
  }
  printf("%s, batches %s\n", is_stub() ? "stub" : "cuda", has_batch() ? "yes" : "no");
  return failures == 0 ? 0 : 1;
}
