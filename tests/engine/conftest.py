# SPDX-License-Identifier: Apache-2.0
"""Runs of the real engine, each in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from engine_run import Options, engine_environment

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT_SECONDS = 300


def run_engine(variables=None, **options):
    """The report of one run. variables: of the environment, such as DYN_KVBM_CPU_CACHE_GB."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_KVBM_", "KVBM_"))}
    run = subprocess.run(
        [sys.executable, str(HERE / "engine_run.py"), json.dumps(options)],
        env={**kept, **engine_environment(Options(**options)), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    if run.returncode or not lines:
        pytest.fail(f"the engine ended with {run.returncode}:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}")
    report = json.loads(lines[-1].removeprefix("RESULT "))
    report["stderr"] = run.stderr
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
