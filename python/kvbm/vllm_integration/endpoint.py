# SPDX-License-Identifier: Apache-2.0
"""Where a leader and the workers of other processes of this host meet, and what they have to know there."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass

MAX_PATH_BYTES = 107  # of a socket
MAX_PORT = 65535
SECRET_BYTES = 32


@dataclass(frozen=True)
class Meeting:
    endpoint: str
    secret: str  # of this run; empty with ipc, where the folder says who may come
    folder: pathlib.Path

    def __repr__(self):  # never the secret
        return f"Meeting({self.endpoint!r})"


def meeting_of(vllm_config, endpoint: str) -> Meeting:
    """Where the run's leader and workers meet. The same for all of them, whoever is the first.

    endpoint: "ipc", or "tcp://address:port" of the first of the engines that run data-parallel.
    """
    run = run_of(vllm_config)
    if endpoint == "ipc":
        folder = meeting_folder(run)
        return Meeting(endpoint_of(folder), "", folder)
    address, _, port = endpoint.rpartition(":")
    port = int(port) + getattr(vllm_config.parallel_config, "data_parallel_index", 0)
    if port > MAX_PORT:
        raise ValueError(f"{endpoint} leaves no port for this data-parallel engine: {port} is none")
    remove_left_secrets()
    while True:
        folder = meeting_folder(run)
        try:
            return Meeting(f"{address}:{port}", shared_secret(folder), folder)
        except FileNotFoundError:
            continue  # another start has taken the folder for a dead run's, as it was until a moment ago


def uses_channel(parallel_config) -> bool:
    """Whether the engine has its workers in other processes than its scheduler. Raises NotImplementedError for more
    than one host."""
    backend = parallel_config.distributed_executor_backend
    if backend == "uni":
        return False
    if backend == "mp" and getattr(parallel_config, "nnodes", 1) == 1:
        return True
    raise NotImplementedError(f"workers of the executor {backend!r} are not supported: uni, and mp on one host are")


def run_of(vllm_config) -> str:
    """One run of one engine: its id, which a user may fix, and what vLLM draws for each run and hands to its workers.
    """
    return f"{vllm_config.kv_transfer_config.engine_id}-{vllm_config.instance_id}"


def meeting_folder(run: str) -> pathlib.Path:
    """The folder of an engine's socket or secret, which only its owner can enter; made by whoever is the first.

    Raises RuntimeError if it is somebody else's or open to others.
    """
    name = run if re.fullmatch(r"[\w.-]{1,40}", run, re.ASCII) else None
    name = name or hashlib.sha256(run.encode()).hexdigest()[:32]
    folder = runtime_folder() / f"{folder_prefix()}{name}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not is_ours_alone(folder.lstat(), stat.S_ISDIR):
            raise RuntimeError(f"{folder} is not a folder that is yours alone: remove it") from None
    if len(os.fsencode(folder / "leader")) > MAX_PATH_BYTES:
        folder.rmdir()
        raise RuntimeError(f"{folder} is too long a path for a socket: set XDG_RUNTIME_DIR to a shorter one")
    return folder


def runtime_folder() -> pathlib.Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return pathlib.Path(runtime if runtime and os.access(runtime, os.W_OK | os.X_OK) else tempfile.gettempdir())


def endpoint_of(folder: pathlib.Path) -> str:
    return f"ipc://{folder / 'leader'}"


def remove(folder: pathlib.Path):
    """Who is connected stays so. The leader does it when all have come, so that nothing is left whatever ends it; a
    worker does it when it ends, for a leader that never came."""
    try:
        for name in ("leader", "secret"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        pass


# --- the secret
#
# A file in the folder holds it: who drew it, and what. Leader and workers are processes that come in any order, so each
# looks under a lock whether there is one, and draws it otherwise. One whose drawer does not live any more is of a run that
# was killed: nobody believes it, and the next start removes it. The drawer of a run that lives does, as a run ends with any
# of its processes.


def shared_secret(folder: pathlib.Path) -> str:
    """The secret of the run that meets in the folder: drawn by the first who asks.

    Raises RuntimeError if a file is in its place that is somebody else's or open to others.
    """
    with locked(folder) as directory:
        secret = read_secret(folder, directory)
        if secret is not None:
            return secret
        with contextlib.suppress(FileNotFoundError):
            os.unlink("secret", dir_fd=directory)  # a dead run's
        secret = secrets.token_hex(SECRET_BYTES)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open("secret", flags, 0o600, dir_fd=directory), "w") as file:
            file.write(f"{os.getpid()} {born(os.getpid())}\n{secret}\n")
        return secret


def read_secret(folder: pathlib.Path, directory: int) -> str | None:
    """None if there is none that a living process has drawn. Requires: the lock of the folder."""
    try:
        descriptor = os.open("secret", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError:
        raise foreign(folder) from None  # a link, among others
    with open(descriptor) as file:
        if not is_ours_alone(os.fstat(descriptor), stat.S_ISREG):
            raise foreign(folder)
        found = re.fullmatch(rf"(\d+) (\d+)\n([0-9a-f]{{{2 * SECRET_BYTES}}})\n", file.read(4096))
    if found is None or born(int(found[1])) != int(found[2]):
        return None
    return found[3]


def remove_left_secrets():
    """Removes what runs that were killed before all had come have left."""
    for folder in runtime_folder().glob(f"{folder_prefix()}*"):
        with contextlib.suppress(OSError, RuntimeError):
            if not is_ours_alone(folder.lstat(), stat.S_ISDIR) or not (folder / "secret").exists():
                continue
            with locked(folder) as directory:
                if read_secret(folder, directory) is None:
                    remove(folder)


@contextlib.contextmanager
def locked(folder: pathlib.Path):
    """The folder's descriptor, held by one process at a time; the lock goes with whoever dies."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(directory)


def born(pid: int) -> int | None:
    """When a process has started, in ticks since the machine has: with its id it names it for good. None: it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def folder_prefix() -> str:
    return f"kvbm-{os.getuid()}-"


def is_ours_alone(found: os.stat_result, is_kind) -> bool:
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def foreign(folder: pathlib.Path) -> RuntimeError:
    return RuntimeError(f"{folder / 'secret'} is not a file that is yours alone: remove it")
