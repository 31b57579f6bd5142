# SPDX-License-Identifier: Apache-2.0
"""The command kvbm: executes the program that lies in the package."""

import os
import pathlib
import sys

import kvbm._core


def path() -> pathlib.Path:
    """The program, beside the C++ module: with an editable installation that is not beside this file."""
    return pathlib.Path(kvbm._core.__file__).parent / "bin" / "kvbm"


def main() -> None:
    program = path()
    os.execv(program, [str(program), *sys.argv[1:]])
