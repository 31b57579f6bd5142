# SPDX-License-Identifier: Apache-2.0
"""Where processes meet, and a leader with a worker that is one."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
import pytest

import kvbm
from kvbm.vllm_integration import endpoint as meeting_place
from kvbm.vllm_integration.endpoint import (
    endpoint_of,
    meeting_folder,
    meeting_of,
    remove,
    remove_left_secrets,
    run_of,
    shared_secret,
    uses_channel,
)


@pytest.fixture
def runtime(monkeypatch):
    """A parent of meeting folders; of a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="kvbm") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield folder


def test_the_folder_is_its_owners_alone_and_both_sides_find_it(runtime):
    folder = meeting_folder("an-engine")
    assert str(folder) == f"{runtime}/kvbm-{os.getuid()}-an-engine"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert meeting_folder("an-engine") == folder
    assert endpoint_of(folder) == f"ipc://{folder}/leader"
    (folder / "leader").touch()
    remove(folder)
    assert os.listdir(runtime) == []
    remove(folder)


def test_two_runs_with_one_engine_id_do_not_meet(runtime):
    def config(instance_id):
        return types.SimpleNamespace(
            instance_id=instance_id, kv_transfer_config=types.SimpleNamespace(engine_id="fixed")
        )

    folders = [meeting_folder(run_of(config(instance_id))) for instance_id in ("1795259147000000000", "abcde")]
    assert folders[0] != folders[1]
    assert meeting_folder(run_of(config("abcde"))) == folders[1]  # as the workers of the run find it
    assert str(folders[1]) == f"{runtime}/kvbm-{os.getuid()}-fixed-abcde"


def test_two_leaders_with_one_engine_id_have_each_their_worker(runtime):
    """Both are there at one time, and a run that was killed has left its socket."""
    meeting = [meeting_folder(f"fixed-{run}") for run in ("dead", "a", "b")]
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(meeting[0] / "leader"))
    dead.close()
    tensors = [np.zeros((16, 64 * (i + 1)), dtype=np.uint8) for i in range(2)]
    leaders, workers = [], []
    for folder, tensor in zip(meeting[1:], tensors):
        run_bytes = tensor.shape[1]
        workers.append(kvbm.KvbmWorker.create(0, 16, [(run_bytes, [(tensor.ctypes.data, run_bytes)])]))
        workers[-1].connect(endpoint_of(folder))
    for folder in meeting[1:]:
        leaders.append(kvbm.KvbmLeader.create(endpoint=endpoint_of(folder), init_timeout_secs=30, **MODEL))
        remove(folder)
    assert [leader.num_host_blocks for leader in leaders] == [8, 8]
    assert os.listdir(runtime) == [meeting[0].name]
    for half in leaders + workers:
        half.stop()


def test_names_that_are_no_names_of_files_become_some(runtime):
    folders = {meeting_folder(name) for name in ("../../etc", "a/b", "x" * 41, "")}
    assert len(folders) == 4
    assert all(str(folder.parent) == runtime for folder in folders)


