# SPDX-License-Identifier: Apache-2.0
"""Where a leader and the workers of other processes of this host meet."""

import hashlib
import os
import pathlib
import re
import stat
import tempfile

MAX_PATH_BYTES = 107  # of a socket


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
    """The folder of an engine's socket, which only its owner can enter; made by whoever is the first.

    Raises RuntimeError if it is somebody else's or open to others.
    """
    name = run if re.fullmatch(r"[\w.-]{1,40}", run, re.ASCII) else None
    name = name or hashlib.sha256(run.encode()).hexdigest()[:32]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    parent = pathlib.Path(runtime if runtime and os.access(runtime, os.W_OK | os.X_OK) else tempfile.gettempdir())
    folder = parent / f"kvbm-{os.getuid()}-{name}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise RuntimeError(f"{folder} is not a folder that is yours alone: remove it") from None
    if len(os.fsencode(folder / "leader")) > MAX_PATH_BYTES:
        folder.rmdir()
        raise RuntimeError(f"{folder} is too long a path for a socket: set XDG_RUNTIME_DIR to a shorter one")
    return folder


def endpoint_of(folder: pathlib.Path) -> str:
    return f"ipc://{folder / 'leader'}"


def remove(folder: pathlib.Path):
    """Who is connected stays so. The leader does it when all have come, so that nothing is left whatever ends it; a
    worker does it when it ends, for a leader that never came."""
    try:
        (folder / "leader").unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        pass
