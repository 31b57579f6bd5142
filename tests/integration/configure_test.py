#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""cmake/cuda.cmake, configured with stand-ins for nvcc.

  configure_test.py [unittest arguments]
"""

import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Nothing is compiled: what asks for a toolkit is a macro here.
PROJECT = f"""
cmake_minimum_required(VERSION 3.25)
project(configure_test LANGUAGES NONE)
set(KVBM_WITH_CUDA AUTO CACHE STRING "")
macro(enable_language)
endmacro()
macro(find_package)
  set(CUDAToolkit_VERSION 12.4)
endmacro()
include("{ROOT}/cmake/cuda.cmake")
message(STATUS "state ${{kvbm_state_CUDA}}; nvcc ${{KVBM_NVCC}}; runtime ${{CMAKE_CUDA_RUNTIME_LIBRARY}}")
message(STATUS "backend ${{kvbm_cuda_line}}")
"""

ALL = (75, 80, 86, 89, 90, 100, 120)


class ConfigureTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvbm_configure_")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "project").mkdir()
        (self.folder / "project/CMakeLists.txt").write_text(PROJECT)
        self.runs = 0

    def toolkit(self, name, versions=ALL):
        """A folder with an nvcc that knows these SM versions."""
        nvcc = self.folder / name / "bin/nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text("#!/bin/sh\n" + "".join(f"echo sm_{version}\n" for version in versions))
        nvcc.chmod(0o755)
        return nvcc.parent.parent

    def configure(self, *options, **variables):
        """Whether it succeeded, and what it said in one line."""
        names = ("CUDA_PATH", "CUDA_HOME", "CUDA_ARCHS", "KVBM_REQUIRE_CUDA")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment.update({name: str(value) for name, value in variables.items()})
        self.runs += 1
        run = subprocess.run(
            ["cmake", "-S", self.folder / "project", "-B", self.folder / f"build{self.runs}", *options],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        )
        return run.returncode == 0, " ".join(run.stdout.split())

    def without_nvcc(self, *options, **variables):
        nowhere = self.folder / "nowhere"
        # The build program would be looked for there, too.
        return self.configure("-DCMAKE_MAKE_PROGRAM=make", f"-DCMAKE_FIND_ROOT_PATH={nowhere}", "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=ONLY", *options, **variables)

    def test_without_nvcc_cuda_is_left_out_unless_it_is_asked_for(self):
        ok, said = self.without_nvcc()
        self.assertTrue(ok, said)
        self.assertIn("state LeftOut;", said)
        self.assertIn("backend off (AUTO): no nvcc", said)
        ok, said = self.without_nvcc("-DKVBM_REQUIRE_CUDA=OFF", KVBM_REQUIRE_CUDA="1")
        self.assertTrue(ok, said)
        for options, variables in (
            (["-DKVBM_REQUIRE_CUDA=ON"], {}),
            ([], {"KVBM_REQUIRE_CUDA": "1"}),
            (["-DKVBM_WITH_CUDA=ON"], {}),
            (["-DKVBM_WITH_CUDA=OFF", "-DKVBM_REQUIRE_CUDA=ON"], {}),
        ):
            ok, said = self.without_nvcc(*options, **variables)
            self.assertFalse(ok, said)
            self.assertIn("CUDA is asked for", said)
            self.assertIn("or set CUDA_PATH to it", said)

    def test_the_toolkit_is_that_of_cuda_path_then_of_cuda_home(self):
        path, home = self.toolkit("path"), self.toolkit("home")
        for variables, toolkit in (({"CUDA_PATH": path}, path), ({"CUDA_HOME": home}, home), ({"CUDA_PATH": path, "CUDA_HOME": home}, path)):
            ok, said = self.configure(**variables)
            self.assertTrue(ok, said)
            self.assertIn(f"state Built; nvcc {toolkit}/bin/nvcc; runtime Static", said)

    def test_it_is_built_for_the_versions_that_are_asked_for_and_known(self):
        everything, older = self.toolkit("everything"), self.toolkit("older", ALL[:5])
        for toolkit, variables, line in (
            (everything, {}, "SM 80 86-real 89-real 90-real 100-real 120-real"),
            (older, {}, "SM 80 86-real 89-real 90-real, left out as not known to this toolkit: 100 120"),
            (everything, {"CUDA_ARCHS": "90"}, "SM 90"),
            (everything, {"CUDA_ARCHS": "100,75"}, "SM 75 100-real"),
        ):
            ok, said = self.configure(CUDA_PATH=toolkit, **variables)
            self.assertTrue(ok, said)
            self.assertTrue(said.partition("backend ")[2].startswith(f"on (AUTO): 12.4, {line} -- Configuring done"), said)
        ok, said = self.configure("-DCUDA_ARCHS=90", CUDA_PATH=everything, CUDA_ARCHS="80")
        self.assertIn("SM 90 --", said)
        ok, said = self.configure(CUDA_PATH=older, CUDA_ARCHS="120")
        self.assertFalse(ok, said)
        self.assertIn("CUDA_ARCHS=120 names no SM version that", said)


if __name__ == "__main__":
    unittest.main()
