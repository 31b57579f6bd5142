#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes python/kvbm/_core.pyi from the installed kvbm._core, with nanobind's stubgen. To be run by a Python that has both.

  scripts/make_stubs.py           writes the file anew
  scripts/make_stubs.py --check   exit status 1 and a diff if it is not what would be written
"""

import argparse
import difflib
import importlib
import pathlib
import sys

from nanobind.stubgen import StubGen

STUBS = pathlib.Path(__file__).resolve().parent.parent / "python" / "kvbm" / "_core.pyi"
HEADER = "# SPDX-License-Identifier: Apache-2.0\n# Written by scripts/make_stubs.py.\n"


def stubs() -> str:
    generator = StubGen(module=importlib.import_module("kvbm._core"))
    generator.put(generator.module)
    return HEADER + generator.get()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    made = stubs()
    if not options.check:
        STUBS.write_text(made)
        return 0
    kept = STUBS.read_text() if STUBS.exists() else ""
    diff = difflib.unified_diff(kept.splitlines(True), made.splitlines(True), str(STUBS), "what kvbm._core has")
    sys.stdout.writelines(diff)
    return 1 if kept != made else 0


if __name__ == "__main__":
    sys.exit(main())
