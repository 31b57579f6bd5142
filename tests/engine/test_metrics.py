# SPDX-License-Identifier: Apache-2.0
"""kvbm's series where a user of vLLM looks for them: vLLM's own metrics and log line, and kvbm's page."""

import re
import socket

import prometheus_client
from conftest import run_engine

from kvbm.vllm_integration.connector import DynamoConnector
from kvbm.vllm_integration.stats import KvbmConnectorStats, KvbmPromMetrics, split_series

HOST = {"DYN_KVBM_CPU_CACHE_GB": "0.2"}


def on_page(page, series):
    return float(re.search(rf"(?m)^{re.escape(series)} (.*)$", page)[1])


def test_the_engine_shows_what_kvbm_counts(plain):
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    report = run_engine({**HOST, "DYN_KVBM_METRICS": "true", "DYN_KVBM_METRICS_PORT": str(port)})
    assert [played["outputs"] for played in report["rounds"]] == [plain.outputs()] * 2
    page, of_vllm = report["metrics_page"], report["vllm_metrics"]
    matched = on_page(page, "kvbm_matched_tokens")
    # vLLM's own prefix cache is reset between rounds, so what it did not compute then was matched here.
    assert 0 < matched <= sum(played["cached_tokens"] for played in report["rounds"])
    assert matched % 32 == 0
    assert of_vllm["vllm:kvbm_matched_tokens"] == matched
    assert on_page(page, "kvbm_onboard_blocks_h2d") == matched / 32
    assert 0 < on_page(page, "kvbm_host_cache_hit_rate") <= 1
    assert on_page(page, 'kvbm_copied_blocks_total{route="host_to_host"}') > 0  # of the worker
    # What the last step counted is told with the next one.
    assert 0 < of_vllm["vllm:kvbm_offload_blocks_d2h"] <= on_page(page, "kvbm_offload_blocks_d2h")


def test_a_port_in_use_is_a_warning_and_the_engine_goes_on(plain):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        report = run_engine({**HOST, "DYN_KVBM_METRICS": "true", "DYN_KVBM_METRICS_PORT": str(port)}, rounds=1)
    assert report["rounds"][0]["outputs"] == plain.outputs()
    assert "metrics_page" not in report
    lines = [line for line in report["stderr"].splitlines() if "no metrics are served" in line]
    assert len(lines) == 1
    assert f"port {port}" in lines[0]


def test_series_are_taken_apart():
    assert split_series("a") == ("a", {})
    assert split_series("a{b=c}") == ("a", {"b": "c"})
    assert split_series("a{b=c,d=e}") == ("a", {"b": "c", "d": "e"})


def test_statistics_add_up_over_ranks_and_steps():
    stats = DynamoConnector.build_kv_connector_stats()
    assert stats.is_empty()
    one = KvbmConnectorStats.of({"kvbm_matched_tokens": 3, "x{r=1}": 1}, {"kvbm_bypass_open": 1})
    other = DynamoConnector.build_kv_connector_stats({"counters": {"kvbm_matched_tokens": 4}, "gauges": {"g": 0.5}})
    total = stats.aggregate(one).aggregate(other)
    assert total.data["counters"] == {"kvbm_matched_tokens": 7, "x{r=1}": 1}
    assert total.data["gauges"] == {"kvbm_bypass_open": 1, "g": 0.5}
    assert not total.is_empty()
    assert total.to_dict() == total.data
    assert total.reduce() == {"kvbm matched tokens": 7, "bypass open": 1}
    total.reset()
    assert total.is_empty()


def test_the_log_line_tells_what_moved_and_what_was_dropped():
    stats = KvbmConnectorStats.of(
        {
            "kvbm_offload_blocks_d2h": 5,
            "kvbm_onboard_blocks_h2d": 2,
            "kvbm_store_dropped_blocks_total{reason=no_room}": 3,
            "kvbm_store_dropped_blocks_total{reason=backlog}": 4,
        },
        {},
    )
    assert stats.reduce() == {
        "kvbm matched tokens": 0,
        "stored blocks": 5,
        "loaded blocks": 2,
        "dropped blocks": 7,
    }


def test_prometheus_series_have_the_labels_of_vllm_and_of_kvbm():
    class Config:
        kv_transfer_config = None

    kinds = {kind: kind for kind in (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)}
    metrics = KvbmPromMetrics(Config, kinds, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]})
    metrics.observe({"counters": {"kvbm_test_total{route=a}": 2, "kvbm_test_total{route=b}": 1}, "gauges": {}}, 0)
    metrics.observe({"counters": {"kvbm_test_total{route=a}": 5}, "gauges": {"kvbm_test_rate": 0.5}}, 1)
    value = prometheus_client.REGISTRY.get_sample_value
    labels = {"model_name": "m", "engine": "0", "route": "a"}
    assert value("vllm:kvbm_test_total", labels) == 2
    assert value("vllm:kvbm_test_total", {**labels, "route": "b"}) == 1
    assert value("vllm:kvbm_test_total", {**labels, "engine": "1"}) == 5
    assert value("vllm:kvbm_test_rate", {"model_name": "m", "engine": "1"}) == 0.5
