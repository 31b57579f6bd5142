# SPDX-License-Identifier: Apache-2.0
"""The wheel in a fresh virtual environment, and the Python of README.md."""

import fcntl
import importlib.util
import pathlib
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile

import numpy
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_BYTES = 20_000_000


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1800, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def python_of_readme():
    found = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found, "README.md has no Python example"
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    for module in ("scikit_build_core", "nanobind"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    # Where scripts/setup_engine builds too, so that only what has changed is compiled.
    settings = f"build-dir={ROOT / 'build' / 'python'}"
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of a run build in the same folder
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--config-settings",
            settings, "--wheel-dir", folder, ROOT)
    return next(folder.glob("kvbm-*.whl"))


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel, and NumPy from this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (pathlib.Path(purelib) / "numpy_of_the_tests.pth").write_text(str(pathlib.Path(numpy.__file__).parents[1]))
    return python


def test_the_wheel_is_small_and_has_program_stubs_and_marker(wheel):
    assert wheel.stat().st_size < MOST_BYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"kvbm/bin/kvbm", "kvbm/_core.pyi", "kvbm/py.typed", "kvbm/__init__.py"} <= names
    assert any(re.fullmatch(r"kvbm/_core\..*\.so", name) for name in names)
    assert not [name for name in names if "torch" in name]


def test_the_readme_runs_in_a_fresh_environment(fresh, tmp_path):
    where = run(fresh, "-c", "import kvbm; print(kvbm.__file__)", cwd=tmp_path)
    assert pathlib.Path(where.strip()).is_relative_to(fresh.parents[1])
    for example in python_of_readme():
        printed = run(fresh, "-c", example, cwd=tmp_path)
        for said in re.findall(r"# prints (.*)$", example, re.MULTILINE):
            assert said in printed.splitlines()


def test_the_program_is_a_command(fresh, tmp_path):
    assert "replay" in run(fresh.parent / "kvbm", "--help", cwd=tmp_path)
    refused = subprocess.run([fresh.parent / "kvbm", "no-such-command"], capture_output=True, text=True)
    assert refused.returncode == 2 and "kvbm: " in refused.stderr  # its exit status comes through


def test_the_module_needs_no_torch_and_no_driver(fresh, tmp_path):
    module = run(fresh, "-c", "import kvbm._core; print(kvbm._core.__file__)", cwd=tmp_path).strip()
    needed = run("readelf", "--dynamic", module)
    assert "NEEDED" in needed
    for library in ("torch", "libcuda", "libc10", "libcudart"):
        assert library not in needed
