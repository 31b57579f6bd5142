/* SPDX-License-Identifier: Apache-2.0
 *
 * kvbm_kernels: GPU copies of KV blocks, behind a plain C interface. Needs the CUDA runtime and
 * nothing else of kvbm.
 *
 * Every launch returns at once; the work is in order on the stream, and has ended when the stream
 * has. What a launch reads and writes stays the caller's and must live until then, apart from what
 * is said to be read during the call.
 *
 * Errors: an int that is a cudaError_t. 0 is success; 1 (cudaErrorInvalidValue) means that the
 * arguments make no sense, and nothing was launched (but see kvbm_kernels_memcpy_batch); 801
 * (cudaErrorNotSupported) is what a build without CUDA answers to work that it was asked to do.
 * Anything else comes from the CUDA runtime (100 where there is no GPU, 35 where the driver is
 * missing or too old). No call prints or aborts.
 * No work (a count of zero) is a success, with null pointers too.
 *
 * Threads: any, at the same time. The current device of the calling thread is the one that is used.
 *
 * "Device-accessible" memory is that of the current device, or pinned host memory that is mapped
 * into it (every page that cudaHostAlloc gave or cudaHostRegister registered, at the same address,
 * where there is unified addressing).
 */
#ifndef KVBM_KERNELS_H_
#define KVBM_KERNELS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

/* The same type as cudaStream_t, so that the CUDA headers are not needed here. Null is the default
 * stream. */
struct CUstream_st;
typedef struct CUstream_st* kvbm_kernels_stream;

enum {
  KVBM_KERNELS_SUCCESS = 0,
  KVBM_KERNELS_INVALID_VALUE = 1,
  KVBM_KERNELS_NO_MEMORY = 2,
  KVBM_KERNELS_NOT_SUPPORTED = 801
};

/* Width of an element: 2, 2, 4, 8 and 1 bytes. Bytes are moved, never converted. */
enum {
  KVBM_KERNELS_F16 = 0,
  KVBM_KERNELS_BF16 = 1,
  KVBM_KERNELS_F32 = 2,
  KVBM_KERNELS_F64 = 3,
  KVBM_KERNELS_F8 = 4
};

/* Order inside the chunk of one layer and outer: [nt, nh, hd] or [nh, nt, hd]. */
enum { KVBM_KERNELS_NHD = 0, KVBM_KERNELS_HND = 1 };

/* How kvbm_kernels_memcpy_batch copies. */
enum {
  KVBM_KERNELS_BATCH_WITH_FALLBACK =
      0, /* a batch; one by one where batches are not supported or refused */
  KVBM_KERNELS_FALLBACK_ONLY = 1, /* one by one */
  KVBM_KERNELS_BATCH_ONLY = 2     /* a batch, or an error */
};

/* --- copies by stride
 * ------------------------------------------------------------------------------------------ */

/* One loop of a piece. Strides in bytes; not used if count is 1. A count of 0 makes the piece
 * empty. */
typedef struct kvbm_strided_axis {
  uint64_t count;
  uint64_t src_stride;
  uint64_t dst_stride;
} kvbm_strided_axis;

/* One part of every block. For each pair (f, t) of block ids and each index (i0, i1, i2, i3),
 * outermost first, `bytes` bytes go from  src + f * src_block_stride + i0 * axes[0].src_stride +
 * ... + i3 * axes[3].src_stride to    dst + t * dst_block_stride + i0 * axes[0].dst_stride + ... +
 * i3 * axes[3].dst_stride. src and dst are device-accessible. The bytes of a piece in a block,
 * taken in the order of the indices, are the piece's stream: what its digest is about. */
typedef struct kvbm_strided_piece {
  const void* src;
  void* dst;
  uint64_t src_block_stride;
  uint64_t dst_block_stride;
  uint64_t bytes;
  kvbm_strided_axis axes[4];
} kvbm_strided_piece;

