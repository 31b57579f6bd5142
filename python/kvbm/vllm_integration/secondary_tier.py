# SPDX-License-Identifier: Apache-2.0
"""kvbm's disk below vLLM's own host pool: a secondary tier for vLLM's native tiering.

In kv_connector_extra_config of the OffloadingConnector:

    "secondary_tiers": [{"type": "KvbmSecondaryTierManager", "module_path": "kvbm.vllm_integration.secondary_tier",
                         "disk_gb": 100, "disk_dir": "/data"}]

What is left out is taken from the variables DYN_KVBM_DISK_CACHE_GB, DYN_KVBM_DISK_CACHE_DIR and so on, or from the table
[connector] of the file that KVBM_CONFIG names.
"""

import logging
from typing import ClassVar

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

import kvbm
from kvbm._core import SecondaryTier, connector_config

logger = logging.getLogger("kvbm")


class KvbmSecondaryTierManager(SecondaryTierManager):
    """Jobs go to threads of their own; no call but drain_jobs() waits for one. Threads: the scheduler's.

    disk_gb: gigabytes of 10^9 bytes. disk_dir: an existing directory; the file has no name in it and vanishes with the
    process. Raises kvbm.Error if there is no such space.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector=None,
        disk_gb: float | None = None,
        disk_dir: str | None = None,
    ):
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        settings = connector_config()
        if disk_gb is not None:
            settings["disk_bytes"], settings["disk_blocks"] = int(disk_gb * 1e9), 0
        pool = np.asarray(primary_kv_view)
        if pool.ndim != 2 or pool.strides[1] != pool.itemsize:
            raise ValueError(f"the host pool has shape {pool.shape} and strides {pool.strides}, not rows of chunks")
        self._pool = pool  # keeps the memory
        self._tier = SecondaryTier.create(
            address=pool.ctypes.data,
            num_chunks=pool.shape[0],
            chunk_bytes=pool.shape[1] * pool.itemsize,
            chunk_stride=pool.strides[0],
            disk_bytes=settings["disk_bytes"],
            disk_blocks=settings["disk_blocks"],
            disk_directory=disk_dir or settings["disk_directory"],
            disk_direct_io=settings["disk_direct_io"],
            disk_zero_fill=settings["disk_zero_fill"],
        )
        self._loads: dict[int, list] = {}  # the keys of open loads
        self._refused: list[JobResult] = []

    @property
    def native(self) -> SecondaryTier:
        return self._tier

    def lookup(self, key, req_context) -> LookupResult:
        return LookupResult.HIT if self._tier.contains(key) else LookupResult.MISS

    def submit_store(self, job_metadata):
        self._submit(self._tier.store, job_metadata, list(job_metadata.keys))

    def submit_load(self, job_metadata):
        keys = list(job_metadata.keys)
        if self._submit(self._tier.load, job_metadata, keys):
            self._loads[job_metadata.job_id] = keys

    def _submit(self, start, job, keys) -> bool:
        """The scheduler does not end with a job that cannot be started: the job has failed."""
        try:
            start(job.job_id, keys, [int(chunk) for chunk in job.chunk_ids])
        except kvbm.Error as error:
            logger.error("job %s of the secondary tier was not started: %s", job.job_id, error)
            self._refused.append(JobResult(job_id=job.job_id, success=False))
            return False
        return True

    def get_finished_jobs(self) -> list[JobResult]:
        results, self._refused = self._refused, []
        for job_id, succeeded, arrived, num_bytes, seconds in self._tier.take_finished():
            keys = self._loads.pop(job_id, None)
            results.append(
                JobResult(
                    job_id=job_id,
                    success=succeeded,
                    successful_keys=None if succeeded or keys is None else [keys[i] for i in arrived],
                    transfer_time=seconds,
                    transfer_bytes=num_bytes,
                )
            )
        return results

    def has_pending_work(self) -> bool:
        return bool(self._refused) or self._tier.num_open_jobs > 0

    def touch(self, keys, req_context):
        for key in keys:
            self._tier.contains(key)

    def on_new_request(self, req_context) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def drain_jobs(self):
        self._tier.drain()

    def shutdown(self):
        """Waits for running copies: the pool may go afterwards."""
        self._tier.close()