def test_without_a_runtime_folder_it_lies_with_temporary_files(monkeypatch, runtime):
    monkeypatch.setenv("TMPDIR", runtime)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for value in ("", "/nowhere"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert str(meeting_folder("e").parent) == runtime


def test_a_folder_that_others_can_enter_is_refused(runtime):
    folder = meeting_folder("e")
    folder.chmod(0o750)
    with pytest.raises(RuntimeError, match="yours alone"):
        meeting_folder("e")
    folder.rmdir()
    folder.symlink_to(runtime)
    with pytest.raises(RuntimeError, match="yours alone"):
        meeting_folder("e")


def test_a_path_that_is_too_long_for_a_socket_is_refused(monkeypatch, runtime):
    longer = os.path.join(runtime, "x" * 100)
    os.mkdir(longer)
    monkeypatch.setenv("XDG_RUNTIME_DIR", longer)
    with pytest.raises(RuntimeError, match="XDG_RUNTIME_DIR"):
        meeting_folder("e")
    assert os.listdir(longer) == []


# --- the secret


def config_of(run, index=0):
    return types.SimpleNamespace(
        instance_id=run,
        kv_transfer_config=types.SimpleNamespace(engine_id="fixed"),
        parallel_config=types.SimpleNamespace(data_parallel_index=index),
    )


def test_with_ipc_there_is_no_secret(runtime):
    meeting = meeting_of(config_of("a"), "ipc")
    assert (meeting.endpoint, meeting.secret) == (endpoint_of(meeting.folder), "")
    assert os.listdir(meeting.folder) == []


def test_with_a_port_each_run_has_a_secret_in_a_file_of_its_owner(runtime):
    first, again, other = (meeting_of(config_of(run), "tcp://127.0.0.1:5600") for run in ("a", "a", "b"))
    assert first.endpoint == "tcp://127.0.0.1:5600"
    assert first.secret == again.secret != other.secret
    assert len(bytes.fromhex(first.secret)) == 32
    assert (first.folder / "secret").stat().st_mode & 0o777 == 0o600
    assert first.secret not in repr(first) + str(first)
    for meeting in (first, other):
        remove(meeting.folder)
    assert os.listdir(runtime) == []
    assert meeting_of(config_of("a"), "tcp://127.0.0.1:5600").secret != first.secret, "drawn anew"


def test_engines_that_run_data_parallel_have_a_port_each(runtime):
    assert meeting_of(config_of("a_dp2", 2), "tcp://[::1]:5600").endpoint == "tcp://[::1]:5602"
    with pytest.raises(ValueError, match="65536"):
        meeting_of(config_of("a_dp1", 1), "tcp://127.0.0.1:65535")


DRAW = """
import pathlib, sys
from kvbm.vllm_integration.endpoint import shared_secret
print(shared_secret(pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def drawing(folder):
    """A process that asks for the folder's secret, and lives until its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", DRAW, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(process):
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


def test_whoever_comes_first_all_have_one_secret(runtime):
    folder = meeting_folder("a")
    processes = [drawing(folder) for _ in range(4)]
    found = {process.stdout.readline() for process in processes}
    assert len(found) == 1 and found == {shared_secret(folder) + "\n"}
    for process in processes:
        end(process)


def test_the_secret_of_a_run_that_was_killed_is_not_believed_and_goes(runtime):
    folders = {name: meeting_folder(f"fixed-{name}") for name in ("killed", "same", "alive")}
    processes = {name: drawing(folder) for name, folder in folders.items()}
    drawn = {name: process.stdout.readline().strip() for name, process in processes.items()}
    for name in ("killed", "same"):
        processes[name].kill()
        end(processes[name])
    assert all((folder / "secret").exists() for folder in folders.values())
    # The next run, which happens to have the name of one that was killed.
    meeting = meeting_of(config_of("same"), "tcp://127.0.0.1:5600")
    assert meeting.folder == folders["same"] and meeting.secret != drawn["same"]
    assert not folders["killed"].exists()
    assert shared_secret(folders["alive"]) == drawn["alive"]
    end(processes["alive"])


@pytest.mark.parametrize("text", ["", "{pid} {born}\n", "{pid} {later}\n" + 64 * "a" + "\n", "{pid} {born}\n" + 63 * "a" + "\n"])
def test_a_torn_file_or_one_of_a_process_that_is_another_now_is_not_believed(runtime, text):
    folder = meeting_folder("a")
    born = meeting_place.born(os.getpid())
    file = folder / "secret"
    file.touch(0o600)
    file.write_text(text.format(pid=os.getpid(), born=born, later=born + 1))
    assert "aaaa" not in shared_secret(folder)
    assert shared_secret(folder) == shared_secret(folder)


def test_what_a_run_leaves_while_another_takes_the_folder_away_is_made_again(runtime, monkeypatch):
    read = meeting_place.read_secret
    gone = []

    def late(folder, directory):
        if not gone:
            gone.append(folder)
            folder.rmdir()
        return read(folder, directory)

    monkeypatch.setattr(meeting_place, "remove_left_secrets", lambda: None)
    monkeypatch.setattr(meeting_place, "read_secret", late)
    meeting = meeting_of(config_of("a"), "tcp://127.0.0.1:5600")
    assert gone and shared_secret(meeting.folder) == meeting.secret


def test_a_file_that_others_can_read_or_that_is_none_is_refused(runtime, tmp_path):
    folder = meeting_folder("a")
    secret = shared_secret(folder)
    file = folder / "secret"
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(RuntimeError, match="secret is not a file that is yours alone"):
            shared_secret(folder)
    elsewhere = tmp_path / "secret"
    file.chmod(0o600)
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(RuntimeError, match="yours alone") as caught:
        shared_secret(folder)
    assert secret not in str(caught.value)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(RuntimeError, match="yours alone"):
        shared_secret(folder)
    remove_left_secrets()
    assert file.exists(), "it is somebody's"


def test_a_file_of_another_owner_is_not_ours():
    def found(mode, owner):
        return os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))

    me = os.getuid()
    assert meeting_place.is_ours_alone(found(stat.S_IFREG | 0o600, me), stat.S_ISREG)
    assert not meeting_place.is_ours_alone(found(stat.S_IFREG | 0o600, me + 1), stat.S_ISREG)
    assert not meeting_place.is_ours_alone(found(stat.S_IFREG | 0o600, me), stat.S_ISDIR)


def test_a_worker_with_another_secret_is_refused_and_told_what_to_do(capfd):
    address = free_address()
    tensor = np.zeros((16, 64), dtype=np.uint8)
    worker = kvbm.KvbmWorker.create(rank=0, num_blocks=16, groups=[(64, [(tensor.ctypes.data, 64)])])
    worker.connect(address, "of another run")
    with pytest.raises(kvbm.TimeoutError, match="rank 0 of 1 did not come"):
        kvbm.KvbmLeader.create(endpoint=address, secret="of this run", init_timeout_secs=3, **MODEL)
    worker.stop()
    said = capfd.readouterr().err
    assert "the leader does not take rank 0: " in said
    assert "the worker's secret is not the leader's: they are of two runs; give each run an endpoint of its own" in said
    assert "of another run" not in said and "of this run" not in said


