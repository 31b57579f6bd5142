# SPDX-License-Identifier: Apache-2.0
"""The worker half: vLLM's hooks over kvbm.KvbmWorker."""

from kvbm._core import KvbmWorker, MetricsReader, connector_config, group_parts
from kvbm.vllm_integration.endpoint import meeting_of, remove, uses_channel
from kvbm.vllm_integration.layer_groups import layer_groups_of
from kvbm.vllm_integration.layout import check_canary, check_declared, runs_of

# Of connector_config(): those that KvbmWorker.create takes.
WORKER_SETTINGS = ("disk_directory", "disk_direct_io", "disk_zero_fill")

# The workers of this process, by engine id and rank: what a leader of the same process finds.
LOCAL_WORKERS: dict[tuple[str, int], KvbmWorker] = {}


def settings_of(vllm_config) -> dict:
    """connector_config() with what kv_connector_extra_config says. Raises kvbm.InvalidArgumentError, a ValueError."""
    extra = getattr(vllm_config.kv_transfer_config, "kv_connector_extra_config", None)
    return connector_config(extra or {}, "kv_connector_extra_config")


class KvConnectorWorker:
    """Threads: the model runner's."""

    def __init__(self, vllm_config, kv_cache_config):
        self._engine_id = vllm_config.kv_transfer_config.engine_id
        self._rank = vllm_config.parallel_config.rank
        self._vllm_config = vllm_config
        self._uses_channel = uses_channel(vllm_config.parallel_config)
        self._meeting = None
        self._kv_cache_config = kv_cache_config
        self._settings = settings_of(vllm_config)
        self._worker = None
        self._metrics = None
        self._layers: dict[str, int] = {}  # in its group, as KvbmWorker counts them
        self._step = None
        self.has_loads = False  # the step's, and a layer has to wait for them
        self._fails_by_request = layer_groups_of(kv_cache_config).fails_by_request
        self._failed_blocks: set[int] = set()

    def register_kv_caches(self, kv_caches):
        """kv_caches: tensors by layer name, each [num_blocks, ...]; they stay until shutdown()."""
        config = self._kv_cache_config
        shapes = layer_groups_of(config)
        num_parts = group_parts(shapes.block_tokens, shapes.window_blocks)
        groups, runs_per_layer = [], []
        by_name = {}
        for group, parts in zip(config.kv_cache_groups, num_parts):
            spec = group.kv_cache_spec
            layers = []
            for name in group.layer_names:
                tensor = kv_caches[name]
                if tensor.device.type != "cpu":
                    raise NotImplementedError(f"{name}: KV tensors on {tensor.device} are not supported")
                runs = runs_of(name, tensor, config.num_blocks, spec.page_size_bytes)
                check_canary(name, tensor, runs, config.num_blocks)
                layers.append(runs)
                by_name[name] = runs
            if len({layer.run_bytes for layer in layers}) != 1:
                raise ValueError(f"the layers of one group differ: {group.layer_names}")
            runs = [(address, layer.block_stride) for layer in layers for address in layer.addresses]
            groups += [(layers[0].run_bytes, runs)] * parts
            runs_per_layer += [len(layers[0].addresses)] * parts
            self._layers.update({name: i for i, name in enumerate(group.layer_names)})
        check_declared(config, by_name)
        options = {name: self._settings[name] for name in WORKER_SETTINGS}
        if not self._settings["disk_bytes"] and not self._settings["disk_blocks"]:
            options["disk_directory"] = ""
        self._worker = KvbmWorker.create(
            rank=self._rank,
            num_blocks=config.num_blocks,
            groups=groups,
            runs_per_layer=runs_per_layer,
            **options,
        )
        self._metrics = MetricsReader(self._worker)
        if self._uses_channel:
            # The leader is made later: nothing waits for it here.
            self._meeting = meeting_of(self._vllm_config, self._settings["endpoint"])
            self._worker.connect(self._meeting.endpoint, self._meeting.secret)
        else:
            LOCAL_WORKERS[self._engine_id, self._rank] = self._worker

    def begin_step(self, step: bytes):
        """The first hook of a step wins: vLLM's releases differ in which it is."""
        if self._step is None:
            self._step = step
            self._worker.begin_step(step)
            self.has_loads = self._worker.has_loads

    def wait_for_layer_load(self, layer_name: str):
        if self.has_loads:
            self._worker.layer_needed(self._layers[layer_name])
            self.has_loads = self._worker.has_loads

    def end_step(self):
        if self._step is None:
            return
        if self.has_loads:  # some layers have not asked: they were not computed
            self._worker.all_layers_needed()
        self._worker.end_step()
        self._step = None
        self.has_loads = False

    def take_ended_loads(self) -> tuple[set[str], set[str]]:
        """Requests whose load between steps has ended, and those of them whose load has failed as a whole.

        As a whole: see LayerGroups.fails_by_request.
        """
        received, failed = set(), set()
        for request, blocks in self._worker.take_ended_loads():
            received.add(request)
            if blocks and self._fails_by_request:
                failed.add(request)
            else:
                self._failed_blocks.update(blocks)
        return received, failed

    def take_failed_blocks(self) -> set[int]:
        blocks = set(self._worker.take_failed_blocks())
        if self._fails_by_request:
            return set()  # told by request when the load has ended
        blocks |= self._failed_blocks
        self._failed_blocks.clear()
        return blocks

    def take_changes(self) -> tuple[dict, dict]:
        """By how much counters have grown, and gauges that have changed, since the last call."""
        return self._metrics.take() if self._metrics is not None else ({}, {})

    def shutdown(self):
        if self._worker is not None:
            self.end_step()
            self._worker.stop()
            self._metrics = None
            LOCAL_WORKERS.pop((self._engine_id, self._rank), None)
            self._worker = None
            if self._meeting is not None:
                remove(self._meeting.folder)
