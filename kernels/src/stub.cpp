// SPDX-License-Identifier: Apache-2.0
// The build without CUDA: arguments are checked as in the other, and then there is nobody to do the
// work.
#include <kvbm/kernels.h>

#include "checksum_plan.hpp"
#include "pattern_plan.hpp"
#include "strided_plan.hpp"
#include "table_plan.hpp"

using namespace kvbm::kernels;

namespace {

int answer(int error, bool has_work) {
  if (error != KVBM_KERNELS_SUCCESS) return error;
  return has_work ? KVBM_KERNELS_NOT_SUPPORTED : KVBM_KERNELS_SUCCESS;
}

int answer(StridedPlan plan) {
  const int error = plan.check();
  return answer(error, error == KVBM_KERNELS_SUCCESS && plan.has_work());
}

/// Whether there is work is not to be asked of a plan that makes no sense.
template <class Plan>
int answer_of(const Plan& plan) {
  const int error = plan.check();
  return answer(error, error == KVBM_KERNELS_SUCCESS && plan.has_work());
}

}  // namespace

int kvbm_kernels_launch_strided_copy(const kvbm_strided_piece* pieces, size_t num_pieces,
                                     const uint32_t* from_ids, const uint32_t* to_ids,
                                     size_t num_blocks, const kvbm_strided_copy_options* options,
                                     kvbm_kernels_stream) {
  uint64_t* digests = options ? options->digests : nullptr;
  return answer({pieces, num_pieces, from_ids, to_ids, num_blocks, digests,
                 digests ? Work::kCopyAndDigest : Work::kCopy});
}

int kvbm_kernels_launch_strided_copy_host_ids(const kvbm_strided_piece* pieces, size_t num_pieces,
                                              const uint32_t* from_ids, const uint32_t* to_ids,
                                              size_t num_blocks,
                                              const kvbm_strided_copy_options* options,
                                              kvbm_kernels_stream stream) {
  return kvbm_kernels_launch_strided_copy(pieces, num_pieces, from_ids, to_ids, num_blocks, options,
                                          stream);
}

int kvbm_kernels_launch_strided_plan(const kvbm_kernels_strided_plan* plan,
                                     const uint32_t* from_ids, const uint32_t* to_ids,
                                     size_t num_blocks, const kvbm_strided_copy_options* options,
                                     kvbm_kernels_stream) {
  return answer(plan->check({from_ids, to_ids, num_blocks, IdsIn::kLaunch}, options),
                num_blocks != 0 && !plan->groups.empty());
}

int kvbm_kernels_launch_digest(const kvbm_strided_piece* pieces, size_t num_pieces,
                               const uint32_t* ids, size_t num_blocks,
                               const kvbm_strided_copy_options* options, kvbm_kernels_stream) {
  return answer({pieces, num_pieces, ids, ids, num_blocks, options ? options->digests : nullptr,
                 Work::kDigest});
}

int kvbm_kernels_launch_pattern(const kvbm_pattern_piece* pieces, size_t num_pieces,
                                const uint32_t* ids, const uint64_t* seeds, size_t num_blocks,
                                uint64_t* first_wrong, kvbm_kernels_stream) {
  return answer_of(PatternPlan(pieces, num_pieces, ids, seeds, num_blocks, first_wrong));
}

int kvbm_kernels_launch_checksum(const kvbm_checksum_piece* pieces, size_t num_pieces,
                                 const uint32_t* ids, size_t num_blocks, uint64_t seed,
                                 uint64_t* sums, kvbm_kernels_stream) {
  return answer_of(ChecksumPlan(pieces, num_pieces, ids, num_blocks, seed, sums));
}

int kvbm_kernels_launch_universal_from_block(void* const* universal_ptrs,
                                             const void* const* block_ptrs, size_t nb, size_t nh,
                                             size_t nl, size_t no, size_t nt, size_t hd, int dtype,
                                             int layout, kvbm_kernels_stream) {
  return answer_of(
      PermutePlan(universal_ptrs, block_ptrs, nb, nh, nl, no, nt, hd, dtype, layout, true));
}

int kvbm_kernels_launch_block_from_universal(const void* const* universal_ptrs,
                                             void* const* block_ptrs, size_t nb, size_t nh,
                                             size_t nl, size_t no, size_t nt, size_t hd, int dtype,
                                             int layout, kvbm_kernels_stream) {
  return answer_of(
      PermutePlan(universal_ptrs, block_ptrs, nb, nh, nl, no, nt, hd, dtype, layout, false));
}

int kvbm_kernels_launch_vectorized_copy(void** src_ptrs, void** dst_ptrs, size_t bytes_per_pair,
                                        int num_pairs, kvbm_kernels_stream) {
  return answer(check_vectorized_copy(src_ptrs, dst_ptrs, bytes_per_pair, num_pairs),
                num_pairs != 0 && bytes_per_pair != 0);
}

int kvbm_kernels_memcpy_batch(const void* const* src_ptrs, void* const* dst_ptrs,
                              size_t size_per_copy, size_t num_copies, int mode,
                              kvbm_kernels_stream) {
  return answer(check_memcpy_batch(src_ptrs, dst_ptrs, size_per_copy, num_copies, mode),
                num_copies != 0 && size_per_copy != 0);
}

bool kvbm_kernels_has_memcpy_batch_async(void) { return false; }

bool kvbm_kernels_is_stub_build(void) { return true; }
