#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the documents against the tree: what they name must exist.

  scripts/check_docs.py [--root DIR] [--program build/dev/apps/kvbm/kvbm]
  scripts/check_docs.py --self-test

Looks at code spans, code blocks and links of README.md, ARCHITECTURE.md, CONTRIBUTING.md, CHANGELOG.md and docs/, for:
paths of this repository, links and their anchors, targets and variables of make, presets, -DKVBM_... and other KVBM_
names, options of scripts, and, given --program, commands and options of kvbm. Placeholders (<x>, {a,b}) are skipped.
Packages that the build looks for are in docs/third-party.md.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
SHELL_BLOCKS = {"", "sh", "bash", "shell", "console", "text"}
FILE_SUFFIXES = (".hpp", ".cpp", ".h", ".cu", ".md", ".py", ".txt", ".cmake", ".toml", ".json", ".inc", ".pyi")
NAMES_OF_FILES = re.compile(r"^[\w.+-]+$")
PATH = re.compile(r"^[\w.+/-]+$")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
KVBM_NAME = re.compile(r"\bKVBM_[A-Z0-9_]*[A-Z0-9](?![A-Z0-9_]*[_*{<])\b")
SKIPPED_FOLDERS = {"build", ".git"}


class Tree:
    """What the repository has."""

    def __init__(self, root, program):
        self.root = root
        self.program = program
        self.helps = {}
        self.makefile = self.read("Makefile")
        self.targets = set(re.findall(r"^([a-z][\w-]*):", self.makefile, re.MULTILINE))
        presets = json.loads(self.read("CMakePresets.json") or "{}")
        self.presets = {p["name"] for p in presets.get("configurePresets", []) if not p.get("hidden")}
        self.top = {path.name for path in root.iterdir()} - SKIPPED_FOLDERS
        self.files = []
        for top in sorted(self.top):
            path = root / top
            self.files += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        self.names = {path.name for path in self.files}
        code = (p for p in self.files if p.suffix != ".md" and p.stat().st_size < 1_000_000)
        self.kvbm_names = set()
        for path in code:
            self.kvbm_names.update(re.findall(r"KVBM_[A-Z0-9_]*[A-Z0-9]", path.read_text(errors="replace")))
        # CMake puts some names together: KVBM_WITH_${word}.
        self.kvbm_names |= {f"KVBM_WITH_{word}" for word in re.findall(r"kvbm_backend\((\w+)", self.cmake_text())}
        self.scripts_text = self.makefile + "".join(
            path.read_text(errors="replace") for path in self.files if path.parent == root / "scripts"
        )

    def cmake_text(self):
        return "".join(p.read_text() for p in self.files if p.suffix == ".cmake" or p.name == "CMakeLists.txt")

    def read(self, name):
        path = self.root / name
        return path.read_text() if path.is_file() else ""

    def help_of(self, command):
        """Options and sub-commands in `kvbm <command...> --help`, or None if there is no such command."""
        command = tuple(command)
        if command not in self.helps:
            run = subprocess.run([self.program, *command, "--help"], capture_output=True, text=True, timeout=60)
            if run.returncode != 0:
                self.helps[command] = None
            else:
                after = re.split(r"^(?:Subcommands|Commands):?\s*$", run.stdout, flags=re.MULTILINE | re.IGNORECASE)
                subcommands = re.findall(r"^  ([a-z][\w-]*)", after[1], re.MULTILINE) if len(after) > 1 else []
                self.helps[command] = (set(OPTION.findall(run.stdout)), subcommands)
        return self.helps[command]

    def all_options(self):
        """Every option of every command of kvbm."""
        found, todo = set(), [()]
        while todo:
            command = todo.pop()
            options, subcommands = self.help_of(command) or (set(), [])
            found |= options
            todo += [(*command, name) for name in subcommands]
        return found