def test_executors_of_several_hosts_are_refused():
    def parallel(backend, nnodes=1):
        return types.SimpleNamespace(distributed_executor_backend=backend, nnodes=nnodes)

    assert not uses_channel(parallel("uni"))
    assert uses_channel(parallel("mp"))
    for other in (parallel("ray"), parallel("mp", 2), parallel(object), parallel(None)):
        with pytest.raises(NotImplementedError, match="not supported"):
            uses_channel(other)


WORKER = """
import sys
import numpy as np
import kvbm

tensor = np.zeros((16, 64), dtype=np.uint8)
worker = kvbm.KvbmWorker.create(rank=0, num_blocks=16, groups=[(64, [(tensor.ctypes.data, 64)])])
worker.connect(sys.argv[1], sys.argv[2])
for line in sys.stdin:  # a step, and what it computes
    step, *writes = line.split()
    worker.begin_step(bytes.fromhex(step))
    if worker.has_loads:
        worker.all_layers_needed()
    for write in writes:
        block, value = write.split("=")
        tensor[int(block)] = int(value)
    worker.end_step()
    print(*tensor[:, 63], flush=True)
worker.stop()
"""

MODEL = {"model": "m", "dtype": "u8", "scheme": "test", "block_tokens": 4, "window_blocks": [0], "host_blocks": 8}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_a_worker_in_another_process(runtime, kind):
    folder = meeting_folder("e")
    endpoint, secret = (endpoint_of(folder), "") if kind == "ipc" else (free_address(), "of this run")
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, endpoint, secret],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    leader = kvbm.KvbmLeader.create(endpoint=endpoint, secret=secret, init_timeout_secs=30, **MODEL)
    remove(folder)  # who is connected stays so

    def step(request, blocks, computed, scheduled, *writes):
        plan = leader.build_step([(request, [blocks], True, computed, scheduled)])
        print(plan.hex(), *writes, file=process.stdin, flush=True)
        return [int(value) for value in process.stdout.readline().split()]

    hashes = [bytes([i]) * 32 for i in range(2)]
    leader.extend("a", hashes)
    assert step("a", [0, 1], 0, 8, "0=7", "1=8")[:2] == [7, 8]
    assert not leader.finished("a")
    deadline = time.monotonic() + 10
    while "stores are under way":
        leader.extend("b", hashes)
        tokens, _ = leader.match("b", 0, 9)
        if tokens == 8 or time.monotonic() > deadline:
            break
        leader.finished("b")
    assert tokens == 8
    leader.allocated("b", [[10, 11, 12]], tokens)
    assert step("b", [10, 11, 12], 8, 1)[10:12] == [7, 8]
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
    leader.stop()
    leader.stop()
    with pytest.raises(kvbm.Error, match="was stopped"):
        leader.statistics()


def test_a_port_needs_a_secret():
    with pytest.raises(kvbm.InvalidArgumentError, match="secret"):
        kvbm.KvbmLeader.create(endpoint=free_address(), init_timeout_secs=1, **MODEL)


def test_a_worker_that_does_not_come_is_named(runtime):
    folder = meeting_folder("e")
    with pytest.raises(kvbm.Error, match="rank 0 of 1 .* DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS") as caught:
        kvbm.KvbmLeader.create(endpoint=endpoint_of(folder), init_timeout_secs=0.05, **MODEL)
    assert caught.value.code == "timeout"
    assert os.listdir(folder) == []


def test_ctrl_c_ends_the_wait_for_workers(runtime):
    def interrupt(signum, frame):
        raise KeyboardInterrupt

    folder = meeting_folder("e")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            kvbm.KvbmLeader.create(endpoint=endpoint_of(folder), init_timeout_secs=60, **MODEL)
        assert time.monotonic() - start < 30
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert os.listdir(folder) == []
    with pytest.raises(kvbm.Error, match="did not come"):  # nothing of it is left
        kvbm.KvbmLeader.create(endpoint=endpoint_of(folder), init_timeout_secs=0.05, **MODEL)


def test_a_leader_has_workers_here_or_elsewhere():
    tensor = np.zeros((16, 64), dtype=np.uint8)
    worker = kvbm.KvbmWorker.create(rank=0, num_blocks=16, groups=[(64, [(tensor.ctypes.data, 64)])])
    for where in ({}, {"workers": [worker], "endpoint": "ipc:///tmp/x"}):
        with pytest.raises(kvbm.Error, match="either"):
            kvbm.KvbmLeader.create(**where, **MODEL)
    worker.stop()
