# SPDX-License-Identifier: Apache-2.0
"""Runs of the real engine, each in a process of its own, and what they have to give."""

import concurrent.futures
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from engine_run import Options, engine_environment

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT_SECONDS = 300


class EngineRuns:
    """Runs of the engine, each in a fork of one process that has imported it: an import takes longer than most runs."""

    def __init__(self):
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, str(HERE / "engine_run.py"), "--serve", str(theirs.fileno())],
                env={**kept_environment(), **engine_environment()},
                pass_fds=[theirs.fileno()],
            )

    def run(self, variables, options):
        """The exit code and what was written to standard output and error."""
        environment = {**kept_environment(), **engine_environment(Options(**options)), **variables}
        job = {"options": options, "environment": environment, "seconds": TIMEOUT_SECONDS}
        pipes = [os.pipe() for _ in range(2)]
        try:
            socket.send_fds(self._connection, [json.dumps(job).encode()], [write for _, write in pipes])
        finally:
            for _, write in pipes:
                os.close(write)
        with concurrent.futures.ThreadPoolExecutor(2) as readers:
            output, errors = readers.map(read_to_end, [read for read, _ in pipes])
        code = self._connection.recv(64)
        if not code:
            pytest.fail(f"the process that runs the engine ended with {self._server.wait()}: {errors}")
        return int(code), output, errors

    def close(self):
        self._connection.close()
        self._server.wait(TIMEOUT_SECONDS)


def read_to_end(descriptor):
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read()


def kept_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(("DYN_KVBM_", "KVBM_"))}


RUNS = functools.cache(EngineRuns)


@pytest.fixture(scope="session", autouse=True)
def end_of_runs():
    yield
    if RUNS.cache_info().currsize:
        RUNS().close()


def run_engine(variables=None, **options):
    """The report of one run. variables: of the environment, such as DYN_KVBM_CPU_CACHE_GB."""
    code, output, errors = RUNS().run(variables or {}, options)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if code or not lines:
        pytest.fail(f"the engine ended with {code}:\n{output[-2000:]}\n{errors[-6000:]}")
    report = json.loads(lines[-1].removeprefix("RESULT "))
    report["stderr"] = errors
    return report


class Plain:
    """Runs without kvbm, each made once: what every other run has to give."""

    def __init__(self):
        self._outputs = {}

    def outputs(self, **options):
        key = json.dumps(options, sort_keys=True)
        if key not in self._outputs:
            self._outputs[key] = run_engine(connector=False, **{**options, "rounds": 1})["rounds"][0]["outputs"]
        return self._outputs[key]


@pytest.fixture(scope="session")
def plain():
    return Plain()
