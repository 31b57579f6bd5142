#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Makefile, scripts/setup and scripts/run_gpu_tests, run with stand-ins for the tools that they call.

  front_door_test.py [unittest arguments]
"""

import json
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


class GpuBundleTest(FrontDoorTest):
    """What runs on a machine with a GPU. The programs write what a run on one has written."""

    RESULTS = ROOT / "bench" / "results" / "gpu-h200"
    TEST = 'echo "[==========] Running {} tests from 1 test suite."; echo "require|${{KVBM_REQUIRE-}}" >>"${{LOG}}"; exit {}'

    def setUp(self):
        super().setUp()
        for script in ("run_gpu_tests", "gpu_figures.py"):
            shutil.copy(ROOT / "scripts" / script, self.folder)
        (self.folder / "commit").write_text("abc1234\n")
        for name, tests in (("kvbm_one_gpu_test", 2), ("kvbm_other_gpu_test", 0)):
            self.stand_in(name, self.TEST.format(tests, 0))
        self.stand_in("kvbm", "echo healthy")
        self.stand_in("bin/nvidia-smi", 'echo "A GPU, 580"')
        self.stand_in("kvbm_kernels_bench", f"cat {self.RESULTS}/kvbm_kernels_bench.json")
        self.stand_in("kvbm_cuda_bench", f'for word; do [[ "${{word}}" != --benchmark_out=* ]] || cp {self.RESULTS}/kvbm_cuda_bench.json "${{word#*=}}"; done')
        self.stand_in("kvbench", f'echo columns; echo "Done." >&2; for word; do [[ "${{word}}" != *.json ]] || cp "{self.RESULTS}/${{word##*/}}" "${{word}}"; done')

    def bundle(self, *arguments):
        environment = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LOG": str(self.log)}
        return subprocess.run(
            [self.folder / "run_gpu_tests", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )

    def calls(self):
        return [line.rstrip("|").split("|") for line in self.log.read_text().splitlines()]

    def test_one_command_runs_tests_and_benchmarks_and_writes_json(self):
        run = self.bundle("--bench", "results")
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        results = self.folder / "results"
        for name in ("kvbench", "kvbench-64", "kvbm_cuda_bench", "kvbm_kernels_bench", "figures"):
            json.loads((results / f"{name}.json").read_text())
        self.assertEqual(json.loads((results / "figures.json").read_text()), json.loads((self.RESULTS / "figures.json").read_text()))
        about = (results / "about").read_text().splitlines()
        self.assertEqual(about[:2], ["abc1234", "run_gpu_tests --bench results"])
        self.assertRegex(about[2], r"^\d{4}-\d\d-\d\d .* UTC$")
        self.assertEqual(about[3:], ["A GPU, 580"])
        self.assertIn("healthy", run.stdout)
        grids = [call for call in self.calls() if call[0] == "kvbench"]
        self.assertEqual(len(grids), 2)
        for pattern in ("fc_to_fc", "lw_to_fc", "fc_to_lw", "nhd_to_universal", "universal_to_nhd"):
            self.assertIn(pattern, " ".join(grids[0]))

    def test_without_bench_tests_run_alone_and_none_may_be_skipped(self):
        self.assertEqual(self.bundle().returncode, 0)
        self.assertEqual({call[0] for call in self.calls()}, {"kvbm", "kvbm_one_gpu_test", "kvbm_other_gpu_test", "require"})
        self.assertEqual([call for call in self.calls() if call[0] == "require"], [["require", "gpu"]] * 2)

    def test_a_program_that_fails_is_named(self):
        self.stand_in("kvbm_one_gpu_test", self.TEST.format(2, 1))
        run = self.bundle()
        self.assertEqual((run.returncode, run.stderr), (1, "failed: kvbm_one_gpu_test (exit 1)\n"))

    def test_a_benchmark_that_fails_is_named(self):
        self.stand_in("kvbm_cuda_bench", "exit 3")
        run = self.bundle("--bench")
        self.assertEqual(run.returncode, 1)
        self.assertIn("failed: kvbm_cuda_bench\n", run.stderr)
        self.assertIn("failed: gpu_figures.py\n", run.stderr)

    def test_a_filter_runs_what_fits_it_with_its_output(self):
        self.stand_in("kvbm_one_gpu_test", "echo 6 blocks there and back; " + self.TEST.format(1, 0))
        self.stand_in("kvbm_other_gpu_test", "echo nothing here; " + self.TEST.format(0, 0))
        run = self.bundle("--filter", "*fused_copy*")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("6 blocks there and back\n", run.stdout)
        self.assertNotIn("nothing here", run.stdout)
        self.assertNotIn("6 blocks", self.bundle().stdout)

    def test_a_filter_that_fits_no_test_fails(self):
        self.stand_in("kvbm_one_gpu_test", self.TEST.format(0, 0))
        run = self.bundle("--filter", "*fused_copy*")
        self.assertEqual((run.returncode, run.stderr), (1, "failed: no test has a name like *fused_copy*\n"))
        self.assertIn("--gtest_filter=*fused_copy*", self.calls()[1])


if __name__ == "__main__":
    unittest.main()
