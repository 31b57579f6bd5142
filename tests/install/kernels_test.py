#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs the kernels, and builds and runs a C program that has nothing else of kvbm.

  kernels_test.py --build DIR --compiler CXX [--flag FLAG]... [--static-library FILE]...
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
STRICT = ["-x", "c", "-std=c11", "-pedantic-errors", "-Wall", "-Wextra", "-Wstrict-prototypes", "-Werror"]


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


class InstalledKernels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="kvbm_install_")
        cls.addClassCleanup(folder.cleanup)
        cls.prefix = pathlib.Path(folder.name)
        run("cmake", "--install", ARGUMENTS.build, "--component", "kernels", "--prefix", cls.prefix)

    def call(self, *libraries):
        program = self.prefix / "caller"
        run(
            ARGUMENTS.compiler, *STRICT, *ARGUMENTS.flag, f"-I{self.prefix / 'include'}", HERE / "kernels_caller.c", "-x", "none",
            *libraries, "-o", program,
        )
        self.assertRegex(run(program), r"^(stub|cuda), batches (yes|no)\n$")

    def test_there_is_nothing_else(self):
        installed = {str(path.relative_to(self.prefix)) for path in self.prefix.rglob("*") if not path.is_dir()} - {"caller"}
        self.assertEqual(
            installed, {"include/kvbm/kernels.h", "lib/libkvbm_kernels.a", "lib/libkvbm_kernels.so", "lib/libkvbm_kernels.so.0"}
        )

    def test_a_c_program_takes_the_shared_library(self):
        self.call(f"-L{self.prefix / 'lib'}", f"-Wl,-rpath,{self.prefix / 'lib'}", "-lkvbm_kernels")

    def test_a_c_program_takes_the_static_library(self):
        self.call(self.prefix / "lib/libkvbm_kernels.a", *ARGUMENTS.static_library, "-lpthread", "-ldl", "-lrt")

    def test_the_shared_library_has_the_functions_of_the_header_alone(self):
        header = (self.prefix / "include/kvbm/kernels.h").read_text()
        declared = set(re.findall(r"(?m)^(?:int|void|bool) (kvbm_kernels_\w+)\(", header))
        listed = run("nm", "-D", "--defined-only", self.prefix / "lib/libkvbm_kernels.so")
        self.assertEqual({line.split()[-1] for line in listed.splitlines()}, declared)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--flag", action="append", default=[])
    parser.add_argument("--static-library", action="append", default=[])
    ARGUMENTS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
