# SPDX-License-Identifier: Apache-2.0
"""What a connector is told: by the variables DYN_KVBM_*, by a file, by keywords; and that a worker and a leader heed it."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import kvbm
from kvbm._core import connector_config

GUIDES = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides"

DEFAULTS = {
    "host_bytes": 0,
    "disk_bytes": 0,
    "host_blocks": 0,
    "disk_blocks": 0,
    "disk_filter": True,
    "min_priority": 0,
    "load_mode": "auto",
    "store_budget": None,
    "endpoint": "ipc",
    "weights_epoch": 0,
    "timeout_seconds": 30.0,
    "record_directory": "",
    "disk_directory": "/tmp/",
    "disk_direct_io": True,
    "disk_zero_fill": False,
    "metrics_port": None,
    "init_timeout_secs": 120.0,
    "place_timeout_secs": 1800.0,
}

# The twelve of Dynamo's document, the flight record, and kvbm's own: a value, and all that it changes.
VARIABLES = {
    "DYN_KVBM_CPU_CACHE_GB": ("1.5", {"host_bytes": 1_500_000_000}),
    "DYN_KVBM_DISK_CACHE_GB": ("2", {"disk_bytes": 2_000_000_000}),
    "DYN_KVBM_DISK_CACHE_DIR": ("/data", {"disk_directory": "/data"}),
    "DYN_KVBM_DISK_ZEROFILL_FALLBACK": ("true", {"disk_zero_fill": True}),
    "DYN_KVBM_DISK_DISABLE_O_DIRECT": ("true", {"disk_direct_io": False}),
    "DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS": ("7", {"init_timeout_secs": 7.0}),
    "DYN_KVBM_METRICS": ("true", {"metrics_port": 6880}),
    "DYN_KVBM_METRICS_PORT": ("9000", {}),  # of a page that nobody has asked for
    "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER": ("true", {"disk_filter": False}),
    "DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY": ("35", {"min_priority": 35}),
    "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS": ("24", {"host_blocks": 24}),
    "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS": ("48", {"disk_blocks": 48}),
    "DYN_KVBM_ENABLE_RECORD": ("true", {"record_directory": "/tmp/"}),
    "DYN_KVBM_STORE_BUDGET": ("0.25", {"store_budget": 0.25}),
    "DYN_KVBM_ENDPOINT": ("tcp://127.0.0.1:5600", {"endpoint": "tcp://127.0.0.1:5600"}),
}

LEFT_OUT = {
    "DYN_KVBM_MAX_CONCURRENT_TRANSFERS": "bounded by threads",
    "DYN_KVBM_TRANSFER_BATCH_SIZE": "as large as what there is",
    "DYN_KVBM_MAX_TRANSFER_BATCH_SIZE": "as large as what there is",
    "DYN_KVBM_DISK_ALLOCATOR_TYPE": "DYN_KVBM_DISK_DISABLE_O_DIRECT",
    "DYN_KVBM_LEADER_ZMQ_HOST": "a folder of the user's own",
    "DYN_KVBM_LEADER_ZMQ_PUB_PORT": "a folder of the user's own",
    "DYN_KVBM_LEADER_ZMQ_ACK_PORT": "a folder of the user's own",
    "DYN_KVBM_TRTLLM_ZMQ_PORT": "TensorRT-LLM",
    "DYN_KVBM_KV_EVENTS_ENABLE_CONSOLIDATOR": "the engine's own stream",
    "DYN_KVBM_NCCL_MLA_MODE": "NCCL",
    "DYN_KVBM_NIXL_BACKEND_UCX": "NIXL",
    "DYN_KVBM_NIXL_POSIX_API": "NIXL",
    **{
        f"DYN_KVBM_OBJECT_{name}": "no remote tiers"
        for name in ("ENABLED", "BUCKET", "ENDPOINT", "REGION", "ACCESS_KEY", "SECRET_KEY", "NUM_BLOCKS")
    },
    "DYN_KVBM_G3PB_ADMISSION_POLICY": "no remote tiers",
    "DYN_KVBM_CACHE_STATS_MAX_REQUESTS": "the last 1000 look-ups",
    "DYN_KVBM_CACHE_STATS_LOG_INTERVAL_SECS": "the last 1000 look-ups",
    "DYN_KVBM_ENABLE_NUMA": "first touches it",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("DYN_KVBM_") or name == "KVBM_CONFIG":
            monkeypatch.delenv(name)


def test_without_variables_there_are_the_documents_defaults():
    assert connector_config() == DEFAULTS


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_changes_what_it_is_for_and_nothing_else(monkeypatch, name):
    value, changes = VARIABLES[name]
    monkeypatch.setenv(name, value)
    assert connector_config() == {**DEFAULTS, **changes}


def test_the_port_is_that_of_the_page(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_METRICS", "true")
    monkeypatch.setenv("DYN_KVBM_METRICS_PORT", "9000")
    assert connector_config() == {**DEFAULTS, "metrics_port": 9000}


@pytest.mark.parametrize("name", [n for n in VARIABLES if n != "DYN_KVBM_DISK_CACHE_DIR"])
def test_a_value_that_makes_no_sense_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv(name, "plenty")
    with pytest.raises(kvbm.InvalidArgumentError, match=f'{name} = "plenty": allowed is '):
        connector_config()


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_nothing_acts_on_is_refused_with_the_reason(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(kvbm.UnsupportedError, match=f"{name} is not acted on: .*{LEFT_OUT[name]}.*; unset it"):
        connector_config()


def test_a_name_that_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setenv("DYN_KVBM_CPU_CACHE", "4")
    with pytest.raises(kvbm.InvalidArgumentError, match='"DYN_KVBM_CPU_CACHE"; the nearest is DYN_KVBM_CPU_CACHE_GB'):
        connector_config()


def write_file(monkeypatch, folder, text):
    file = folder / "kvbm.toml"
    file.write_text(text)
    monkeypatch.setenv("KVBM_CONFIG", str(file))
    return file


def test_a_file_is_over_the_defaults_a_variable_over_the_file_and_a_keyword_over_both(monkeypatch, tmp_path):
    write_file(monkeypatch, tmp_path, "[connector]\nhost_blocks = 1\ndisk_blocks = 1\nmin_priority = 1\n")
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "2")
    monkeypatch.setenv("DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY", "2")
    assert connector_config({"min_priority": 3}) == {**DEFAULTS, "host_blocks": 1, "disk_blocks": 2, "min_priority": 3}


def test_a_mistake_in_the_file_is_refused_with_the_place(monkeypatch, tmp_path):
    file = write_file(monkeypatch, tmp_path, "block_size = 16\n[connector]\nhost_block = 1\n")
    with pytest.raises(kvbm.InvalidArgumentError, match=f'{file}:3: .*"host_block"; the nearest is host_blocks'):
        connector_config()


@pytest.mark.parametrize("settings", [{"host_block": 4}, {"host_blocks": "4"}, {"host_blocks": None}, {"metrics": 1}, {"store_budget": 0}])
def test_a_keyword_that_makes_no_sense_is_refused(settings):
    name = next(iter(settings))
    with pytest.raises(kvbm.InvalidArgumentError, match=name):
        connector_config(settings)
    for make in (lambda: kvbm.KvbmWorker(8, 4, [np.zeros((8, 4096), np.uint8)], **settings), lambda: leader_of(**settings)):
        with pytest.raises(kvbm.InvalidArgumentError, match=rf"{name}.*Kvbm(Worker|Leader)\(\)|Kvbm.*\(\).*{name}"):
            make()


def leader_of(**settings):
    with kvbm.KvbmWorker(8, 4, [np.zeros((8, 4096), np.uint8)]) as worker:
        return kvbm.KvbmLeader(1, workers=[worker], **settings)


def test_leader_and_worker_take_settings_by_keyword(monkeypatch, tmp_path):
    write_file(monkeypatch, tmp_path, "[connector]\nhost_blocks = 3\n")
    disk = {"disk_blocks": 4, "disk_directory": str(tmp_path)}
    with kvbm.KvbmWorker(8, 4, [np.zeros((8, 4096), np.uint8)], **disk) as worker:
        with kvbm.KvbmLeader(1, workers=[worker], store_budget=0.25, **disk) as leader:
            assert (leader.num_host_blocks, leader.num_disk_blocks) == (3, 4)
            assert leader.statistics()["kvbm_store_budget_blocks"] == 2
            assert len(flags_of_files_in(tmp_path)) == 1


def named_in(guide):
    """Names of variables, and their beginnings before a star."""
    return set(re.findall(r"DYN_KVBM_[A-Z0-9_]+\*?", (GUIDES / guide).read_text()))


def test_the_guides_name_all_of_them():
    assert set(VARIABLES) <= named_in("vllm.md")
    documented = named_in("migration.md")
    starts = tuple(name.removesuffix("*") for name in documented if name.endswith("*"))
    assert not [name for name in LEFT_OUT if name not in documented and not name.startswith(starts)]


def takes_direct_io(folder):
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    finally:
        (folder / "probe").unlink(missing_ok=True)
    return True


def flags_of_files_in(folder):
    """Of the nameless files of a disk tier."""
    found = []
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith(f"{folder}/"):
                info = pathlib.Path(f"/proc/self/fdinfo/{descriptor.name}").read_text()
                found.append(int(re.search(r"flags:\s*([0-7]+)", info)[1], 8))
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("disabled", [False, True])
def test_the_disk_is_read_around_the_page_cache_unless_that_is_disabled(monkeypatch, tmp_path, disabled):
    if not takes_direct_io(tmp_path):
        pytest.skip(f"the file system of {tmp_path} takes no O_DIRECT")
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "4")
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DYN_KVBM_DISK_DISABLE_O_DIRECT", str(disabled).lower())
    worker = kvbm.KvbmWorker(8, 4, [np.zeros((8, 4096), np.uint8)])
    leader = kvbm.KvbmLeader(1, workers=[worker])
    flags = flags_of_files_in(tmp_path)
    leader.stop()
    worker.stop()
    assert flags
    assert [bool(flag & os.O_DIRECT) for flag in flags] == [not disabled] * len(flags)


# A file system that cannot reserve space, as Lustre: the kernel refuses fallocate() from here on.
WITHOUT_FALLOCATE = """
import ctypes, errno, os, pathlib, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 285, "aarch64": 47}[platform.machine()]
rules = b"".join(struct.pack("HBBI", *rule) for rule in [
    (0x20, 0, 0, 0),                       # load the number of the system call
    (0x15, 0, 1, number),                  # is it another one, skip a rule
    (0x06, 0, 0, 0x00050000 | errno.EOPNOTSUPP),
    (0x06, 0, 0, 0x7FFF0000),              # allowed
])
kept = ctypes.create_string_buffer(rules)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(kept))
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.c_char_p(program), 0, 0)
folder = pathlib.Path(sys.argv[1])
with open(folder / "probe", "wb") as probe:
    if libc.fallocate(probe.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(4096)) == 0:
        sys.exit(77)