typedef struct kvbm_strided_copy_options {
  /* Thread blocks (of 512 threads) at most, so that other kernels find room; 0: by where the first
   * piece's memory lies, that is 4 from the host, 2 to the host, all that fit on the device
   * otherwise. */
  uint32_t max_ctas;
  /* Bytes per second at most; 0: as fast as it goes. Writes to the host that come faster than the
   * link takes them pile up in front of the memory accesses of every other kernel, which can then
   * run at half their speed. Beside other work, 0.95 of what a launch reaches alone leaves them in
   * peace. */
  uint64_t max_bytes_per_second;
  /* If not null: 64 bits of device memory, zero before their first use, where launches on any
   * streams take turns. Each turn takes its time at the launch's own rate, so all of them together
   * are as fast as one alone, and one of a much lower rate slows the others down to its own. Not
   * used without max_bytes_per_second. */
  uint64_t* shared_pace;
  /* If not null: device memory, [num_blocks][num_pieces], which the launch overwrites with the
   * digests of what was read; see kvbm_kernels_digest_on_host. */
  uint64_t* digests;
} kvbm_strided_copy_options;

/* Copies every piece for every pair (from_ids[b], to_ids[b]).
 *
 * pieces: host memory, read during the call. from_ids, to_ids: device-accessible, num_blocks
 * entries each; device memory is best where there are many. options may be null, which is the same
 * as all zero. The widest access (16, 8, 4, 2 or 1 bytes) is used that bases, strides and bytes of
 * a piece allow. Neighbours in the list that differ in their bases alone share a launch. What is
 * written overlaps neither itself nor what is read. Errors: KVBM_KERNELS_INVALID_VALUE: a null
 * pointer where there is work; an offset of 2^64 and more; 2^31 accesses and more in one piece of
 * one block. */
int kvbm_kernels_launch_strided_copy(const kvbm_strided_piece* pieces, size_t num_pieces,
                                     const uint32_t* from_ids, const uint32_t* to_ids,
                                     size_t num_blocks, const kvbm_strided_copy_options* options,
                                     kvbm_kernels_stream stream);

/* The same with ids in host memory, which are read during the call and travel with the launch: a
 * kernel has them microseconds sooner than it could read them, so this is the better one for few
 * blocks. A launch takes the ids of 158 blocks and more (476 where there is one piece); more are
 * cut into launches. */
int kvbm_kernels_launch_strided_copy_host_ids(const kvbm_strided_piece* pieces, size_t num_pieces,
                                              const uint32_t* from_ids, const uint32_t* to_ids,
                                              size_t num_blocks,
                                              const kvbm_strided_copy_options* options,
                                              kvbm_kernels_stream stream);

/* What does not depend on blocks, done once for many copies of the same pieces: a look at 160 of
 * them takes as long as half a launch. A plan is host memory, holds no pieces, and needs no GPU to
 * be made. Errors of its making: KVBM_KERNELS_INVALID_VALUE as above; KVBM_KERNELS_NO_MEMORY. Its
 * launch is that of kvbm_kernels_launch_strided_copy_host_ids, without digests (a pointer to some
 * is KVBM_KERNELS_INVALID_VALUE); any threads may launch one at the same time. */
typedef struct kvbm_kernels_strided_plan kvbm_kernels_strided_plan;
int kvbm_kernels_create_strided_plan(const kvbm_strided_piece* pieces, size_t num_pieces,
                                     kvbm_kernels_strided_plan** plan);
void kvbm_kernels_destroy_strided_plan(kvbm_kernels_strided_plan* plan);
int kvbm_kernels_launch_strided_plan(const kvbm_kernels_strided_plan* plan,
                                     const uint32_t* from_ids, const uint32_t* to_ids,
                                     size_t num_blocks, const kvbm_strided_copy_options* options,
                                     kvbm_kernels_stream stream);

/* Digests of the source side of every piece for every block, without a copy: for bytes that a copy
 * engine moves. dst, dst_block_stride and dst_stride are not used. max_ctas 0 means 4. The rest as
 * above. */
int kvbm_kernels_launch_digest(const kvbm_strided_piece* pieces, size_t num_pieces,
                               const uint32_t* ids, size_t num_blocks,
                               const kvbm_strided_copy_options* options,
                               kvbm_kernels_stream stream);

