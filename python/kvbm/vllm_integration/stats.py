# SPDX-License-Identifier: Apache-2.0
"""kvbm's series in vLLM's own log line and on its own /metrics page."""

from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

# What a line of vLLM's log shows, and the counters that are added up for it.
LOG_LINE = {
    "kvbm matched tokens": ("kvbm_matched_tokens",),
    "stored blocks": ("kvbm_offload_blocks_d2h", "kvbm_offload_blocks_d2d"),
    "written to disk": ("kvbm_offload_blocks_h2d",),
    "read from disk": ("kvbm_onboard_blocks_d2h", "kvbm_onboard_blocks_d2d"),
    "loaded blocks": ("kvbm_onboard_blocks_h2d", "kvbm_onboard_blocks_d2d"),
    "dropped blocks": ("kvbm_store_dropped_blocks_total",),
    "failed blocks": ("kvbm_transfer_failed_blocks_total",),
}


def split_series(series: str) -> tuple[str, dict[str, str]]:
    """Name and labels of "name{key=value,key=value}"."""
    name, _, labels = series.partition("{")
    return name, dict(label.split("=", 1) for label in labels.rstrip("}").split(",") if label)


@dataclass
class KvbmConnectorStats(KVConnectorStats):
    """data: {"counters": growth by series, "gauges": value by series}."""

    data: dict[str, Any] = field(default_factory=lambda: {"counters": {}, "gauges": {}})

    @classmethod
    def of(cls, counters: dict, gauges: dict) -> "KvbmConnectorStats":
        return cls(data={"counters": counters, "gauges": gauges})

    def reset(self):
        self.data = {"counters": {}, "gauges": {}}

    def is_empty(self) -> bool:
        return not self.data["counters"] and not self.data["gauges"]

    def aggregate(self, other: "KVConnectorStats") -> "KVConnectorStats":
        counters = self.data["counters"]
        for series, growth in other.data["counters"].items():
            counters[series] = counters.get(series, 0) + growth
        self.data["gauges"].update(other.data["gauges"])
        return self

    def reduce(self) -> dict[str, int | float]:
        by_name: dict[str, int] = {}
        for series, growth in self.data["counters"].items():
            name = split_series(series)[0]
            by_name[name] = by_name.get(name, 0) + growth
        sums = {text: sum(by_name.get(name, 0) for name in names) for text, names in LOG_LINE.items()}
        line = {text: value for text, value in sums.items() if value or text == "kvbm matched tokens"}
        if self.data["gauges"].get("kvbm_bypass_open"):
            line["bypass open"] = 1
        return line


class KvbmPromMetrics(KVConnectorPromMetrics):
    """Each series as vllm:NAME, made when it is first seen.

    The prefix is that of vLLM's own series. It keeps them apart from those of kvbm's own page, so that whoever reads both
    does not count twice; and vLLM drops series of that prefix when an engine is made anew in the same process.
    """

    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counter_cls = metric_types[Counter]
        self._gauge_cls = metric_types[Gauge]
        self._labelnames = list(labelnames)
        self._metrics = {}
        self._series = {}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0):
        for series, growth in transfer_stats_data["counters"].items():
            self._find(series, engine_idx, self._counter_cls).inc(growth)
        for series, value in transfer_stats_data["gauges"].items():
            self._find(series, engine_idx, self._gauge_cls, multiprocess_mode="mostrecent").set(value)

    def _find(self, series: str, engine_idx: int, kind, **options):
        found = self._series.get((engine_idx, series))
        if found is None:
            name, labels = split_series(series)
            if name not in self._metrics:
                self._metrics[name] = kind(
                    name="vllm:" + name,
                    documentation=f"{name} of kvbm, see docs/metrics.md there.",
                    labelnames=self._labelnames + list(labels),
                    **options,
                )
            values = [*self.per_engine_labelvalues[engine_idx], *labels.values()]
            found = self._series[engine_idx, series] = self._metrics[name].labels(*values)
        return found
