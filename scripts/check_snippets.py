#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the C++ out of a document, so that the build compiles it and a test runs it.

  scripts/check_snippets.py --extract README.md OUT_DIR   writes <document>_<n>.cpp per program, prints the names
  scripts/check_snippets.py --self-test

A ```cpp block with `int main` is a program. All others of a document are one together, in their order, so that a later one
may use what an earlier one has declared: their #include lines go to the top.
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


def whole(name, start, lines):
    return "\n".join([f'#line {start} "{name}"', *lines]) + "\n"


def together(name, parts):
    includes, body = [], []
    for start, lines in parts:
        body.append(f'#line {start} "{name}"')
        for number, line in enumerate(lines, start):
            if line.lstrip().startswith("#include"):
                includes += [f'#line {number} "{name}"', line]
                body.append("")
            else:
                body.append(line)
    return "\n".join([*includes, "int main() {", *body, "  return 0;", "}"]) + "\n"


def programs(document):
    parts, found = [], []
    for start, lines in blocks(document.read_text()):
        if any(re.search(r"\bint\s+main\s*\(", line) for line in lines):
            found.append(whole(document.name, start, lines))
        else:
            parts.append((start, lines))
    return found + ([together(document.name, parts)] if parts else [])


def extract(document, out_dir):
    out_dir.mkdir(parents=True, exist_ok=True)
    names = []
    for index, text in enumerate(programs(document), 1):
        path = out_dir / f"{document.stem.lower()}_{index}.cpp"
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
std::string x = word + no_such_name;
```
"""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "README.md").write_text(readme)
        names = extract(root / "README.md", root / "out")
        assert names == ["readme_1.cpp", "readme_2.cpp"], names
        runs = [
            subprocess.run([compiler, "-std=c++20", "-fsyntax-only", root / "out" / name], capture_output=True, text=True)
            for name in names
        ]
        assert [run.returncode == 0 for run in runs] == [True, False], [run.stderr for run in runs]
        assert "README.md:15:24: error" in runs[1].stderr, runs[1].stderr
        assert runs[1].stderr.count("error") == 1, runs[1].stderr
        (root / "README.md").write_text("```cpp\nint x;\n")
        try:
            extract(root / "README.md", root / "out")
        except SystemExit:
            pass
        else:
            raise AssertionError("an open block was accepted")
    print("self-test: a wrong snippet does not compile, and the error names its line in the document")


def main():
    parser = argparse.ArgumentParser(description="Extract the C++ of a document")
    parser.add_argument("--extract", nargs=2, type=pathlib.Path, metavar=("DOCUMENT", "OUT_DIR"))
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