class Document:
    def __init__(self, tree, path, problems):
        self.tree, self.path, self.problems = tree, path, problems
        self.line = 0

    def problem(self, words):
        self.problems.append(f"{self.path.relative_to(self.tree.root)}:{self.line}: {words}")

    def check(self):
        fence, language, pending = None, "", ""
        for self.line, text in enumerate(self.path.read_text().splitlines(), 1):
            mark = re.match(r"^\s*(```+|~~~+)\s*([\w+-]*)", text)
            if mark and fence is None:
                fence, language = mark.group(1), mark.group(2)
            elif mark and text.strip().startswith(fence) and not mark.group(2):
                fence = None
            elif fence is not None:
                if language in SHELL_BLOCKS:
                    pending += text
                    if pending.endswith("\\"):
                        pending = pending[:-1] + " "
                        continue
                    self.check_command(pending, certain=language not in ("", "text"))
                    pending = ""
            else:
                for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
                    self.check_span(span.strip())
                for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
                    self.check_link(link)
        if fence is not None:
            self.problem("a code block is not closed")

    def check_span(self, span):
        if re.search(r"[<>{}…]|\.\.\.", span) and " " not in span:
            return
        if " " in span or span.startswith("-"):
            self.check_command(span, certain=False)
        else:
            self.check_path(span)
        self.check_kvbm_names(span)

    def check_kvbm_names(self, text):
        for name in KVBM_NAME.findall(text):
            if name not in self.tree.kvbm_names:
                self.problem(f"no {name} anywhere in the code")

    def check_path(self, word):
        word = re.sub(r"(:\d+)$|#.*$", "", word)
        if not PATH.match(word) or word.startswith(("/", "~", "-")):
            return
        if "/" not in word:
            if word.endswith((".md", ".hpp", ".cpp", ".py", ".cmake")) and NAMES_OF_FILES.match(word):
                if word not in self.tree.names and not word.startswith(("x_", "x.", "_", ".")):
                    self.problem(f"no file is named {word}")
            return
        first = word.removeprefix("./").split("/")[0]
        if first in SKIPPED_FOLDERS:
            return
        if not (word.endswith(("/", *FILE_SUFFIXES)) or first in self.tree.top):
            return
        bases = [self.tree.root, self.path.parent, self.tree.root / "src", self.tree.root / "src" / "kvbm"]
        if not any((base / word).exists() for base in bases):
            self.problem(f"no such path: {word}")

    def check_link(self, link):
        if re.match(r"^[a-z]+:", link):
            return
        target, _, anchor = link.partition("#")
        path = (self.path.parent / target) if target else self.path
        if not path.exists():
            self.problem(f"broken link: {link}")
        elif anchor and path.suffix == ".md":
            headings = re.findall(r"^#+\s+(.*?)\s*#*$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if anchor not in slugs:
                self.problem(f"no heading for #{anchor} in {path.name}")

    def check_command(self, text, certain):
        """A line of shell, or what looks like one."""
        text = re.sub(r"^\s*[$#] ", "", text)
        for part in re.split(r"&&|\|\||[|;]", text):
            part = re.sub(r"\s#\s.*$", "", part)
            try:
                words = shlex.split(part)
            except ValueError:
                words = part.split()
            while words and re.match(r"^[A-Za-z_]\w*=", words[0]):
                words.pop(0)
            if words:
                self.check_words(words, certain)

    def check_words(self, words, certain):
        program, arguments = words[0], words[1:]
        name = program.rsplit("/", 1)[-1]
        options = [word.split("=")[0] for word in words if OPTION.match(word)]
        if name == "make":
            self.check_make(arguments)
        elif name in ("cmake", "ctest"):
            self.check_cmake(arguments)
        elif name == "kvbm" and (arguments or "/" in program):
            self.check_kvbm(arguments, options)
        elif program.startswith(("scripts/", "./scripts/", ".ci/")):
            self.check_path(program)
            script = self.tree.read(program.removeprefix("./"))
            for option in options:
                if script and option not in script:
                    self.problem(f"{program} has no option {option}")
        elif program.startswith("-"):
            for option in options:
                self.check_any_option(option)
            self.check_cmake([word for word in words if word.startswith("-D")])
        elif certain or "/" in program:
            for word in words:
                self.check_path(word)

    def check_make(self, arguments):
        for word in arguments:
            if "=" in word:
                variable = word.split("=")[0]
                if not re.search(rf"\b{re.escape(variable)}\b", self.tree.makefile):
                    self.problem(f"the Makefile knows no variable {variable}")
            elif re.match(r"^[a-z][\w-]*$", word) and word not in self.tree.targets:
                self.problem(f"make has no target {word}")
            elif not re.match(r"^[-a-z]", word):
                return  # Prose, or a placeholder.

    def check_cmake(self, arguments):
        for position, word in enumerate(arguments):
            if word == "--preset" and position + 1 < len(arguments):
                preset = arguments[position + 1]
                if re.match(r"^\w+$", preset) and preset not in self.tree.presets:
                    self.problem(f"no preset {preset}")
            elif word.startswith("-D"):
                self.check_kvbm_names(word[2:])

    def check_kvbm(self, arguments, options):
        if self.tree.program is None:
            return
        command, known = (), self.tree.help_of(())
        for word in arguments:
            if word in known[1]:
                command = (*command, word)
                known = self.tree.help_of(command)
                if known is None:
                    self.problem(f"kvbm {' '.join(command)} --help fails")
                    return
            elif not command and re.match(r"^[a-z][\w-]*$", word):
                self.problem(f"kvbm has no command {word}")
                return
            else:
                break
        for option in options:
            if option not in known[0]:
                self.problem(f"kvbm {' '.join(command)} has no option {option}")

    def check_any_option(self, option):
        if self.tree.program is None or option in self.tree.all_options():
            return
        if not re.search(rf"{re.escape(option)}\b", self.tree.scripts_text):
            self.problem(f"nothing here has an option {option}")


def check(root, program):
    tree = Tree(root, program)
    problems = []
    paths = [root / name for name in DOCUMENTS] + sorted((root / "docs").rglob("*.md"))
    paths = [path for path in paths if path.is_file()]
    for path in paths:
        Document(tree, path, problems).check()
    problems += missing_packages(root)
    return problems, len(paths)


def missing_packages(root):
    """What cmake/packages.cmake finds is in docs/third-party.md, with its licence."""
    packages, notices = root / "cmake/packages.cmake", root / "docs/third-party.md"
    if not packages.is_file():
        return []
    named = re.findall(r"^ *kvbm_package\(\S+ \S+ (lib[\w-]+|[\w-]+-dev)\)|IMPORTED_TARGET ([\w-]+)\)",
                       packages.read_text(), re.MULTILINE)
    text = notices.read_text() if notices.is_file() else ""
    tests_only = {"libgtest-dev", "libbenchmark-dev"}
    return [f"docs/third-party.md: no word of the package {name}"
            for name in ("".join(pair) for pair in named) if name not in text and name not in tests_only]


FAKE_PROGRAM = """#!/bin/sh
case "$*" in
  --help) printf 'Options:\\n  --version  v\\n\\nSubcommands:\\n  replay   Replays\\n  trace    Traces\\n' ;;
  "replay --help") printf 'Options:\\n  --g1-blocks N  blocks\\n' ;;
  "trace --help") printf 'Subcommands:\\n  generate  Makes\\n' ;;
  "trace generate --help") printf 'Options:\\n  --out FILE\\n' ;;
  *) exit 2 ;;
esac
"""


def self_test():
    good = """# Title
See `src/kvbm/base/a.hpp`, `base/`, `kvbm/base/a.hpp`, `a.hpp`, [this](docs/b.md#a-part-of-it), `tokens/s`, `x_test.cpp`.
Run `make test ROOM=base`, `scripts/go --fast`, `kvbm replay --g1-blocks 3`, `--g1-blocks`, `KVBM_REAL`, `<room>/x.hpp`,
`build/dev/none.json`, `KVBM_WITH_*`, `cmake --preset dev -DKVBM_REAL=ON`, `application/json`, https://example.org/a.md.

```sh
$ make test && build/release/apps/kvbm/kvbm trace generate \\
    --out build/x   # a comment
git clone --depth 1 https://example.org/x
```

```cpp
int x = 0;  // --nothing
```
"""
    bad = [
        ("`src/kvbm/base/gone.hpp`", "no such path"),
        ("`gone/`", "no such path"),
        ("`gone.hpp`", "no file is named"),
        ("[this](docs/gone.md)", "broken link"),
        ("[this](docs/b.md#gone)", "no heading"),
        ("`make gone`", "no target gone"),
        ("`make test GONE=1`", "no variable GONE"),
        ("`cmake --preset gone`", "no preset gone"),
        ("`cmake --preset dev -DKVBM_GONE=ON`", "no KVBM_GONE"),
        ("`KVBM_GONE`", "no KVBM_GONE"),
        ("`scripts/go --gone`", "no option --gone"),
        ("`kvbm gone`", "no command gone"),
        ("`kvbm replay --gone`", "no option --gone"),
        ("`kvbm replay --out x`", "no option --out"),
        ("`--gone`", "nothing here has an option --gone"),
        ("```sh\nmake gone\n```", "no target gone"),
        ("```sh\nkvbm trace generate \\\n  --gone\n```", "no option --gone"),
        ("```sh\nmake test", "not closed"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in {
            "src/kvbm/base/a.hpp": "#define KVBM_REAL",
            "docs/b.md": "# B\n## A part, of it\n",
            "Makefile": "ROOM ?=\ntest: setup\nsetup:\n",
            "CMakePresets.json": '{"configurePresets": [{"name": "dev"}]}',
            "scripts/go": "--fast",
            "build/kvbm": FAKE_PROGRAM,
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        program = root / "build/kvbm"
        program.chmod(0o755)
        (root / "README.md").write_text(good)
        problems, count = check(root, program)
        assert not problems and count == 2, f"a good document was refused: {problems}"
        for text, words in bad:
            (root / "README.md").write_text(f"# Title\n\n{text}\n")
            problems, _ = check(root, program)
            assert len(problems) == 1 and words in problems[0], f"{text}: got {problems}, not '{words}'"
        (root / "README.md").write_text(good)
        (root / "cmake").mkdir()
        (root / "cmake/packages.cmake").write_text("kvbm_package(a a::a liba-dev)\n  kvbm_package(b b::b libb-dev)\n")
        (root / "docs/third-party.md").write_text("# T\n\nThe one is liba-dev.\n")
        problems, _ = check(root, program)
        assert problems == ["docs/third-party.md: no word of the package libb-dev"], problems
    print(f"self-test: {len(bad) + 1} errors were each found")


def main():
    parser = argparse.ArgumentParser(description="Check that what the documents name exists")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--program", type=pathlib.Path, help="the built kvbm, asked for its commands and options")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test()
        return 0
    if arguments.program is not None and not arguments.program.is_file():
        parser.error(f"{arguments.program} is not there; build it first")
    problems, count = check(arguments.root, arguments.program and arguments.program.resolve())
    without = "" if arguments.program else " (kvbm's own options were not looked at: no --program)"
    print("\n".join(problems) or f"{count} documents name only what exists{without}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