/* The same digest of the source side of one piece of one block in host memory, computed by the
 * calling thread. In every build.
 *
 * Definition. The piece's stream is cut into 64-bit little-endian words w0, w1, ...; the last is
 * filled up with zero bytes. With a = k * 0x9E3779B1 + 0x85EBCA77,  b = k * 0xC2B2AE3D + 0x27D4EB2F
 * (mod 2^32), word k counts  (low(wk) xor a) * (high(wk) xor b) + rotate(wk, 32),  and the digest
 * is the sum over all words, mod 2^64. A changed bit or swapped words change it but for a chance of
 * about 2^-32. It finds damage, not forgery. */
int kvbm_kernels_digest_on_host(const kvbm_strided_piece* piece, uint32_t block, uint64_t* digest);

/* --- bytes that tell where they belong
 * --------------------------------------------------------------------------------------- */

/* One part of every block: `bytes` bytes from data + id * block_stride on, device-accessible. */
typedef struct kvbm_pattern_piece {
  void* data;
  uint64_t block_stride;
  uint64_t bytes;
  uint64_t seed;
} kvbm_pattern_piece;

/* Fills every piece of every block with the words of a seed, or compares them with these: piece p
 * of block b with those of seeds[b] + pieces[p].seed (mod 2^64).
 *
 * pieces: host memory, read during the call. ids, seeds: device-accessible, num_blocks entries
 * each. first_wrong: null to fill; otherwise device memory of num_blocks entries, which the launch
 * overwrites: UINT64_MAX where all bytes of a block are right, else p << 40 | offset of its first
 * wrong byte, in the order of pieces and then of offsets. Pieces of different blocks do not
 * overlap. Best if aligned to 16 bytes.
 *
 * Definition. Word k of a seed is, mod 2^64,  w = seed + k * 0x9E3779B97F4A7C15;
 * w = w xor (w >> 29);  w = w + (w << 17);  w = w xor (w >> 32),  stored lowest byte first; the
 * last one of a piece may be cut off. Words of two seeds differ at every k. Errors:
 * KVBM_KERNELS_INVALID_VALUE: a null pointer where there is work, 2^24 pieces and more, pieces of
 * 2^40 bytes and more. */
int kvbm_kernels_launch_pattern(const kvbm_pattern_piece* pieces, size_t num_pieces,
                                const uint32_t* ids, const uint64_t* seeds, size_t num_blocks,
                                uint64_t* first_wrong, kvbm_kernels_stream stream);

/* The same for one piece of one block in host memory, by the calling thread. In every build.
 * first_wrong: null to fill; otherwise one entry, in host memory. */
int kvbm_kernels_pattern_on_host(const kvbm_pattern_piece* piece, uint32_t block, uint64_t seed,
                                 uint64_t* first_wrong);

/* --- checksums of blocks
 * ---------------------------------------------------------------------------------------------- */

/* One part of every block: `count` runs of `bytes` bytes, the first at data + id * block_stride,
 * the others `stride` apart, device-accessible. bytes is a multiple of 1024, all others are
 * multiples of
 * 16. Without bytes or runs it is empty. */
typedef struct kvbm_checksum_piece {
  const void* data;
  uint64_t block_stride;
  uint64_t bytes;
  uint64_t stride;
  uint32_t count;
} kvbm_checksum_piece;

/* XXH3, 64 bits, with a seed, of every block: of the runs of its pieces one behind the other.
 *
 * pieces: host memory, read during the call. ids: device-accessible, num_blocks entries. sums:
 * device memory, [num_blocks][8]; afterwards the first of each eight is the checksum, the others
 * have no meaning. Errors: KVBM_KERNELS_INVALID_VALUE: a null pointer where there is work, a size
 * or an address that is no such multiple, no byte in a block, 2^40 bytes and more in one. */
int kvbm_kernels_launch_checksum(const kvbm_checksum_piece* pieces, size_t num_pieces,
                                 const uint32_t* ids, size_t num_blocks, uint64_t seed,
                                 uint64_t* sums, kvbm_kernels_stream stream);

