#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads every #include of the tree against cmake/layers.txt.

  scripts/check_layers.py [--root DIR]   prints each include that a layer does not allow; exit status 1 if any
  scripts/check_layers.py --self-test    proves, on a tree made for it, that each rule can fail

Rules: a room includes only the rooms of its row and what those may include; a room's internal/ folder is its own;
an adapter is included by runtime alone, and by fuzz/; a foreign header appears only in the places of its row; the
product never includes tests; an include is written "kvbm/room/file.hpp" and names a file that exists; every folder has a row.
"""

import argparse
import fnmatch
import pathlib
import re
import sys
import tempfile

SUFFIXES = {".hpp", ".cpp", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# Headers of the C library and of the system live at the top or in these folders.
SYSTEM_FOLDERS = ("sys/", "linux/", "net/", "netinet/", "arpa/", "asm/", "bits/", "sanitizer/")
# The C interface of the face kernels: to the rest of kvbm a foreign library.
KERNELS_HEADER = "kvbm/kernels.h"
TEST_FILE = re.compile(r"_test\.(cpp|cu)$")


class Layers:
    """The table of cmake/layers.txt."""

    def __init__(self, path):
        self.rooms, self.faces, self.foreign = {}, {}, []
        self.ranks = ranks = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            kind = words.pop(0)
            if kind == "room" and len(words) >= 3:
                ranks[words[0]] = int(words[1])
                self.rooms[words[0]] = words[2:]
            elif kind == "face" and len(words) >= 2:
                self.faces[words[0]] = words[1:]
            elif kind == "foreign" and len(words) >= 4 and words[1] in ("headers", "sources"):
                self.foreign.append((words[0], words[1], words[2].split(","), words[3:]))
            else:
                raise SystemExit(f"{path}:{number}: not a row: {line}")
        known = set(self.rooms) | set(self.faces)
        for name, below in {**self.rooms, **self.faces}.items():
            for other in below:
                if other not in ("*", "-") and other not in self.rooms:
                    raise SystemExit(f"{path}: {name} names {other}, which is no room")
                if name in ranks and other in ranks and ranks[other] >= ranks[name]:
                    raise SystemExit(f"{path}: {name} (rank {ranks[name]}) may not stand on {other} ({ranks[other]})")
        for library, _, _, places in self.foreign:
            for place in places:
                if place not in known:
                    raise SystemExit(f"{path}: {library} names {place}, which is no room or face")

    def may_include(self, name):
        """The rooms that `name` may include: its row, and what those may include."""
        found, todo = {"base"} if name in self.rooms else set(), [name]
        while todo:
            above = todo.pop()
            for room in self.rooms.get(above, self.faces.get(above, [])):
                if room == "*":
                    rank = self.ranks.get(above, sys.maxsize)
                    found |= {lower for lower in self.rooms if self.ranks[lower] < rank}
                elif room != "-" and room not in found:
                    found.add(room)
                    todo.append(room)
        return found | {name}


def place_of(relative):
    """Room or face of a file, by its path below the root: (name, is it a room)."""
    parts = relative.parts
    if parts[:2] == ("src", "kvbm"):
        if len(parts) > 4 and parts[2] == "adapters":
            return f"adapters/{parts[3]}", True
        return (parts[2], True) if len(parts) > 3 else (None, True)
    return parts[0], False


def room_of_include(include):
    """Room named by "kvbm/room/..."."""
    parts = include.split("/")
    return "/".join(parts[1:3]) if parts[1:2] == ["adapters"] else parts[1]


def has(path):
    """A header, or the template that CMake makes it from."""
    return path.is_file() or path.with_name(path.name + ".in").is_file()


def check_file(root, relative, layers, problems):
    name, is_room = place_of(relative)
    if name not in (layers.rooms if is_room else layers.faces):
        problems.append(f"{relative}:1: {name or 'this folder'} has no row in cmake/layers.txt")
        return
    text = (root / relative).read_text(errors="replace")
    text = COMMENT.sub(lambda comment: "\n" * comment.group().count("\n"), text)
    is_test = not is_room and name == "tests" or bool(TEST_FILE.search(relative.name))
    allowed = layers.may_include(name)

    for match in INCLUDE.finditer(text):
        quote, include = match.groups()
        where = f"{relative}:{text.count(chr(10), 0, match.start()) + 1}"

        def problem(words):
            problems.append(f'{where}: {quote}{include}{">" if quote == "<" else quote}: {words}')

        if include.startswith("kvbm/") and include != KERNELS_HEADER:
            room = room_of_include(include)
            if quote == "<":
                problem("kvbm's own headers are included with quotes")
            if room not in layers.rooms:
                problem(f"there is no room {room}")
            elif room not in allowed:
                problem(f"{name} may not include {room}")
            elif room.startswith("adapters/") and name not in (room, "runtime", "fuzz") and not is_test:
                problem("adapters are included by runtime alone")
            elif "/internal/" in include and name != room and not is_test:
                problem(f"internal to {room}")
            elif not has(root / "src" / include):
                problem("no such file")
        elif quote == '"':
            beside, from_root = root / relative.parent / include, root / include
            face = include.split("/")[0]
            if is_room and is_test and face == "tests" and from_root.is_file():
                pass
            elif is_room and face in layers.faces:
                problem(f"a room may not include {face}/")
            elif is_room and not check_foreign(layers, include, name, is_test, relative):
                problem('write "kvbm/room/file.hpp"')
            elif not is_room and not any(has(path) for path in (beside, from_root)):
                problem("no such file")
            elif not is_room and face == "tests" and not is_test and name not in ("fuzz", "bench") and from_root.is_file():
                problem("only tests include tests/")
        else:
            words = foreign_problem(layers, include, name, is_test, relative)
            if words:
                problem(words)


def check_foreign(layers, include, name, is_test, relative):
    return any(matches(include, patterns) for _, _, patterns, _ in layers.foreign) and not foreign_problem(
        layers, include, name, is_test, relative
    )


def matches(include, patterns):
    return any(fnmatch.fnmatchcase(include, pattern) for pattern in patterns)


def foreign_problem(layers, include, name, is_test, relative):
    """What is wrong with <include> in a place, or None."""
    for library, where, patterns, places in layers.foreign:
        if matches(include, patterns):
            # A room that may include another sees what that one shows in its headers.
            inherited = where == "headers" and layers.may_include(name) & set(places)
            if name not in places and not inherited and not (is_test and "tests" in places):
                return f"{library} is not for {name}: only {', '.join(places)}"
            if where == "sources" and relative.suffix in (".hpp", ".h") and not is_test and name in layers.rooms:
                return f"{library} stays out of headers"
            return None
    if "/" not in include and ("." not in include or include.endswith(".h")):
        return None
    if include.startswith(SYSTEM_FOLDERS):
        return None
    return "this library has no row in cmake/layers.txt"


def check(root):
    layers = Layers(root / "cmake" / "layers.txt")
    problems, count = [], 0
    for top in ["src", *layers.faces]:
        for path in sorted((root / top).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                count += 1
                check_file(root, path.relative_to(root), layers, problems)
    return problems, count


def self_test(root):
    table = (root / "cmake" / "layers.txt").read_text()
    good = {
        "src/kvbm/base/a.hpp": "#include <vector>\n#include <sys/mman.h>\n#include <tl/expected.hpp>\n",
        "src/kvbm/base/internal/i.hpp": "",
        "src/kvbm/base/a.cpp": '#include "kvbm/base/internal/i.hpp"\n',
        "src/kvbm/tokens/t.hpp": '#include "kvbm/base/a.hpp"\n',
        "src/kvbm/blocks/b.hpp": '#include "kvbm/base/a.hpp"\n#include "kvbm/tokens/t.hpp"\n',
        "src/kvbm/blocks/b_test.cpp": '#include <gtest/gtest.h>\n#include "tests/support/s.hpp"\n',
        "kernels/k_test.cpp": '#include "tests/support/s.hpp"\n',
        "src/kvbm/adapters/zmq/z.hpp": '#include "kvbm/blocks/b.hpp"\n/*\n#include <nonsense/x.hpp>\n*/\n',
        "src/kvbm/runtime/r.cpp": '#include <nlohmann/json.hpp>\n#include "kvbm/adapters/zmq/z.hpp"\n',
        "tests/support/s.hpp": '#include "kvbm/blocks/b.hpp"\n',
        "apps/kvbm/m.hpp": '#include <CLI/CLI.hpp>\n',
        "apps/kvbm/made.hpp.in": "",
        "apps/kvbm/m.cpp": '#include "apps/kvbm/m.hpp"\n#include "apps/kvbm/made.hpp"\n#include "m.hpp"\n#include "kvbm/runtime/r.hpp"\n',
        "src/kvbm/runtime/r.hpp": "",
        "src/kvbm/replay/y.hpp": '#include "kvbm/blocks/b.hpp"\n#include "kvbm/runtime/r.hpp"\n',
    }
    bad = [
        ("src/kvbm/base/x.hpp", '#include "kvbm/tokens/t.hpp"', "may not include tokens"),
        ("src/kvbm/device/x.cpp", '#include "kvbm/blocks/b.hpp"', "may not include blocks"),
        ("src/kvbm/device/x.cpp", '  #  include "kvbm/blocks/b.hpp"', "may not include blocks"),
        ("src/kvbm/tokens/x.cpp", '#include "kvbm/base/internal/i.hpp"', "internal to base"),
        ("src/kvbm/replay/x.cpp", '#include "kvbm/adapters/zmq/z.hpp"', "included by runtime alone"),
        ("src/kvbm/runtime/x.cpp", '#include "kvbm/replay/y.hpp"', "may not include replay"),
        ("apps/kvbm/x.cpp", '#include "kvbm/adapters/zmq/z.hpp"', "included by runtime alone"),
        ("src/kvbm/tokens/x.cpp", '#include "kvbm/base/gone.hpp"', "no such file"),
        ("src/kvbm/tokens/x.cpp", '#include "kvbm/utils/u.hpp"', "no room utils"),
        ("src/kvbm/tokens/x.cpp", "#include <kvbm/base/a.hpp>", "with quotes"),
        ("src/kvbm/base/a_test.cpp", '#include "kvbm/tokens/t.hpp"', "may not include tokens"),
        ("src/kvbm/blocks/x.cpp", '#include "tests/support/s.hpp"', "may not include tests/"),
        ("apps/kvbm/x.cpp", '#include "apps/kvbm/gone.hpp"', "no such file"),
        ("apps/kvbm/x.cpp", '#include "tests/support/s.hpp"', "only tests include tests/"),
        ("src/kvbm/blocks/x.cpp", '#include "b.hpp"', 'write "kvbm/room/file.hpp"'),
        ("src/kvbm/blocks/x.cpp", "#include <cuda_runtime.h>", "cuda is not for blocks"),
        ("src/kvbm/transfer/x.cpp", "#include <kvbm/kernels.h>", "kernels is not for transfer"),
        ("src/kvbm/runtime/x.cpp", "#include <zmq.hpp>", "zeromq is not for runtime"),
        ("src/kvbm/tiers/x.cpp", "#include <prometheus/registry.h>", "prometheus is not for tiers"),
        ("src/kvbm/tiers/x.cpp", "#include <nlohmann/json.hpp>", "nlohmann is not for tiers"),
        ("src/kvbm/runtime/x.hpp", "#include <nlohmann/json.hpp>", "stays out of headers"),
        ("src/kvbm/tiers/x.cpp", "#include <boost/any.hpp>", "has no row"),
        ("src/kvbm/utils/x.hpp", "", "has no row"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)

        def write(name, text):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)

        write("cmake/layers.txt", table)
        for name, text in good.items():
            write(name, text)
        problems, _ = check(tree)
        assert not problems, f"a good tree was refused: {problems}"
        for name, line, words in bad:
            write(name, f"// A line above.\n{line}\n")
            problems, _ = check(tree)
            assert len(problems) == 1 and words in problems[0], f"{name}: {line}: got {problems}, not '{words}'"
            (tree / name).unlink()
        write("cmake/layers.txt", table.replace("room  tokens          1  base", "room  tokens  1  blocks"))
        try:
            check(tree)
        except SystemExit as refused:
            assert "may not stand on" in str(refused)
        else:
            raise AssertionError("a row that points upwards was accepted")
    print(f"self-test: {len(bad) + 1} violations were each found")


def main():
    parser = argparse.ArgumentParser(description="Check includes against cmake/layers.txt")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test(arguments.root)
        return 0
    problems, count = check(arguments.root)
    print("\n".join(problems) or f"{count} files keep the layers")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
