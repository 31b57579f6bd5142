# SPDX-License-Identifier: Apache-2.0
"""vLLM's native tiering on a CPU, where vLLM itself has no copies between the engine and its host pool."""

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class PageCopies(OffloadingWorker):
    """Copies pages when it is asked to, and is done at once. A chunk is one block."""

    def __init__(self, kv_caches, region):
        self._region = region
        self._finished = []
        self._pairs = []
        for canonical in kv_caches.tensors:
            pages = canonical.tensor.view(torch.int8).reshape(-1, canonical.page_size_bytes)
            assert pages.data_ptr() == canonical.tensor.data_ptr(), "pages have to be a view"
            self._pairs.append((pages, region.create_next_worker_view(canonical.page_size_bytes)))

    def _copy(self, job_id, from_ids, to_ids, into_pool):
        sources = torch.from_numpy(from_ids).long()
        destinations = torch.from_numpy(to_ids).long()
        for pages, chunks in self._pairs:
            source, destination = (pages, chunks) if into_pool else (chunks, pages)
            destination[destinations] = source[sources]
        self._finished.append(TransferResult(job_id=job_id, success=True))
        return True

    def submit_store(self, job_id, src_spec, dst_spec):
        return self._copy(job_id, src_spec.block_ids, dst_spec.block_ids, into_pool=True)

    def submit_load(self, job_id, src_spec, dst_spec):
        return self._copy(job_id, src_spec.block_ids, dst_spec.block_ids, into_pool=False)

    def get_finished(self):
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids):
        pass  # every job is done when it is submitted

    def shutdown(self):
        self._pairs.clear()
        self._region.cleanup()


class HostTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches):
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = PageCopies(kv_caches, region)
        return self._worker