(folder / "probe").unlink()

import numpy as np
import kvbm
def tell_files():
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        if os.path.exists(descriptor) and os.readlink(descriptor).startswith(f"{folder}/"):
            facts = os.stat(descriptor)
            print(facts.st_size, facts.st_blocks * 512)
"""


def files_without_fallocate(program, folder):
    """Size and allocated bytes of each file that the program has in the folder at tell_files()."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_FALLOCATE + program, str(folder)], capture_output=True, text=True, timeout=60
    )
    if run.returncode == 77:
        pytest.skip("this kernel takes no filter that refuses fallocate()")
    assert run.returncode == 0, run.stderr
    return [tuple(map(int, line.split())) for line in run.stdout.splitlines()]


CONNECTOR = """
worker = kvbm.KvbmWorker(8, 4, [np.zeros((8, 4096), np.uint8)])
leader = kvbm.KvbmLeader(1, workers=[worker])
tell_files()
leader.stop()
worker.stop()
"""


@pytest.mark.parametrize("fill", [False, True])
def test_where_space_cannot_be_reserved_the_file_is_filled_if_asked(monkeypatch, tmp_path, fill):
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "4")
    monkeypatch.setenv("DYN_KVBM_DISK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DYN_KVBM_DISK_ZEROFILL_FALLBACK", str(fill).lower())
    [(size, allocated)] = files_without_fallocate(CONNECTOR, tmp_path)
    assert size >= 4 * 4096
    assert (allocated >= size) is fill


BLOCK_MANAGER = """
with kvbm.BlockManager(block_size=4, num_layers=2, num_heads=2, head_dim=8, num_blocks=4, num_ranks=2,
                       disk_blocks=16, enable_offload=True, offload_path=str(folder), log_level="error"):
    tell_files()
"""


@pytest.mark.parametrize("fill", [False, True])
def test_a_block_manager_has_the_files_of_each_rank_filled_if_asked(monkeypatch, tmp_path, fill):
    monkeypatch.setenv("KVBM_DISK_ZERO_FILL", str(fill).lower())
    files = files_without_fallocate(BLOCK_MANAGER, tmp_path)
    assert len(files) == 2
    assert [(size > 0, allocated >= size) for size, allocated in files] == [(True, fill)] * 2
