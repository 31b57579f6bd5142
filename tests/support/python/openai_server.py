# SPDX-License-Identifier: Apache-2.0
"""vLLM's own OpenAI server, as a process that goes away again with all that it started."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import requests


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def processes_of_session(session: int) -> list[int]:
    """Processes that have not ended."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # pid (name) state parent group session ...; the name may have spaces.
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(entry.name))
    return found


class OpenAiServer:
    """A context manager. `base_url` is ready when it is entered; on leaving, whatever is left of it has an end.

    folder: for the log. arguments: of the server. variables: of its environment. The first fault
    when it starts, or leaves a process behind, is a RuntimeError with the end of the log.
    """

    def __init__(self, folder: pathlib.Path, model: pathlib.Path, arguments: list[str], variables: dict[str, str]):
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.files_left: list[str] = []  # in its own temporary folder, known on leaving
        # Not below `folder`: names of sockets are short.
        self._temporary = pathlib.Path(tempfile.mkdtemp(prefix="kvbm-"))
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port), *arguments]
        self._variables = {**variables, "TMPDIR": str(self._temporary)}
        self._process = None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _fail(self, what: str):
        raise RuntimeError(f"{what}; its log ends with:\n{self.log_text()[-6000:]}")

    def __enter__(self, start_seconds: float = 240):
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._variables, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + start_seconds
        try:
            while True:
                if self._process.poll() is not None:
                    self._fail(f"the server ended with {self._process.returncode}")
                try:
                    if requests.get(self.base_url + "/health", timeout=5).ok:
                        return self
                except requests.ConnectionError:
                    pass
                if time.monotonic() > deadline:
                    self._fail(f"the server is not ready after {start_seconds} s")
                time.sleep(0.2)
        except BaseException:
            self._kill()
            raise

    def _kill(self):
        for process in processes_of_session(self._process.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __exit__(self, kind, error, trace):
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while self._process.poll() is None or processes_of_session(self._process.pid):
            if time.monotonic() > deadline:
                left = processes_of_session(self._process.pid)
                self._kill()
                if error is None:
                    self._fail(f"processes {left} are left 60 s after the end of the server")
                return
            time.sleep(0.1)
        self.files_left = sorted(str(path.relative_to(self._temporary)) for path in self._temporary.rglob("*"))
        shutil.rmtree(self._temporary)
