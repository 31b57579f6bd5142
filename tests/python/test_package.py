# SPDX-License-Identifier: Apache-2.0
"""The package by itself: no engine, no GPU."""

import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

import kvbm
import kvbm.utils
from kvbm._core import MetricsReader, connector_config


def test_import_starts_no_thread_and_needs_no_engine():
    code = "import kvbm, os, sys; assert len(os.listdir('/proc/self/task')) == 1; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_says_what_it_does():
    """But for a property whose name says it, and an exception, which nanobind makes without words."""

    def is_told(thing, name):
        return any(line and not line.startswith(f"{name}(") for line in (thing.__doc__ or "").splitlines())

    silent = []
    for name, thing in vars(kvbm._core).items():
        if name.startswith("_") or not callable(thing) or name == "ContractViolation":
            continue
        if not is_told(thing, name):
            silent.append(name)
        members = vars(thing).items() if isinstance(thing, type) else ()
        silent += [f"{name}.{n}" for n, m in members if n[0] != "_" and callable(m) and not is_told(m, n)]
    assert silent == []


def test_errors_have_codes():
    with pytest.raises(kvbm.Error) as caught:
        kvbm.KvbmWorker.create(rank=0, num_blocks=0, groups=[])
    assert caught.value.code == "invalid_argument"
    assert "no blocks" in str(caught.value)


def test_variables_are_read(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_GB", "1.5")
    assert connector_config()["host_bytes"] == 1_500_000_000
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE_GB", "lots")
    with pytest.raises(kvbm.Error, match="DYN_KVBM_CPU_CACHE_GB"):
        connector_config()


class Engine:
    """A pretended engine: a KV tensor, and steps of one request that computes everything at once."""

    def __init__(self, **tiers):
        self.tensor = np.zeros((16, 64), dtype=np.uint8)
        self.worker = kvbm.KvbmWorker.create(
            rank=0, num_blocks=16, groups=[(64, [(self.tensor.ctypes.data, 64)])]
        )
        self.leader = kvbm.KvbmLeader.create(
            [self.worker], model="m", dtype="u8", scheme="test", block_tokens=4, window_blocks=[0], **tiers
        )

    def step(self, request, blocks, computed, scheduled, values=()):
        self.worker.begin_step(self.leader.build_step([(request, [blocks], True, computed, scheduled)]))
        if self.worker.has_loads:
            self.worker.all_layers_needed()
        for block, value in values:
            self.tensor[block] = value
        self.worker.end_step()


def test_what_a_step_wrote_comes_back():
    engine = Engine(host_blocks=8)
    hashes = [bytes([i]) * 32 for i in range(3)]
    engine.leader.extend("a", hashes)
    engine.step("a", [0, 1, 2], 0, 12, values=[(0, 7), (1, 8), (2, 9)])
    assert not engine.leader.finished("a")
    deadline = time.monotonic() + 10
    while "stores are under way":
        engine.leader.extend("b", hashes)
        tokens, between_steps = engine.leader.match("b", 0, 13)
        if tokens == 12 or time.monotonic() > deadline:
            break
        engine.leader.finished("b")
    assert (tokens, between_steps) == (12, False)
    engine.tensor[:] = 0
    engine.leader.allocated("b", [[10, 11, 12, 13]], tokens)
    engine.step("b", [10, 11, 12, 13], 12, 1)
    assert [int(engine.tensor[block, 63]) for block in (10, 11, 12)] == [7, 8, 9]
    assert engine.worker.take_failed_blocks() == []
    loaded = "kvbm_transfer_blocks_total{route=g2_to_g1}"
    while engine.leader.statistics()[loaded] != 3:  # the blocks are there before the leader hears of it
        assert time.monotonic() < deadline
    engine.worker.stop()


def test_changes_are_told_once():
    engine = Engine(host_blocks=8)
    reader = MetricsReader(engine.leader)
    counters, gauges = reader.take()
    assert counters == {}
    assert gauges["kvbm_blocks_free{pool=g2}"] == 8
    assert reader.take() == ({}, {})
    hashes = [bytes([i]) * 32 for i in range(3)]
    engine.leader.extend("a", hashes)
    engine.step("a", [0, 1, 2], 0, 12)
    counters, gauges = reader.take()
    assert counters["kvbm_allocations_total{pool=g2}"] == 3
    assert gauges["kvbm_blocks_free{pool=g2}"] == 5
    assert "kvbm_matched_tokens" not in counters
    assert MetricsReader(engine.worker).take()[1] == {}
    engine.worker.stop()


def test_what_a_stopped_leader_has_counted_is_gone():
    engine = Engine(host_blocks=8)
    reader = MetricsReader(engine.leader)
    engine.leader.stop()
    with pytest.raises(kvbm.UnavailableError):
        reader.take()
    with pytest.raises(kvbm.UnavailableError):
        MetricsReader(engine.leader)
    engine.worker.stop()


def test_metrics_are_served_where_it_is_asked_for():
    assert Engine(host_blocks=8).leader.metrics_port is None
    engine = Engine(host_blocks=8, metrics_port=0)
    if engine.leader.metrics_port is None:
        pytest.skip("built without HTTP")
    with urllib.request.urlopen(f"http://127.0.0.1:{engine.leader.metrics_port}/metrics", timeout=10) as page:
        assert page.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = page.read().decode()
    assert "\nkvbm_matched_tokens 0\n" in text
    engine.worker.stop()


def test_a_record_is_a_folder_of_this_user(tmp_path, monkeypatch):
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(tmp_path))
    assert connector_config()["record_directory"] == ""
    monkeypatch.setenv("DYN_KVBM_ENABLE_RECORD", "true")
    assert connector_config()["record_directory"] == str(tmp_path)
    for _ in range(2):  # each leader has a record of its own
        engine = Engine(host_blocks=8, record_directory=str(tmp_path))
        engine.leader.extend("a", [bytes(32)])
        engine.step("a", [0], 0, 4)
        assert not engine.leader.finished("a")
        assert engine.leader.statistics()["kvbm_recorded_calls_total"] == 4
        engine.worker.stop()
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [file.name for file in folder.iterdir()] == ["record-00000000.kvbr"]
    with pytest.raises(kvbm.Error, match="No such file") as caught:
        Engine(host_blocks=8, record_directory=str(tmp_path / "none"))
    assert caught.value.code == "not_found"


def test_a_step_that_is_no_step_is_refused():
    engine = Engine(host_blocks=8)
    with pytest.raises(kvbm.Error) as caught:
        engine.worker.begin_step(b"nonsense")
    assert caught.value.code == "corrupt"
    engine.worker.stop()


def test_the_runtime_is_told(tmp_path, monkeypatch):
    assert kvbm.utils.detect_runtime() is None
    package = tmp_path / "dynamo" / "runtime"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dynamo", raising=False)
    assert kvbm.utils.detect_runtime() == "dynamo"
    monkeypatch.delitem(sys.modules, "dynamo", raising=False)
