#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Makefile and scripts/setup, run with stand-ins for the tools that they call.

  front_door_test.py [unittest arguments]
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class FrontDoorTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvbm_front_door_")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.log = self.folder / "log"
        self.log.touch()

    def stand_in(self, path, text=""):
        """A program that logs how it was called, and then does what `text` says."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name
        path.write_text(f'#!/bin/bash\nprintf "%s|" {name} "$@" >>"{self.log}"; echo >>"{self.log}"\n{text}\n')
        path.chmod(0o755)

    def run_logged(self, *command, **variables):
        environment = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LOG": str(self.log), **variables}
        run = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        self.assertEqual(run.returncode, 0, run.stdout)
        return [line.rstrip("|").split("|") for line in self.log.read_text().splitlines()]


class MakeTest(FrontDoorTest):
    TRACE = "a trace's $HOME.jsonl"

    def setUp(self):
        super().setUp()
        if shutil.which("make") is None:
            self.skipTest("there is no make here")
        shutil.copy(ROOT / "Makefile", self.folder)
        for tool in ("bin/cmake", "scripts/setup", "scripts/bench_figures.py", "build/release/apps/kvbm/kvbm"):
            self.stand_in(tool)
        self.stand_in("build/release/bench/kvbm_bench", 'echo "trace|${KVBM_BENCH_TRACE-}" >>"${LOG}"')

    def test_a_trace_may_have_any_name(self):
        given = "TRACE=" + self.TRACE.replace("$", "$$")
        calls = self.run_logged("make", "demo", given)
        self.assertEqual([call[1:3] for call in calls if call[0] == "kvbm"], [["replay", self.TRACE]])
        calls = self.run_logged("make", "bench", given)
        self.assertIn(["trace", self.TRACE], calls)

    def test_without_a_trace_one_is_generated(self):
        calls = self.run_logged("make", "demo")
        self.assertEqual([call[1] for call in calls if call[0] == "kvbm"], ["trace", "replay"])
        self.assertIn(["trace"], self.run_logged("make", "bench"))


class SetupTest(FrontDoorTest):
    RUNTIME = "libclang-rt-14-dev"

    def setUp(self):
        super().setUp()
        self.stand_in("bin/apt-cache", f'[[ -e "{self.folder}/lists" ]] && echo "Version: 1:14.0-55.7"')
        self.stand_in("bin/apt-get", f'[[ "$*" != *update* ]] || touch "{self.folder}/lists"')
        self.stand_in("bin/dpkg-query")
        self.stand_in("bin/sudo", 'exec "$@"')

    def set_up(self, group):
        calls = self.run_logged(ROOT / "scripts" / "setup", group)
        return [[word for word in call[1:] if not word.startswith("-")] for call in calls if call[0] == "apt-get"]

    def test_package_lists_that_do_not_know_clang_are_fetched_first(self):
        update, install = self.set_up("lint")
        self.assertEqual(update, ["update"])
        self.assertEqual((install[0], self.RUNTIME in install), ("install", True))

    def test_package_lists_that_know_clang_are_not_fetched(self):
        (self.folder / "lists").touch()
        (install,) = self.set_up("lint")
        self.assertIn(self.RUNTIME, install)

    def test_lists_that_cannot_be_fetched_leave_the_runtime_out(self):
        self.stand_in("bin/apt-get", '[[ "$*" != *update* ]]')
        update, install = self.set_up("lint")
        self.assertEqual(update, ["update"])
        self.assertNotIn(self.RUNTIME, install)

    def test_a_build_needs_no_clang(self):
        (install,) = self.set_up("build")
        self.assertNotIn(self.RUNTIME, install)


if __name__ == "__main__":
    unittest.main()
