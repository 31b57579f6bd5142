# SPDX-License-Identifier: Apache-2.0
"""The real vLLM with kvbm gives token by token what it gives without."""

import json
import os
import pathlib
import socket
import stat
import subprocess
import tempfile
import threading

import pytest
from conftest import run_engine

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "build" / "python" / "apps" / "kvbm" / "kvbm"

HOST = {"DYN_KVBM_CPU_CACHE_GB": "0.2"}
LITTLE_HOST = {"DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS": "24"}


def moved(report, route, which=-1):
    return report["rounds"][which]["statistics"].get(f"kvbm_transfer_blocks_total{{route={route}}}", 0)


def check(report, expected):
    """Every round equals the run without kvbm, and nothing is left behind."""
    for number, played in enumerate(report["rounds"]):
        assert played["outputs"] == expected, f"round {number} differs"
    assert (report["open_requests"], report["open_loads"]) == (0, 0)


def test_outputs_depend_on_the_prompt(plain):
    """Otherwise equal outputs would prove nothing."""
    outputs = [tuple(answer) for turns in plain.outputs() for answer in turns]
    assert len(set(outputs)) == len(outputs)
    assert all(len(set(answer)) > len(answer) // 2 for answer in outputs)


def test_two_hundred_requests_over_host_memory(plain):
    options = {"conversations": 70, "turns": 3}
    report = run_engine(HOST, **options)
    assert sum(len(turns) for turns in report["rounds"][0]["outputs"]) >= 200
    check(report, plain.outputs(**options))
    cold, *warm = report["rounds"]
    assert moved(report, "g1_to_g2", 0) > 0
    for played in warm:
        # All full blocks before the last token come back.
        assert played["cached_tokens"] > 0.85 * played["prompt_tokens"]
    assert moved(report, "g2_to_g1") > 0


def test_loads_between_steps(plain):
    report = run_engine(HOST, load_mode="between_steps")
    check(report, plain.outputs())
    assert moved(report, "g2_to_g1") > 0


def test_a_host_tier_too_small_spills_to_disk(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine({**variables, "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER": "true"}, rounds=3)
    check(report, plain.outputs())
    assert moved(report, "g2_to_g3", 0) > 0
    assert moved(report, "g3_to_g2") + moved(report, "g3_to_g1") > 0
    played = report["rounds"][-1]
    assert played["cached_tokens"] > 0.5 * played["prompt_tokens"]


def test_the_disk_filter_writes_what_was_seen_twice(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, rounds=3)
    check(report, plain.outputs())
    assert report["rounds"][0]["statistics"]["kvbm_disk_filtered_blocks_total"] > 0
    first, second, third = (played["cached_tokens"] for played in report["rounds"])
    assert third > second > first
    assert moved(report, "g3_to_g2") + moved(report, "g3_to_g1") > 0


@pytest.mark.parametrize("model", [{}, {"hybrid": True}, {"block_sizes": True}], ids=str)
def test_a_flight_record_is_played_to_equal_outcomes(plain, tmp_path, model):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    variables |= {"DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER": "true", "DYN_KVBM_ENABLE_RECORD": "true"}
    report = run_engine(variables, **model, rounds=3)
    check(report, plain.outputs(**model))
    (record,) = tmp_path.glob("kvbm-record-*")
    assert f"every call is recorded: kvbm replay {record}" in report["stderr"]
    replay = subprocess.run([PROGRAM, "replay", record, "--json", tmp_path / "report"], capture_output=True, text=True)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    played = json.loads((tmp_path / "report").read_text())
    assert played["compared_calls"] == played["calls"] > 0
    assert played["recorded"] == played["replayed"]
    for route in ("g1_to_g2", "g2_to_g1", "g2_to_g3", "g3_to_g2"):
        assert played["recorded"]["counts"][route] == sum(moved(report, route, i) for i in range(3)) > 0


def test_disk_alone(plain, tmp_path):
    variables = {"DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables)
    check(report, plain.outputs())
    assert moved(report, "g3_to_g1") > 0


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_corrupt_disk_is_a_miss(plain, tmp_path, hybrid):
    """The engine goes on with equal answers, and a line in the log and a metric say what happened."""
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    variables["DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER"] = "true"
    report = run_engine(variables, hybrid=hybrid, rounds=3, corrupt_disk=True)
    check(report, plain.outputs(hybrid=hybrid))
    assert report["worker_statistics"]["kvbm_corrupt_blocks_total"] > 0
    assert "are computed anew" in report["stderr"]


def test_a_pool_so_small_that_requests_are_preempted(plain):
    options = {"conversations": 8, "turns": 2, "max_tokens": 100}
    report = run_engine(HOST, **options, gpu_blocks=40, max_model_len=1024)
    check(report, plain.outputs(**options))
    assert report["preemptions"] > 0
    assert moved(report, "g2_to_g1") > 0


def test_a_hybrid_model_with_sliding_windows(plain):
    report = run_engine(HOST, hybrid=True)
    check(report, plain.outputs(hybrid=True))
    played = report["rounds"][-1]
    assert played["cached_tokens"] > 0.8 * played["prompt_tokens"]


def test_layer_groups_whose_blocks_hold_different_numbers_of_tokens(plain):
    report = run_engine(HOST, block_sizes=True, events=True)
    assert report["block_tokens"] == [64, 32]
    expected = plain.outputs(block_sizes=True)
    assert len({tuple(answer) for turns in expected for answer in turns}) == sum(len(turns) for turns in expected)
    check(report, expected)
    assert moved(report, "g2_to_g1") > 0
    played = report["rounds"][-1]
    assert played["cached_tokens"] > 0.7 * played["prompt_tokens"]
    # Events name a block as the engine's own of its group do; of a window the engine names those that it may reuse.
    named = {"GPU": set(), "CPU": set()}
    for kind, event in report["events"]:
        if kind == "BlockStored":
            named[event["medium"]] |= {(event["group_idx"], event["block_size"], h) for h in event["block_hashes"]}
    assert {(group, size) for group, size, _ in named["CPU"]} == {(0, 64), (1, 32)}
    of_group = [{medium: {n for n in names if n[0] == group} for medium, names in named.items()} for group in (0, 1)]
    assert of_group[0]["CPU"] & of_group[0]["GPU"]
    assert of_group[1]["CPU"] <= of_group[1]["GPU"]


@pytest.fixture
def runtime_folder():
    """Where the sockets lie; of a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="kvbm") as folder:
        yield pathlib.Path(folder)


def check_processes(report, expected, runtime_folder):
    for number, played in enumerate(report["rounds"]):
        assert played["outputs"] == expected, f"round {number} differs"
    cold, warm = report["rounds"]
    # The engine's own cache gives the turns of a round; what came before its reset is kvbm's.
    assert warm["external_tokens"] > max(500, cold["external_tokens"])
    assert not list(runtime_folder.iterdir())


def test_the_engine_core_and_its_worker_in_processes_of_their_own(plain, runtime_folder, tmp_path):
    """The host tier is too small for all: operations below the engine go by the channel."""
    variables = {
        **LITTLE_HOST,
        "DYN_KVBM_DISK_CACHE_GB": "1",
        "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path),
        "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER": "true",
        "XDG_RUNTIME_DIR": str(runtime_folder),
    }
    report = run_engine(variables, processes=True)
    check_processes(report, plain.outputs(), runtime_folder)


@pytest.mark.parametrize("block_sizes", [False, True])
def test_tensor_parallelism_in_two_worker_processes(plain, runtime_folder, block_sizes):
    options = {"processes": True, "tensor_parallel": 2, "conversations": 4, "turns": 2, "max_tokens": 8}
    options["block_sizes"] = block_sizes
    report = run_engine({**HOST, "XDG_RUNTIME_DIR": str(runtime_folder)}, **options)
    check_processes(report, plain.outputs(**options), runtime_folder)


class PortWatch(threading.Thread):
    """Looks, until it is left, whether somebody listens at a port, and for a secret below a folder: who else knows it."""

    def __init__(self, port, folder):
        super().__init__()
        self._wanted = f":{port:04X} 00000000:0000 0A"  # as /proc/net/tcp says that it listens
        self._folder = folder
        self._end = threading.Event()
        self.listens = False
        self.secrets = set()
        self.modes = set()
        self.told = []  # processes that were told by command line or environment

    def run(self):
        while not self._end.wait(0.02):
            self.listens |= self._wanted in pathlib.Path("/proc/net/tcp").read_text()
            for file in self._folder.glob("*/secret"):
                try:
                    self.secrets.add(file.read_text().split()[-1])
                    self.modes.add(stat.S_IMODE(file.stat().st_mode))
                except (FileNotFoundError, IndexError):
                    continue  # it goes, or comes
                self._look_at_processes()

    def _look_at_processes(self):
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    text = (process / name).read_text(errors="replace")
                except OSError:
                    continue
                if any(secret in text for secret in self.secrets):
                    self.told.append(f"{process}/{name}")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self._end.set()
        self.join()


def test_tensor_parallelism_over_a_port_with_a_secret_of_the_run(plain, runtime_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"processes": True, "tensor_parallel": 2, "conversations": 4, "turns": 2, "max_tokens": 8}
    left = meeting_folder_of_a_dead_run(runtime_folder)
    with PortWatch(port, runtime_folder) as watch:
        report = run_engine(
            {**HOST, "XDG_RUNTIME_DIR": str(runtime_folder)}, extra={"endpoint": f"tcp://127.0.0.1:{port}"}, **options
        )
    assert not left.exists(), "what a run that was killed had left goes with the next start"
    check_processes(report, plain.outputs(**options), runtime_folder)
    assert watch.listens
    watch.secrets.discard(DEAD_SECRET)
    assert len(watch.secrets) == 1 and watch.modes == {0o600}
    assert not watch.told
    assert not any(secret in report["stderr"] for secret in watch.secrets)


DEAD_SECRET = 64 * "0"


def meeting_folder_of_a_dead_run(runtime_folder):
    """With a secret that was drawn by a process which is another one now."""
    folder = runtime_folder / f"kvbm-{os.getuid()}-dead"
    folder.mkdir(mode=0o700)
    (folder / "secret").touch(0o600)
    (folder / "secret").write_text(f"1 1\n{DEAD_SECRET}\n")
    return folder


def test_mistakes_in_the_variables_stop_the_start():
    for variables, part in (
        ({}, "nowhere to keep blocks"),
        ({"DYN_KVBM_CPU_CACHE_GB": "much"}, "DYN_KVBM_CPU_CACHE_GB"),
    ):
        with pytest.raises(pytest.fail.Exception, match=part):
            run_engine(variables)


def loaded(report, which):
    return sum(moved(report, route, which) for route in ("g2_to_g1", "g3_to_g1", "g3_to_g2"))


def test_what_one_cache_salt_has_stored_another_does_not_find(plain):
    report = run_engine(HOST, rounds=3, salts=["ours", "theirs", "ours"])
    check(report, plain.outputs())
    assert [loaded(report, which) > 0 for which in range(3)] == [False, False, True]


def test_a_connector_reset_empties_host_and_disk(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, rounds=3, reset_connector_after=0)
    check(report, plain.outputs())
    first = report["rounds"][0]["statistics"]
    assert first["kvbm_forgotten_blocks_total{tier=g2}"] > 0
    assert first["kvbm_forgotten_blocks_total{tier=g3}"] > 0
    cold, emptied, warm = (played["cached_tokens"] for played in report["rounds"])
    assert emptied == cold < warm
    assert loaded(report, 2) > loaded(report, 1)


def test_events_tell_what_host_memory_and_disk_hold(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, rounds=2, events=True, reset_connector_after=0)
    check(report, plain.outputs())
    held = {"GPU": set(), "CPU": set(), "STORAGE": set()}
    named = {"GPU": set(), "CPU": set(), "STORAGE": set()}
    most = dict.fromkeys(held, 0)
    was_reset = was_empty = False
    for kind, event in report["events"]:
        if kind == "AllBlocksCleared":
            was_reset = True
            continue
        hashes, medium = set(event["block_hashes"]), event["medium"]
        if kind == "BlockStored":
            assert event["group_idx"] == 0
            held[medium] |= hashes
            named[medium] |= hashes
        else:
            assert medium == "GPU" or hashes <= held[medium], "removed what was not there"
            held[medium] -= hashes
        most = {name: max(most[name], len(blocks)) for name, blocks in held.items()}
        was_empty |= was_reset and not held["CPU"] and not held["STORAGE"]
    # Hashes as the engine names them.
    assert named["CPU"] and named["CPU"] | named["STORAGE"] <= named["GPU"]
    assert 0 < most["CPU"] <= 24 < most["STORAGE"]
    assert was_empty, "the reset has emptied host memory and disk"


def test_a_disk_that_fills_up_in_the_middle(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, fill_disk=True)
    check(report, plain.outputs())
    failed = sum(r["statistics"].get("kvbm_transfer_failed_blocks_total{route=g2_to_g3}", 0) for r in report["rounds"])
    assert failed > 0
    assert "cannot write" in report["stderr"]


def test_a_load_whose_deadline_passes_is_computed(plain):
    """A step that takes longer than a load may: the engine goes on, and what comes too late is not used."""
    report = run_engine(HOST, load_mode="between_steps", extra={"transfer_timeout_seconds": 2}, stall_seconds=2.5)
    check(report, plain.outputs())
    assert report["rounds"][1]["statistics"]["kvbm_loads_timed_out_total"] > 0
    assert "the load did not end within its deadline" in report["stderr"]
