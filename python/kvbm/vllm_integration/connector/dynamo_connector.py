# SPDX-License-Identifier: Apache-2.0
"""DynamoConnector: vLLM's KVConnectorBase_V1 over kvbm."""

import time
from dataclasses import dataclass

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
except ImportError:  # before 0.30; get_finished is called there
    KVConnectorTransferResults = None

from kvbm.vllm_integration.connector_leader import KvConnectorLeader
from kvbm.vllm_integration.connector_worker import KvConnectorWorker
from kvbm.vllm_integration.stats import KvbmConnectorStats, KvbmPromMetrics

# Between two looks at what has been counted.
STATS_INTERVAL_SECONDS = 0.1


@dataclass
class KvbmConnectorMetadata(KVConnectorMetadata):
    """One step for every rank: the bytes of a ConnectorStep."""

    step: bytes


class DynamoConnector(KVConnectorBase_V1, SupportsHMA):
    """Made once for the scheduler and once for each worker; vLLM's contract says what is called when."""

    def __init__(self, vllm_config, role, kv_cache_config=None):
        super().__init__(vllm_config, role, kv_cache_config)
        if kv_cache_config is None:
            raise RuntimeError("this vLLM gives connectors no kv_cache_config: kvbm needs 0.26 or newer")
        self._leader = None
        self._worker = None
        self._next_stats = 0.0
        if role == KVConnectorRole.SCHEDULER:
            self._leader = KvConnectorLeader(vllm_config, kv_cache_config)
        else:
            self._worker = KvConnectorWorker(vllm_config, kv_cache_config)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a store that is dropped is a future miss

    # --- statistics ---------------------------------------------------------------------------

    def get_kv_connector_stats(self):
        now = time.monotonic()
        if now < self._next_stats:  # vLLM asks in every step
            return None
        self._next_stats = now + STATS_INTERVAL_SECONDS
        half = self._leader or self._worker
        stats = KvbmConnectorStats.of(*half.take_changes())
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data=None):
        return KvbmConnectorStats(data=data) if data else KvbmConnectorStats()

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        return KvbmPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # --- worker -------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches):
        self._worker.register_kv_caches(kv_caches)

    def handle_preemptions(self, kv_connector_metadata):
        # The first hook of a step: whatever still reads blocks that are given away ends before they are written.
        if isinstance(kv_connector_metadata, KvbmConnectorMetadata):
            self._worker.begin_step(kv_connector_metadata.step)

    def bind_connector_metadata(self, connector_metadata):
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin_step(connector_metadata.step)

    def clear_connector_metadata(self):
        super().clear_connector_metadata()
        self._worker.end_step()  # in 0.26 a step that computes nothing has no wait_for_save

    def start_load_kv(self, forward_context, **kwargs):
        pass  # loads have begun with the step

    def wait_for_layer_load(self, layer_name):
        worker = self._worker
        if worker.has_loads:
            worker.wait_for_layer_load(layer_name)

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass  # stores wait for the end of the step

    def wait_for_save(self):
        self._worker.end_step()

    def get_transfer_results(self, finished_req_ids):
        received, failed = self._worker.take_ended_loads()
        return KVConnectorTransferResults(finished_recving=received, failed_recving=failed)

    def get_finished(self, finished_req_ids):
        received, failed = self._worker.take_ended_loads()
        if failed:
            raise RuntimeError(
                "a load has failed, and this vLLM cannot be told of it where a model has several layer groups or a sliding "
                "window; 0.30 and newer can"
            )
        return None, received or None

    def get_block_ids_with_load_errors(self):
        return self._worker.take_failed_blocks()

    def shutdown(self):
        if self._worker is not None:
            self._worker.shutdown()
        if self._leader is not None:
            self._leader.shutdown()

    # --- scheduler ----------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return self._leader.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        self._leader.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output):
        return KvbmConnectorMetadata(self._leader.build_connector_meta(scheduler_output))

    def take_events(self):
        return self._leader.take_events()

    def reset_cache(self):
        self._leader.reset_cache()
        return True

    def request_finished(self, request, block_ids):
        return self._leader.request_finished(request), None

    def request_finished_all_groups(self, request, block_ids):
        return self._leader.request_finished(request), None


class KvbmConnector(DynamoConnector):
    """The same under kvbm's own name."""