/* The same of one block in host memory, by the calling thread. In every build. */
int kvbm_kernels_checksum_on_host(const kvbm_checksum_piece* pieces, size_t num_pieces,
                                  uint32_t block, uint64_t seed, uint64_t* checksum);

/* --- permutations by pointer tables
 * ----------------------------------------------------------------------------- */

/* Block stack to universal, and back, for nb blocks.
 *
 * universal_ptrs: device-accessible table of nb addresses; each of a universal block [nh, nl, no,
 * nt, hd]. block_ptrs: device-accessible table of nb * nl * no addresses, that of (block b, layer
 * l, outer o) at b * nl * no + l * no + o; each of a chunk [nt, nh, hd] (layout NHD) or [nh, nt,
 * hd] (HND). What the tables point to is device-accessible as well; best if aligned to 16 bytes. nb
 * ... hd count elements of the width of dtype. Errors: KVBM_KERNELS_INVALID_VALUE: unknown dtype or
 * layout, null tables where there is work, sizes that overflow, 2^31 accesses and more in one
 * block. */
int kvbm_kernels_launch_universal_from_block(void* const* universal_ptrs,
                                             const void* const* block_ptrs, size_t nb, size_t nh,
                                             size_t nl, size_t no, size_t nt, size_t hd, int dtype,
                                             int layout, kvbm_kernels_stream stream);
int kvbm_kernels_launch_block_from_universal(const void* const* universal_ptrs,
                                             void* const* block_ptrs, size_t nb, size_t nh,
                                             size_t nl, size_t no, size_t nt, size_t hd, int dtype,
                                             int layout, kvbm_kernels_stream stream);

/* --- copies by pointer tables
 * ----------------------------------------------------------------------------------- */

/* Copies bytes_per_pair bytes from src_ptrs[i] to dst_ptrs[i], for num_pairs pairs. Both tables are
 * device-accessible, and so is what they point to. Each pair is copied with the widest access its
 * addresses allow, and large pairs by many thread blocks. There is no bound on thread blocks or on
 * the rate: beside other kernels, kvbm_kernels_launch_strided_copy is the better one. Errors:
 * KVBM_KERNELS_INVALID_VALUE: a negative number of pairs, null tables where there is work, pairs of
 * 2^41 bytes and more. */
int kvbm_kernels_launch_vectorized_copy(void** src_ptrs, void** dst_ptrs, size_t bytes_per_pair,
                                        int num_pairs, kvbm_kernels_stream stream);

/* Copies size_per_copy bytes from src_ptrs[i] to dst_ptrs[i] with the copy engines, for num_copies
 * copies. The tables are host memory, read during the call; what they point to may be anything that
 * cudaMemcpyAsync takes. The order of the copies is not defined. A default stream, of the
 * device or of a thread, takes no batches: it counts as a refusal. Errors:
 * KVBM_KERNELS_INVALID_VALUE: an unknown mode, null tables where there is work, a default stream in
 * mode KVBM_KERNELS_BATCH_ONLY; KVBM_KERNELS_NOT_SUPPORTED: no batches here, in that mode. What the
 * CUDA runtime refuses, a batch in that mode or a single copy, comes with its own code, which may
 * be one of these (1 where it takes an address or a size for wrong); copies before that one may
 * have been launched. */
int kvbm_kernels_memcpy_batch(const void* const* src_ptrs, void* const* dst_ptrs,
                              size_t size_per_copy, size_t num_copies, int mode,
                              kvbm_kernels_stream stream);

/* --- what this build can
 * ---------------------------------------------------------------------------------------- */

/* Whether cudaMemcpyBatchAsync is there: in this build and in the driver that runs. */
bool kvbm_kernels_has_memcpy_batch_async(void);

/* Whether this is the build without CUDA, where every launch that has work answers
 * KVBM_KERNELS_NOT_SUPPORTED. */
bool kvbm_kernels_is_stub_build(void);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif /* KVBM_KERNELS_H_ */
