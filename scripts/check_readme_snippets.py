#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the C++ out of README.md, so that the build compiles it and a test runs it.

  scripts/check_readme_snippets.py --extract README.md OUT_DIR   writes snippet_<n>.cpp per ```cpp block, prints the names
  scripts/check_readme_snippets.py --self-test

A block with `int main` is taken whole. Any other block is put into a function: its #include lines go to the top.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile


def blocks(text):
    """(line of the first line, code) of every ```cpp block."""
    found, start, lines = [], None, []
    for number, line in enumerate(text.splitlines(), 1):
        if start is None and re.match(r"^\s*```(cpp|c\+\+)\s*$", line):
            start, lines = number + 1, []
        elif start is not None and line.strip() == "```":
            found.append((start, lines))
            start = None
        elif start is not None:
            lines.append(line)
    if start is not None:
        raise SystemExit(f"line {start - 1}: the code block is not closed")
    return found


def program(name, start, lines):
    if any(re.search(r"\bint\s+main\s*\(", line) for line in lines):
        return "\n".join([f'#line {start} "{name}"', *lines]) + "\n"
    includes, body = [], [f'#line {start} "{name}"']
    for number, line in enumerate(lines, start):
        if line.lstrip().startswith("#include"):
            includes += [f'#line {number} "{name}"', line]
            body.append("")
        else:
            body.append(line)
    return "\n".join([*includes, "int main() {", *body, "  return 0;", "}"]) + "\n"


def extract(readme, out_dir):
    out_dir.mkdir(parents=True, exist_ok=True)
    names = []
    for index, (start, lines) in enumerate(blocks(readme.read_text()), 1):
        path = out_dir / f"snippet_{index}.cpp"
        text = program(readme.name, start, lines)
        if not path.is_file() or path.read_text() != text:  # Unchanged text keeps its time stamp.
            path.write_text(text)
        names.append(path.name)
    return names


def self_test(compiler):
    readme = """# Title
```cpp
#include <vector>

int main() { return std::vector<int>{}.empty() ? 0 : 1; }
```
```sh
make
```
```cpp
#include <string>
std::string word = "x";
```
```cpp
int x = no_such_name;
```
"""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "README.md").write_text(readme)
        names = extract(root / "README.md", root / "out")
        assert names == ["snippet_1.cpp", "snippet_2.cpp", "snippet_3.cpp"], names
        runs = [
            subprocess.run([compiler, "-std=c++20", "-fsyntax-only", root / "out" / name], capture_output=True, text=True)
            for name in names
        ]
        assert [run.returncode == 0 for run in runs] == [True, True, False], [run.stderr for run in runs]
        assert "README.md:15:9: error" in runs[2].stderr, runs[2].stderr
        (root / "README.md").write_text("```cpp\nint x;\n")
        try:
            extract(root / "README.md", root / "out")
        except SystemExit:
            pass
        else:
            raise AssertionError("an open block was accepted")
    print("self-test: a wrong snippet does not compile, and the error names its line in README.md")


def main():
    parser = argparse.ArgumentParser(description="Extract the C++ of README.md")
    parser.add_argument("--extract", nargs=2, type=pathlib.Path, metavar=("README", "OUT_DIR"))
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--compiler", default="c++")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test(arguments.compiler)
    elif arguments.extract:
        print("\n".join(extract(*arguments.extract)))
    else:
        parser.error("--extract or --self-test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
