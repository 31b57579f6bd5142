#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists by name which tests of a label did not run here, and why: so that no run passes for one that had a GPU.

  sentinel.py gpu PROGRAM...         programs of GoogleTest with the label gpu
  sentinel.py gpu --without-cuda     a build that leaves them out: their names are in the sources
  sentinel.py nixl
  sentinel.py documented             suites of GPU tests that docs/testing.md lacks, and those that it makes up

Exit status: 0 all ran; 77 some did not (ctest calls it skipped); 1 likewise, and KVBM_REQUIRE names the label,
or the documents are wrong.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIPPED = 77


def skipped_by(program, only=None):
    """(name, reason) of each test that the program skips; with `only` this one alone is run."""
    with tempfile.TemporaryDirectory(prefix="kvbm_sentinel_") as folder:
        report = pathlib.Path(folder) / "report.xml"
        arguments = [f"--gtest_output=xml:{report}"] + ([f"--gtest_filter={only}"] if only else [])
        environment = {name: value for name, value in os.environ.items() if name != "KVBM_REQUIRE"}
        subprocess.run([program, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=250)
        found = []
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            for skip in case.findall("skipped"):
                reason = skip.get("message", "").strip().splitlines()
                found.append((f"{case.get('classname')}.{case.get('name')}", reason[-1] if reason else "no reason"))
        return found


def first_test_of(program):
    listed = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, check=True, timeout=60).stdout
    suite, case = re.search(r"(?m)^(\S+\.).*\n  (\S+)", listed).groups()
    return suite + case


def not_run(programs):
    """The whole program is run only where its first test is skipped: where there is a GPU, ctest has run it."""
    for program in programs:
        name = pathlib.Path(program).name
        if skipped_by(program, only=first_test_of(program)):
            yield from ((f"{name}: {test}", reason) for test, reason in skipped_by(program))


def in_sources():
    for path in sorted(path for top in ("kernels", "src", "tests") for path in (ROOT / top).rglob("*_gpu_test.cpp")):
        names = re.findall(r"(?m)^(?:INSTANTIATE_)?(?:TYPED_)?TEST\w*\((\w+),\s*(\w+)", path.read_text())
        for name in dict.fromkeys(".".join(pair) for pair in names if pair[1] != "AreNotInThisBuild"):
            yield f"{path.relative_to(ROOT)}: {name}", "built without CUDA"


def wrongly_documented():
    table = (ROOT / "docs" / "testing.md").read_text().split("\n| program | tests | covers |\n|---|---|---|\n")[1]
    named = {suite for row in table.split("\n\n")[0].splitlines() for suite in re.findall(r"`(\w+)`", row.split(" | ")[1])}
    there = {name.split(": ")[1].split(".")[0] for name, _ in in_sources()}
    return sorted(there ^ named)


def main():
    label, arguments = sys.argv[1], sys.argv[2:]
    if label == "documented":
        wrong = wrongly_documented()
        print(f"docs/testing.md and the sources differ in suites of GPU tests: {wrong}" if wrong else "docs/testing.md names all suites")
        return 1 if wrong else 0
    if label == "nixl":
        missing = [("all tests of NIXL", "this version of kvbm has no NIXL adapter")]
    elif arguments == ["--without-cuda"]:
        missing = list(in_sources())
    else:
        missing = list(not_run(arguments))
    if not missing:
        print(f"{label}: every test ran")
        return 0
    print(f"{label}: {len(missing)} did not run")
    for name, reason in missing:
        print(f"  {name}: {reason}")
    return 1 if label in os.environ.get("KVBM_REQUIRE", "").split(",") else SKIPPED


if __name__ == "__main__":
    sys.exit(main())
