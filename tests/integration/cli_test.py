#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program kvbm from outside: what it prints, what it leaves behind, and its exit status.

  cli_test.py PROGRAM [unittest arguments]
"""

import http.server
import json
import os
import pathlib
import pty
import re
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest

PROGRAM = pathlib.Path()
TIMEOUT_SECONDS = 120
TIB = 1 << 40
LINE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'


def environment(**changes):
    variables = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TERM": "xterm"}
    # Sanitizer builds read their options here.
    variables.update({name: value for name, value in os.environ.items() if name.endswith("SAN_OPTIONS")})
    variables.update(changes)
    return {name: value for name, value in variables.items() if value is not None}


def kvbm(*arguments, **options):
    options.setdefault("env", environment())
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS, **options
    )


def wait_until_it_waits(pid):
    """Until the process has its signal handlers and sleeps, as the kernel tells; at most ten seconds."""
    deadline = time.monotonic() + 10
    waits = 0
    while waits < 3 and time.monotonic() < deadline:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        caught = int(re.search(r"(?m)^SigCgt:\s*(\w+)", status)[1], 16)
        sleeps = re.search(r"(?m)^State:\s*S", status) and caught >> (signal.SIGTERM - 1) & 1
        waits = waits + 1 if sleeps else 0
        time.sleep(0.02)


class Terminal:
    """Runs the program on a terminal of its own."""

    def __init__(self, *arguments, env=None):
        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execve(PROGRAM, [str(PROGRAM), *map(str, arguments)], env or environment())
            finally:
                os._exit(127)

    def read_until(self, text=None):
        """Reads up to `text`, or to the end."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text is None or text not in self.output:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"the program hangs after {self.output!r}")
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # the terminal's other end is closed
                data = b""
            if not data:
                break
            self.output += data
        return self.output.decode()

    def end(self):
        """Everything it printed, and its exit status."""
        text = self.read_until()
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return text, os.waitstatus_to_exitcode(status)


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvbm_cli_")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def entries(self):
        return sorted(path.name for path in self.folder.iterdir())

    def pipe(self):
        path = self.folder / "pipe"
        os.mkfifo(path)
        return path

    def start(self, *arguments, **options):
        process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            **options,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def assert_is_interruptible(self, *arguments):
        """Started, it waits, and a signal ends it."""
        before = self.entries()
        for number in (signal.SIGINT, signal.SIGTERM):
            process = self.start(*arguments)
            wait_until_it_waits(process.pid)
            self.assertIsNone(process.poll())
            process.send_signal(number)
            out, error = process.communicate(timeout=TIMEOUT_SECONDS)
            self.assertEqual((process.returncode, out, error), (128 + number, "", "kvbm: interrupted\n"))
        self.assertEqual(self.entries(), before)

    def assert_fails(self, run, *parts):
        """One line on standard error, nothing on standard output, status 2."""
        self.assertEqual(run.returncode, 2, run)
        self.assertRegex(run.stderr, r"\Akvbm: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(part, run.stderr)
        self.assertFalse(run.stdout)

    def assert_succeeds(self, run):
        self.assertEqual((run.returncode, run.stderr), (0, ""), run)
        return run.stdout

    def generate(self, name="trace.jsonl", sessions=4, **options):
        path = self.folder / name
        arguments = [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
        self.assert_succeeds(
            kvbm("trace", "generate", "--quiet", "--out", path, "--sessions", sessions, "--agent-sessions", 1, *arguments)
        )
        return path

    def read_only_folder(self):
        """A folder that this process cannot write to."""
        folder = self.folder / "read_only"
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        self.addCleanup(folder.chmod, stat.S_IRWXU)
        if not os.access(folder, os.W_OK):
            return folder
        # Whoever may write everywhere still cannot write to what is mounted read-only.
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            mount = pathlib.Path(line.split()[1].encode().decode("unicode_escape"))
            if "ro" in line.split()[3].split(",") and mount.is_dir() and not os.access(mount, os.W_OK):
                return mount
        self.skipTest("this user may write everywhere, and nothing is mounted read-only")


def forget_files(pid, folder):
    """Makes zeros of all that the open files of a process in the folder hold."""
    for entry in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if not os.readlink(entry).startswith(f"{folder}/#"):  # files without a name
                continue
            with open(entry, "r+b") as file:
                size = os.fstat(file.fileno()).st_size
                os.ftruncate(file.fileno(), 0)
                os.ftruncate(file.fileno(), size)
        except OSError:  # closed meanwhile
            pass


class OptionsTest(CliTest):
    COMMANDS = [[], ["trace"], ["trace", "generate"], ["trace", "stats"], ["replay"], ["config"], ["config", "show"], ["config", "schema"], ["doctor"]]

    def test_every_command_has_help(self):
        for command in self.COMMANDS:
            out = self.assert_succeeds(kvbm(*command, "--help"))
            self.assertIn("Usage: " + " ".join(["kvbm", *command]), out)
            self.assertIn("--help", out)
            self.assertIn("--version", out)
            self.assertIn("Exit status:", out)
            self.assertIn("128 + the signal's number: interrupted", out)

    def test_every_command_tells_the_version(self):
        for command in self.COMMANDS:
            out = self.assert_succeeds(kvbm(*command, "--version"))
            self.assertRegex(out, r"\Akvbm \d+\.\d+\.\d+\n\Z")

    def test_help_lists_the_options_of_a_replay(self):
        out = self.assert_succeeds(kvbm("replay", "--help"))
        for option in (
            "g1-blocks g2-blocks g3-blocks g1-bytes g2-bytes g3-bytes block-bytes ranks groups disk-dir policy no-bytes "
            "overlap limit json metrics seed quiet"
        ).split():
            self.assertRegex(out, rf"(?m)^  --{option}\b")

    def test_help_of_a_replay_tells_that_the_configuration_is_none_of_its_business(self):
        out = self.assert_succeeds(kvbm("replay", "--help"))
        self.assertIn("This command line alone describes a replay", out)
        self.assertIn("KVBM_*", out)

    def test_no_file_gets_the_number_of_a_closed_standard_stream(self):
        pipe = self.pipe()
        process = subprocess.Popen(
            [PROGRAM, "trace", "stats", pipe], env=environment(), preexec_fn=lambda: os.closerange(0, 3)
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_until_it_waits(process.pid)
        files = {int(fd.name): os.readlink(fd) for fd in pathlib.Path(f"/proc/{process.pid}/fd").iterdir()}
        self.assertEqual([files.get(fd) for fd in range(3)], ["/dev/null"] * 3, files)
        self.assertIn(str(pipe), files.values())

    def test_output_to_a_closed_stream_is_a_failure(self):
        run = kvbm("doctor", preexec_fn=lambda: os.close(1))
        self.assertEqual(run.returncode, 2)
        self.assertEqual(run.stderr, "kvbm: cannot write to standard output: Bad file descriptor\n")

    def test_a_command_is_required_and_must_exist(self):
        self.assert_fails(kvbm(), "subcommand")
        self.assert_fails(kvbm("trace"), "subcommand")
        self.assert_fails(kvbm("repaly"), "'repaly'")
        self.assert_fails(kvbm("trace", "genreate"), "'genreate'")

    def test_an_unknown_option_is_named(self):
        for command in self.COMMANDS[2:]:
            self.assert_fails(kvbm(*command, "--bogus"))
        self.assert_fails(kvbm("doctor", "--bogus"), "--bogus", "kvbm doctor --help")

    def test_output_that_is_lost_is_a_failure(self):
        with open("/dev/full", "w") as full:
            run = kvbm("doctor", stdout=full)
        self.assertEqual(run.returncode, 2)
        self.assertEqual(run.stderr, "kvbm: cannot write to standard output: No space left on device\n")


class TraceTest(CliTest):
    def test_one_seed_gives_the_same_bytes(self):
        one = self.generate("one", seed=7).read_bytes()
        self.assertEqual(self.generate("two", seed=7).read_bytes(), one)
        self.assertNotEqual(self.generate("three", seed=8).read_bytes(), one)

    def test_a_generated_trace_is_in_mooncakes_format(self):
        time_before = 0
        for line in self.generate().read_text().splitlines():
            request = json.loads(line)
            self.assertEqual(list(request), ["timestamp", "input_length", "output_length", "hash_ids"])
            self.assertEqual(len(request["hash_ids"]), -(-request["input_length"] // 512))
            self.assertGreaterEqual(request["timestamp"], time_before)
            time_before = request["timestamp"]

    def test_stats_agree_with_the_trace(self):
        path = self.generate()
        requests = [json.loads(line) for line in path.read_text().splitlines()]
        known, hits, accesses = set(), 0, 0
        for request in requests:
            accesses += len(request["hash_ids"])
            prefix = True
            for block in request["hash_ids"]:
                prefix = prefix and block in known
                hits += prefix
            known.update(request["hash_ids"])
        out = self.assert_succeeds(kvbm("trace", "stats", path))
        self.assertEqual(out, self.assert_succeeds(kvbm("trace", "stats", path)))
        for name, value in (
            ("requests", len(requests)),
            ("accesses", accesses),
            ("unique blocks", len(known)),
            ("input tokens", sum(request["input_length"] for request in requests)),
            ("output tokens", sum(request["output_length"] for request in requests)),
            ("best hit share", f"{100 * hits / accesses:.2f} %"),
        ):
            self.assertRegex(out, rf"(?m)^{name} +{value}$")

    def test_generate_shows_the_stats_of_what_it_wrote(self):
        path = self.folder / "trace.jsonl"
        out = self.assert_succeeds(kvbm("trace", "generate", "--output", path, "--sessions", 3))
        self.assertEqual(out, self.assert_succeeds(kvbm("trace", "stats", path)))

    def test_stats_stop_at_the_limit(self):
        path = self.write("trace.jsonl", LINE * 3 + "broken\n")
        self.assertRegex(self.assert_succeeds(kvbm("trace", "stats", path, "--limit", 2)), r"(?m)^requests +2$")
        self.assert_fails(kvbm("trace", "stats", path, "--limit", 0), "--limit", "out of range")

    def test_a_trace_is_read_from_a_pipe(self):
        self.assertIn("requests", self.assert_succeeds(kvbm("trace", "stats", "/dev/stdin", input=LINE)))

    def test_a_trace_that_is_missing_or_a_folder_or_empty_is_refused(self):
        self.assert_fails(kvbm("trace", "stats", self.folder / "none"), "No such file or directory")
        self.assert_fails(kvbm("trace", "stats", self.folder), "it is a directory")
        self.assert_fails(kvbm("trace", "stats", self.write("empty", "")), "holds no request")
        self.assert_fails(kvbm("trace", "stats"), "trace is required")

    def test_a_broken_line_is_refused_with_its_number_and_the_reason(self):
        for line, reason in (
            ("hello", "not JSON"),
            ("[]", "not a JSON object"),
            (LINE.replace("600", "-600"), "'input_length' is a negative number"),
            (LINE.replace("600", "600.5"), "fraction"),
            (LINE.replace("600", '"600"'), "'input_length' is a text"),
            (LINE.replace("600", "9" * 30), "too large"),
            (LINE.replace('"output_length": 5, ', ""), "'output_length' is missing"),
            (LINE.replace("[0, 1]", "[]"), "'hash_ids' is empty"),
            (LINE.replace("[0, 1]", "[0, 0]"), "names block 0 twice"),
            (" " * (17 << 20), "longer than 16 MiB"),
        ):
            path = self.write("trace.jsonl", LINE + line + "\n" + LINE)
            self.assert_fails(kvbm("trace", "stats", path), f"{path}, line 2: ", reason)

    def test_generate_refuses_wrong_options_and_writes_nothing(self):
        out = self.folder / "trace.jsonl"
        for arguments, part in (
            (["--sessions", "-1"], "--sessions: '-1' is no whole number"),
            (["--sessions", "1.5"], "--sessions"),
            (["--sessions", "4294967296"], "--sessions"),
            (["--sessions", "2000000"], "chat.sessions"),
            (["--sessions", "0", "--agent-sessions", "0"], "empty"),
            (["--seed", "18446744073709551616"], "--seed"),
            (["--seed", "1", "--seed", "2"], "--seed"),
            (["--think-time", "86400001"], "--think-time"),
            (["--turns", "0"], "chat.mean_turns"),
            (["--agent-branch-percent", "101"], "agents.branch_percent"),
            (["surplus"], "surplus"),
        ):
            self.assert_fails(kvbm("trace", "generate", "--out", out, *arguments), part)
        self.assert_fails(kvbm("trace", "generate"), "--out is required")
        self.assertEqual(self.entries(), [])

    def test_generate_tells_why_it_cannot_write_and_leaves_nothing(self):
        self.assert_fails(kvbm("trace", "generate", "--out", self.folder), "it is a directory")
        self.assert_fails(kvbm("trace", "generate", "--out", self.folder / "none" / "x"), "No such file or directory")
        self.assert_fails(kvbm("trace", "generate", "--out", "/dev/full"), "No space left on device")
        self.assertEqual(self.entries(), [])

    def test_generate_leaves_nothing_half_written(self):
        def limit_file_size():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

        out = self.write("trace.jsonl", "before")
        run = kvbm("trace", "generate", "--out", out, "--seed", 1, preexec_fn=limit_file_size)
        self.assert_fails(run, f"cannot write {out}: File too large")
        self.assertEqual(self.entries(), ["trace.jsonl"])
        self.assertEqual(out.read_text(), "before")

    def test_generate_refuses_a_read_only_folder(self):
        self.assert_fails(kvbm("trace", "generate", "--out", self.read_only_folder() / "trace.jsonl"), "cannot write")

    def test_an_interrupted_read_ends_with_130(self):
        process = self.start("trace", "stats", "/dev/stdin", stdin=subprocess.PIPE)
        wait_until_it_waits(process.pid)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=TIMEOUT_SECONDS)
        self.assertEqual((process.returncode, out, error), (130, "", "kvbm: interrupted\n"))

    def test_waiting_for_the_other_end_of_a_pipe_can_be_interrupted(self):
        pipe = self.pipe()
        self.assert_is_interruptible("trace", "stats", pipe)
        self.assert_is_interruptible("trace", "generate", "--out", pipe)

    def test_writing_to_a_full_pipe_can_be_interrupted(self):
        pipe = self.pipe()
        with open(pipe, "r+b", buffering=0):
            self.assert_is_interruptible("trace", "generate", "--sessions", 400, "--out", pipe)

    def test_a_trace_goes_from_one_program_to_another_through_a_pipe(self):
        pipe = self.pipe()
        reader = self.start("trace", "stats", pipe)
        wait_until_it_waits(reader.pid)
        self.assert_succeeds(kvbm("trace", "generate", "--quiet", "--out", pipe))
        out, error = reader.communicate(timeout=TIMEOUT_SECONDS)
        self.assertEqual((reader.returncode, error), (0, ""))
        self.assertRegex(out, r"(?m)^requests +[1-9]")


class ConfigTest(CliTest):
    def show(self, *arguments, **variables):
        return kvbm("config", "show", *arguments, env=environment(**variables))

    def test_every_value_is_shown_with_its_source(self):
        path = self.write("kvbm.toml", "block_size = 32\nnum_layers = 3\n")
        out = self.assert_succeeds(self.show("--config", path, "--num-heads", 8, KVBM_HEAD_DIM="64", KVBM_NUM_LAYERS="4"))
        self.assertIn(f"block_size = 32  # {path}:1\n", out)
        self.assertIn("num_layers = 4  # KVBM_NUM_LAYERS\n", out)
        self.assertIn("num_heads = 8  # --num-heads\n", out)
        self.assertIn("head_dim = 64  # KVBM_HEAD_DIM\n", out)
        self.assertRegex(out, "(?m)^enable_offload = .*  # default$")

    def test_what_is_shown_reads_back(self):
        path = self.folder / "shown.toml"
        out = self.assert_succeeds(self.show("--block-size", 64, "--num-layers", 2, "--num-heads", 8, "--head-dim", 64))
        path.write_text(out)
        again = self.assert_succeeds(self.show(KVBM_CONFIG=str(path)))
        self.assertEqual(re.sub("#.*", "", out), re.sub("#.*", "", again))

    def test_the_schema_names_every_key_that_is_shown(self):
        schema = json.loads(self.assert_succeeds(kvbm("config", "schema")))["properties"]
        out = self.assert_succeeds(self.show("--num-layers", 2, "--num-heads", 8, "--head-dim", 64))
        keys, settings = (re.findall("(?m)^([a-z_]+) = ", part) for part in out.split("\n[connector]\n"))
        self.assertEqual(list(schema), [*keys, "connector"])
        self.assertEqual(list(schema["connector"]["properties"]), settings)

    def test_a_connector_is_shown_without_a_block_manager(self):
        path = self.write("kvbm.toml", '[connector]\nhost_bytes = "4 GB"\ndisk_directory = "/data"\nmin_priority = 3\n')
        variables = {"DYN_KVBM_CPU_CACHE_GB": "0.5", "DYN_KVBM_DISK_DISABLE_O_DIRECT": "true"}
        out = self.assert_succeeds(self.show(KVBM_CONFIG=str(path), **variables))
        self.assertIn("\nhost_bytes = 500000000  # DYN_KVBM_CPU_CACHE_GB\n", out)
        self.assertIn("\ndisk_direct_io = false  # DYN_KVBM_DISK_DISABLE_O_DIRECT\n", out)
        self.assertIn(f'\ndisk_directory = "/data"  # {path}:3\n', out)
        self.assertIn("\ndisk_zero_fill = false  # default\n", out)
        self.assert_fails(self.show("--block-size", 64), "num_layers is not set")
        self.assert_fails(self.show(DYN_KVBM_NIXL_BACKEND="1"), "DYN_KVBM_NIXL_BACKEND is not acted on")
        path = self.write("wrong.toml", "[connector]\nhost_block = 4\n")
        self.assert_fails(self.show("--config", path), f"{path}:2", "the nearest is host_blocks")

    def test_mistakes_name_the_key_and_what_is_near(self):
        path = self.write("kvbm.toml", "blok_size = 32\n")
        self.assert_fails(self.show("--config", path), f"{path}:1", "block_size")
        self.assert_fails(self.show("--config", self.folder / "none"), "No such file or directory")
        self.assert_fails(self.show(KVBM_BLOK_SIZE="32"), "KVBM_BLOCK_SIZE")
        self.assert_fails(self.show("--block-size", "many"), "--block-size", "many")
        self.assert_fails(self.show("--blok-size", "32"), "--blok-size")

    def test_variables_of_tests_and_benchmarks_are_left_alone(self):
        model = ["--num-layers", 2, "--num-heads", 8, "--head-dim", 64]
        self.assert_succeeds(self.show(*model, KVBM_CONVERSATION_TRACE="x", KVBM_BENCH_TRACE="x", KVBM_SEED="1"))


class BenchTest(CliTest):
    """kvbm bench on the host device, which every machine has."""

    def calibrate(self, *arguments, **variables):
        return kvbm("bench", "calibrate", *arguments, env=environment(HOME=str(self.folder), **variables))

    def test_the_host_needs_no_calibration(self):
        out = self.assert_succeeds(self.calibrate("--device", "host"))
        self.assertRegex(out, r"(?m)^device +host$")
        self.assertRegex(out, r"(?m)^calibration +none: ")
        report = json.loads(self.assert_succeeds(self.calibrate("--device", "host", "--refresh", "--json")))
        self.assertEqual(report, {"device": "host", "source": "not_needed", "file": None, "calibration": None})
        self.assertEqual(self.entries(), [])

    def test_a_device_that_is_none_is_refused(self):
        self.assert_fails(self.calibrate("--device", "gpu"), 'no device "gpu"')

    def test_a_folder_comes_from_the_environment_too(self):
        for variables in ({}, {"KVBM_CALIBRATION_DIR": "off"}):
            self.assert_succeeds(self.calibrate("--device", "host", **variables))
        self.assert_fails(self.calibrate("--calibration-dir"), "--calibration-dir")

    def test_bench_says_what_it_has(self):
        self.assert_fails(kvbm("bench"), "kvbm bench --help")
        self.assertIn("calibrate", self.assert_succeeds(kvbm("bench", "--help")))


class PlanTest(CliTest):
    """kvbm plan by a calibration of a GPU that need not be here."""

    CORPUS = pathlib.Path(__file__).resolve().parents[2] / "fuzz/corpus/calibration"
    CALIBRATION = CORPUS / "three_routes"

    def plan(self, *arguments, calibration=CALIBRATION):
        return kvbm("plan", "--calibration", calibration, *arguments)

    def lines(self, *arguments, **options):
        """What it says of pieces, and of the choice."""
        out = self.assert_succeeds(self.plan(*arguments, **options))
        words = {line[:13].strip(): line[13:] for line in out.splitlines() if not line.startswith("  ")}
        return words, [line.strip() for line in out.splitlines() if line.startswith("  ")]

    def test_everything_is_told(self):
        out = self.assert_succeeds(self.plan("--num-blocks", 128))
        self.assertEqual(
            out,
            "from         pinned memory, fully_contiguous, operational_nhd\n"
            "to           device memory, layer_separate_block_second, operational_nhd\n"
            "blocks       128 of 5 MiB, 640 MiB in all, in any order\n"
            "pieces       80 after folding, of every block\n"
            "  80 of      2 runs of 32 KiB; from steps of 32 KiB to steps of 4 MiB\n"
            "way          pinned to device (device copy): the device copies memory of both kinds\n"
            f"calibration  {self.CALIBRATION}, of NVIDIA H200\n"
            "engine       14.599 ms, 45.97 GB/s\n"
            "kernel       13.070 ms, 51.34 GB/s\n"
            "chosen       kernel, at most 4 CTAs: 13070 us, the engine would take 14599 us\n",
        )

    def test_the_ring_is_told_where_it_was_measured(self):
        words, _ = self.lines("--num-blocks", 128, calibration=self.CORPUS / "with_ring")
        self.assertEqual(words["ring"], "12.930 ms, 51.90 GB/s")
        self.assertEqual(words["chosen"], "ring: 12930 us, the engine would take 14599 us, a kernel 13070 us")
        gaps, _ = self.lines("--src", "pinned:lw", "--dst", "device:fc", calibration=self.CORPUS / "with_ring")
        self.assertNotIn("ring", gaps)
        self.assertNotIn("the ring", gaps["chosen"])

    def test_whole_blocks_are_one_run_for_the_engine(self):
        words, pieces = self.lines("--dst", "device:fc")
        self.assertEqual(pieces, ["1 of       one run of 5 MiB"])
        self.assertTrue(words["chosen"].startswith("engine: "), words)

    def test_a_permutation_is_runs_of_a_head(self):
        words, pieces = self.lines("--src", "device:lw:nhd", "--dst", "pinned:fc:universal_tp", "--layers", 2)
        self.assertTrue(words["way"].startswith("device to pinned (device copy)"), words)
        self.assertEqual(
            pieces, ["2 of       8 x 2 x 16 runs of 256 B; from steps of 256 B, 4 MiB, 2 KiB to steps of 16 KiB, 4 KiB, 256 B"]
        )

    def test_blocks_one_after_another_are_rows(self):
        any_order, _ = self.lines()
        in_order, _ = self.lines("--sequential-ids")
        self.assertIn("one after another", in_order["blocks"])
        milliseconds = [float(words["engine"].split()[0]) for words in (any_order, in_order)]
        self.assertLess(milliseconds[1], milliseconds[0])

    def test_a_route_that_was_not_measured_is_told(self):
        words, _ = self.lines(calibration=self.CORPUS / "one_route")
        self.assertEqual(words["chosen"], "engine: nothing was measured on this route")
        self.assertNotIn("kernel", words)

    def test_a_way_of_two_hops_is_told(self):
        words, _ = self.lines("--src", "system:fc")
        self.assertTrue(words["way"].startswith("system to pinned (host copy), pinned to device (device copy): "), words)
        self.assertNotIn("chosen", words)

    def test_formats_that_do_not_go_together_are_refused(self):
        self.assert_fails(self.plan("--src", "pinned:fc:unknown"), "say which the unknown one is")

    def test_the_host_has_one_method(self):
        out = self.assert_succeeds(kvbm("plan", "--device", "host", "--src", "system:fc"))
        self.assertIn("chosen       engine: the device has no other method\n", out)

    def test_a_calibration_must_be_one(self):
        self.assert_fails(self.plan(calibration=self.folder / "none"), "cannot read")
        self.assert_fails(self.plan(calibration=self.write("bad", "{}")), 'bad: its "format" is not')
        self.assert_fails(self.plan(calibration=self.CORPUS / "newer_version"), "version 4")

    def test_sides_are_words_that_there_are(self):
        for side, word in (("disk:fc", "'disk' is none of system"), ("pinned", "is not MEMORY"), ("pinned:lf", "fc, lw"), ("pinned:fc:ndh", "nhd, hnd")):
            self.assert_fails(self.plan("--src", side), word)
        self.assert_fails(self.plan("--device", "host"), "--device")


class KvbenchTest(CliTest):
    """kvbm bench transfer, which is what kvbench runs, on the host."""

    SMALL = ["--device=host", "--layers=2", "--head-dim=8", "--num-blocks=1,3", "--tokens-per-block=4", "--warmup=1"]

    def bench(self, *arguments):
        return kvbm("bench", "transfer", *self.SMALL, "--iters=3", *arguments)

    def test_csv_is_all_there_is_on_standard_output(self):
        path = self.folder / "report.json"
        run = self.bench("--pattern=lw_to_fc,nhd_to_universal", "--direction=h2d", "--json", path)
        self.assertEqual(run.returncode, 0, run.stderr)
        rows = [line.split(",") for line in run.stdout.splitlines()]
        self.assertEqual(",".join(rows[0]), "tokens_per_block,num_blocks,pattern,direction,backend,total_bytes,inner_bytes,copy_size,num_copies,median_ms,bandwidth_gbps,peak_gbps,share")
        self.assertEqual([row[:5] for row in rows[1:]], [["4", blocks, pattern, "h2d", backend] for blocks in "13" for pattern in ("lw_to_fc", "nhd_to_universal") for backend in ("vectorized", "batched", "memcpy_async", "auto", "transfer_mgr")])
        self.assertRegex(run.stderr, r"(?m)^  \[1/20\] tpb=4 N=  1 lw_to_fc h2d    vectorized   \.\.\. \d+\.\d\d GB/s \(")
        self.assertNotIn("not run", run.stderr)
        report = json.loads(path.read_text())
        self.assertEqual((report["format"], len(report["results"]), len(report["not_run"])), ("kvbench", 20, 0))

    def test_what_is_no_list_is_refused(self):
        self.assert_fails(self.bench("--backend=fast"), "'fast' is none of vectorized,batched")

    def test_a_signal_ends_it_and_leaves_no_file(self):
        path = self.folder / "report.json"
        process = self.start("bench", "transfer", *self.SMALL, "--iters=100000000", "--json", path)
        noted = ""
        while "[1/" not in noted:  # a test that runs has no line break yet
            chunk = os.read(process.stderr.fileno(), 4096)
            self.assertTrue(chunk, noted)
            noted += chunk.decode()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=TIMEOUT_SECONDS)
        self.assertEqual(process.returncode, 128 + signal.SIGINT)
        self.assertTrue(error.endswith("\nkvbm: interrupted\n"), error)
        self.assertEqual(self.entries(), [])


class DoctorTest(CliTest):
    NAMES = ["cpu cores", "memory", "huge pages", "locked memory", "disk", "adapters", "nvidia driver", "gpus", "gds", "io_uring"]

    def test_every_check_is_one_line(self):
        out = self.assert_succeeds(kvbm("doctor", "--disk-dir", self.folder))
        lines = out.splitlines()
        self.assertEqual([line[8:23].strip() for line in lines], self.NAMES)
        for line in lines:
            self.assertRegex(line, r"^(ok|warn|missing) +")
            # What is not well comes with its mend.
            self.assertEqual(" -> " in line, not line.startswith("ok"), line)
        self.assertEqual(self.entries(), [])

    def test_the_machine_is_told_as_it_is(self):
        out = self.assert_succeeds(kvbm("doctor"))
        self.assertIn(f"{len(os.sched_getaffinity(0))} of {os.sysconf('SC_NPROCESSORS_ONLN')} may be used", out)
        driver = os.path.exists("/proc/driver/nvidia/version")
        self.assertRegex(out, r"(?m)^ok +nvidia driver" if driver else r"(?m)^missing nvidia driver")

    def test_a_limit_on_locked_memory_is_a_warning(self):
        def limit_locked_memory():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

        out = self.assert_succeeds(kvbm("doctor", preexec_fn=limit_locked_memory))
        self.assertRegex(out, r"(?m)^warn +locked memory +64 KiB -> ulimit -l")

    def test_a_disk_folder_must_exist(self):
        self.assert_fails(kvbm("doctor", "--disk-dir", self.folder / "none"), "none is no folder")
        self.assert_fails(kvbm("doctor", "--disk-dir", self.write("file", "")), "file is no folder")

    def test_a_read_only_disk_is_missing(self):
        out = self.assert_succeeds(kvbm("doctor", "--disk-dir", self.read_only_folder()))
        self.assertRegex(out, r"(?m)^missing disk .*not writable -> ")

    def test_colours_are_for_terminals_alone(self):
        self.assertNotIn("\x1b", self.assert_succeeds(kvbm("doctor")))
        text, status = Terminal("doctor").end()
        self.assertEqual(status, 0)
        self.assertIn("\x1b[", text)

    def test_no_color_is_honoured(self):
        for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": None}):
            text, status = Terminal("doctor", env=environment(**variables)).end()
            self.assertEqual(status, 0)
            self.assertNotIn("\x1b", text)
        self.assertIn("\x1b[", Terminal("doctor", env=environment(NO_COLOR="")).end()[0])


class WithoutCudaTest(CliTest):
    """A build without CUDA, whether or not the machine has a GPU."""

    LEFT_OUT = "CUDA was left out of this build: configure with -DKVBM_WITH_CUDA=ON"

    def test_the_doctor_names_the_option(self):
        out = self.assert_succeeds(kvbm("doctor"))
        self.assertRegex(out, r"(?m)^missing adapters .*; CUDA was left out of this build -> configure with -DKVBM_WITH_CUDA=ON$")
        self.assertRegex(out, rf"(?m)^missing gpus +{self.LEFT_OUT} -> the host device works without$")

    def test_a_gpu_is_refused_and_the_option_named(self):
        for arguments in (
            ["replay", self.generate(), "--g1-blocks=64"],
            ["bench", "calibrate"],
            ["bench", "transfer"],
        ):
            for device in ("cuda", "cuda:0"):
                self.assert_fails(kvbm(*arguments, "--device", device), self.LEFT_OUT)

    def test_the_host_needs_no_cuda(self):
        out = self.assert_succeeds(kvbm("replay", self.generate(), "--quiet", "--g1-blocks=64", "--block-bytes=4096", "--json=/dev/stdout"))
        self.assertEqual(json.loads(out)["mismatches"], 0)


class DoctorMetricsTest(CliTest):
    """What the doctor says of a page of metrics. The pages are a replay's, and changed copies of them."""

    NAMES = ["hits", "host memory", "disk", "drops", "failures", "bypass"]

    def page(self, g2=64, **options):
        page = self.folder / "page.txt"
        trace = self.generate()
        arguments = [f"--{name}={value}" for name, value in {"g1-blocks": 64, "g2-blocks": g2, **options}.items()]
        self.assert_succeeds(
            kvbm("replay", trace, "--block-bytes=4096", "--no-bytes", "--quiet", "--metrics", page, *arguments)
        )
        return page

    def changed(self, page, **values):
        """The page with other values, by name."""
        text = page.read_text()
        for name, value in values.items():
            text, number = re.subn(rf"(?m)^({name}(?:{{.*}})?) .*$", rf"\g<1> {value}", text)
            self.assertGreater(number, 0, name)
        return self.write("changed.txt", text)

    def lines(self, page):
        out = self.assert_succeeds(kvbm("doctor", "--metrics", page))
        self.assertEqual([line[8:23].strip() for line in out.splitlines()], self.NAMES)
        return {line[8:23].strip(): (line[:8].strip(), line[23:]) for line in out.splitlines()}

    def value(self, page, series):
        return int(re.search(rf"(?m)^{re.escape(series)} (\d+)$", page.read_text())[1])

    def test_it_counts_what_the_page_says(self):
        page = self.page(g2=512)
        stored = self.value(page, 'kvbm_transfer_blocks_total{route="g1_to_g2"}')
        loaded = self.value(page, 'kvbm_transfer_blocks_total{route="g2_to_g1"}')
        self.assertGreater(loaded, 0)
        status, text = self.lines(page)["host memory"]
        self.assertEqual(status, "ok")
        self.assertIn(f"{100 * loaded / stored:.1f} % given back", text)
        self.assertIn("room for 512", text)

    def test_a_host_memory_too_small_is_told(self):
        status, text = self.lines(self.page(g2=8))["host memory"]
        self.assertEqual(status, "warn")
        self.assertIn("raise DYN_KVBM_CPU_CACHE_GB", text)

    def test_little_given_back_without_evictions_is_told_apart(self):
        page = self.changed(
            self.page(g2=512),
            **{r'kvbm_transfer_blocks_total{route="g2_to_g1"}': 1, r'kvbm_evictions_total{pool="g2"}': 0},
        )
        self.assertIn("not for lack of room", self.lines(page)["host memory"][1])

    def test_a_tier_that_is_not_there_is_no_reproach(self):
        self.assertEqual(self.lines(self.page())["disk"], ("ok", "there is none"))

    def test_what_goes_wrong_comes_with_its_mend(self):
        page = self.page(g2=512, **{"g3-blocks": 64})
        for name, values, mend in (
            ("drops", {r'kvbm_store_dropped_blocks_total{reason="no_room"}': 10**6}, "all of it is in use"),
            ("drops", {r'kvbm_store_dropped_blocks_total{reason="backlog"}': 10**6}, "slower than the engine"),
            ("drops", {"kvbm_evicted_unsaved_blocks_total": 3}, "DYN_KVBM_DISK_CACHE_GB"),
            ("failures", {"kvbm_lost_blocks_total": 3}, "a worker has gone"),
            ("failures", {"kvbm_given_up_blocks_total": 3}, "broken disk"),
            ("failures", {"kvbm_loads_timed_out_total": 3}, "slower than what is asked"),
        ):
            fine = self.changed(page, kvbm_evicted_unsaved_blocks_total=0)
            if name == "failures":
                self.assertEqual(self.lines(fine)[name][0], "ok")
            status, text = self.lines(self.changed(fine, **values))[name]
            self.assertEqual(status, "warn")
            self.assertIn(mend, text)
        text = page.read_text()
        bypass = self.write("bypass.txt", text + "kvbm_bypass_open 1\nkvbm_bypassed_lookups_total 4\n")
        self.assertIn("the log says why", self.lines(bypass)["bypass"][1])
        corrupt = self.write("corrupt.txt", text + "kvbm_corrupt_blocks_total 4\n")
        self.assertIn("replace it", self.lines(corrupt)["failures"][1])

    def test_the_page_of_vllm_says_the_same(self):
        page = self.page(g2=8)
        engine = re.sub(r"(?m)^kvbm_(\w+)({|)", r'vllm:kvbm_\1{engine="0",', page.read_text())
        engine = engine.replace(", ", "} ")
        engine = re.sub(r'",(\w+=".*") ', r'",\1 ', engine)
        self.assertEqual(self.lines(self.write("engine.txt", engine)), self.lines(page))

    def test_a_page_is_read_over_http(self):
        text = self.page(g2=8).read_bytes()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                found = self.path == "/metrics"
                self.send_response(200 if found else 404)
                self.end_headers()
                self.wfile.write(text if found else b"")

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Page)
        self.addCleanup(server.server_close)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        address = f"http://127.0.0.1:{server.server_port}"
        if "speaks no HTTP" in kvbm("doctor", "--metrics", address).stderr:
            self.skipTest("built without HTTP")
        self.assertEqual(self.lines(address + "/metrics"), self.lines(self.folder / "page.txt"))
        self.assert_fails(kvbm("doctor", "--metrics", address), "status 404")

    def test_what_is_no_page_is_refused(self):
        self.assert_fails(kvbm("doctor", "--metrics", self.folder / "none"), "neither a URL such as")
        self.assert_fails(kvbm("doctor", "--metrics", self.folder), "neither a URL such as")
        self.assert_fails(kvbm("doctor", "--metrics", self.write("empty", "")), "neither a URL such as")
        self.assert_fails(kvbm("doctor", "--metrics", self.write("html", "<html>")), "line 1 ", "html")
        other = self.write("other", "process_cpu_seconds_total 4\n")
        self.assert_fails(kvbm("doctor", "--metrics", other), "no series of kvbm", "DYN_KVBM_METRICS=true")
        self.assert_fails(kvbm("doctor", "--metrics", other, "--disk-dir", self.folder), "excludes")

    def test_an_address_where_nobody_is_is_told(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/metrics"
            run = kvbm("doctor", "--metrics", url)
        if "speaks no HTTP" in run.stderr:
            self.skipTest("built without HTTP")
        self.assert_fails(run, "cannot read http://127.0.0.1", "does the server run?")


class ReplayOptionsTest(CliTest):
    """What a replay refuses before it begins."""

    def setUp(self):
        super().setUp()
        self.trace = self.write("trace.jsonl", LINE)

    def refuse(self, *arguments, parts=()):
        before = self.entries()
        self.assert_fails(kvbm("replay", self.trace, *arguments), *parts)
        self.assertEqual(self.entries(), before)

    def test_a_trace_is_required_and_must_exist(self):
        self.assert_fails(kvbm("replay"), "trace is required")
        self.assert_fails(kvbm("replay", self.folder / "none"), "No such file or directory")
        self.assert_fails(kvbm("replay", self.folder), "it is a directory")
        self.assert_fails(kvbm("replay", self.write("empty", "")), "holds no request")

    def test_sizes_that_make_no_sense_are_refused(self):
        for arguments, parts in (
            (["--g1-blocks", "0"], ["--g1-blocks", "from 1 to 1073741824"]),
            (["--g1-blocks", "-5"], ["'-5' is no whole number"]),
            (["--g1-blocks", "10k"], ["'10k' is no whole number"]),
            (["--g2-blocks", "1073741825"], ["--g2-blocks", "out of range"]),
            (["--g3-blocks", "99999999999999999999"], ["--g3-blocks", "out of range"]),
            (["--g1-bytes", "0"], ["--g1-bytes", "0 bytes"]),
            (["--g1-bytes", "4G"], ["--g1-bytes", "GiB"]),
            (["--g1-bytes", "1KiB"], ["less than one block of 64 KiB"]),
            (["--block-bytes", "0"], ["--block-bytes", "0 bytes"]),
            (["--block-bytes", "99999999999TiB"], ["--block-bytes"]),
            (["--block-bytes", "1000003"], ["1000003 bytes on one rank cannot be split"]),
            (["--device", "tpu"], ["device is tpu", "host, cuda or cuda:N"]),
            (["--device", "cuda", "--no-bytes"], ["leave the device out"]),
            (["--device", "cuda:4242"], ["device = cuda:4242", "kvbm doctor", "device = host"]),
            (["--ranks", "0"], ["--ranks"]),
            (["--ranks", "3"], ["65536 bytes cannot be shared evenly by 3 ranks"]),
            (["--ranks", "4096"], ["ranks is 4096"]),
            (["--g1-blocks", "1", "--g1-bytes", "1MiB"], ["--g1-blocks and --g1-bytes exclude each other"]),
            (["--limit", "0"], ["--limit"]),
            (["--policy", "magic"], ["'magic'", "lineage"]),
            (["--groups", "half"], ["'half' is no layer group"]),
            (["--groups", ""], ["is no layer group"]),
        ):
            self.refuse(*arguments, parts=parts)

    def test_more_than_the_machine_has_names_what_is_free(self):
        self.refuse("--g1-blocks", "1000000000", parts=["G1 and G2 need", "of memory and", "are free"])
        self.refuse("--g2-bytes", "60TiB", parts=["G1 and G2 need", "of memory and", "are free"])
        self.refuse("--g1-blocks", "1000000000", "--block-bytes", "512GiB", parts=["more than any machine has"])
        self.refuse("--g1-blocks", "1", "--g3-bytes", "60TiB", "--disk-dir", self.folder, parts=["G3 needs", "are free there"])

    def test_files_in_the_disk_folder_are_no_room_for_g3(self):
        free = shutil.disk_usage(self.folder).free
        with open(self.folder / "sparse", "wb") as sparse:
            sparse.truncate(min(free + 2 * TIB, 15 * TIB))

        def limit_file_size():  # if G3 is begun all the same
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        arguments = ["--g1-blocks", 1, "--block-bytes", "512KiB", "--g3-bytes", free + TIB, "--disk-dir", self.folder]
        run = kvbm("replay", self.trace, *arguments, preexec_fn=limit_file_size)
        self.assert_fails(run, "G3 needs", "are free there")

    def test_a_file_without_a_name_is_refused(self):
        for option in ("--json", "--metrics", "--disk-dir"):
            self.refuse(option, "", parts=[f"{option}: the name is empty"])

    def test_two_reports_need_two_files(self):
        out = self.folder / "out"
        (self.folder / "link").symlink_to(out)
        for other in (out, self.folder / "." / "out", self.folder / "link"):
            self.refuse("--json", out, "--metrics", other, parts=["--json and --metrics both write"])

    def test_a_report_does_not_replace_the_trace(self):
        (self.folder / "link").symlink_to(self.trace)
        for option in ("--json", "--metrics"):
            for out in (self.trace, self.folder / "link"):
                self.refuse(option, out, parts=[f"{option} would replace the trace {self.trace}"])
        self.assertEqual(self.trace.read_text(), LINE)

    def test_a_disk_tier_and_its_folder_need_each_other(self):
        self.refuse("--g3-blocks", "1", parts=["G3 lies on disk"])
        self.refuse("--disk-dir", self.folder, parts=["G3 has no blocks"])
        self.refuse("--g3-blocks", "1", "--no-bytes", "--disk-dir", self.folder, parts=["without bytes"])

    def test_a_disk_folder_must_exist_and_be_writable(self):
        self.refuse("--g3-blocks", "1", "--disk-dir", self.folder / "none", parts=["No such file or directory"])
        self.refuse("--g3-blocks", "1", "--disk-dir", self.trace, parts=["is no folder"])
        folder = self.read_only_folder()
        self.refuse("--g3-blocks", "1", "--disk-dir", folder, parts=[f"cannot write into --disk-dir {folder}"])

    def test_a_report_that_cannot_be_written_is_refused_at_once(self):
        for option in ("--json", "--metrics"):
            self.refuse(option, self.folder, parts=["it is a directory"])
            self.refuse(option, self.folder / "none" / "x", parts=["No such file or directory"])


class ReplayTest(CliTest):
    SMALL = ["--g1-blocks", 256, "--block-bytes", "4KiB"]

    def replay(self, trace, *arguments, **options):
        return kvbm("replay", trace, *arguments, **options)

    def report(self, trace, *arguments):
        path = self.folder / "report.json"
        self.assert_succeeds(self.replay(trace, "--quiet", "--json", path, *arguments))
        return json.loads(path.read_text())

    def test_a_replay_shows_a_table_and_a_plot(self):
        run = self.replay(self.generate(), *self.SMALL)
        self.assertEqual(run.returncode, 0, run)
        self.assertRegex(run.stdout, r"(?m)^  requests +\d")
        self.assertRegex(run.stdout, r"(?m)^  bytes +[\d ]+ blocks compared, 0 wrong$")
        self.assertRegex(run.stdout, r"(?m)^ *\d+ %\|")
        self.assertTrue(run.stdout.isascii())

    def test_the_plot_follows_the_locale(self):
        trace = self.generate()
        run = self.replay(trace, *self.SMALL, env=environment(LC_ALL="C.UTF-8"), encoding="utf-8")
        self.assertRegex(run.stdout, r"(?m)^ *\d+ %\u2502")

    def test_quiet_shows_nothing(self):
        self.assertEqual(self.assert_succeeds(self.replay(self.generate(), "--quiet", *self.SMALL)), "")

    def test_the_report_adds_up(self):
        trace = self.generate()
        report = self.report(trace, *self.SMALL, "--g2-blocks", 512, "--g3-blocks", 1024, "--disk-dir", self.folder)
        stats = self.assert_succeeds(kvbm("trace", "stats", trace))
        self.assertEqual((report["format"], report["version"]), ("kvbm-replay-report", 1))
        self.assertEqual(report["accesses"], int(re.search(r"(?m)^accesses +(\d+)$", stats)[1]))
        self.assertEqual(report["accesses"], report["hits"]["total"] + report["misses"])
        self.assertEqual(report["hits"]["total"], sum(report["hits"][tier] for tier in ("g1", "g2", "g3")))
        self.assertEqual(report["mismatches"], 0)
        self.assertGreater(report["hits"]["total"], 0)
        self.assertGreater(report["verified_blocks"], 0)
        self.assertEqual(report["timeline"][-1]["accesses"], report["accesses"])
        # A slot on disk is the block and its header, padded to 4 KiB.
        self.assertEqual(report["configured_bytes"], 256 * 4096 + 512 * 4096 + 1024 * 8192)
        for events in report["events"].values():
            self.assertEqual(events["created"] + events["migrated"] - events["deleted"], events["resident"])

    def test_a_tier_that_holds_everything_reaches_the_best_hit_share(self):
        trace = self.generate()
        stats = self.assert_succeeds(kvbm("trace", "stats", trace))
        report = self.report(trace, "--g1-blocks", 16384, "--block-bytes", 64)
        self.assertEqual(f"{100 * report['hit_share']['total']:.2f} %", re.search(r"best hit share +(.*)", stats)[1])

    def test_names_alone_give_the_same_hits_as_bytes(self):
        trace = self.generate()
        with_bytes = self.report(trace, *self.SMALL)
        without = self.report(trace, "--no-bytes", *self.SMALL)
        self.assertEqual(with_bytes["hits"], without["hits"])
        self.assertEqual(without["verified_blocks"], 0)
        self.assertEqual(without["options"]["bytes"], "none")

    def test_sizes_in_bytes_are_blocks_rounded_down(self):
        trace = self.generate()
        report = self.report(trace, "--g1-bytes", "1.01MiB", "--block-bytes", "4KiB")
        self.assertEqual(report["options"]["g1_blocks"], 258)

    def test_ranks_groups_and_overlap_keep_the_bytes_right(self):
        report = self.report(
            self.generate(), *self.SMALL, "--g2-blocks", 512, "--ranks", 4, "--groups", "full,window:4@1KiB", "--overlap"
        )
        self.assertEqual(report["mismatches"], 0)
        self.assertGreater(report["verified_blocks"], 0)
        self.assertEqual(report["options"]["groups"], "full,window:4@1024")

    def test_every_policy_can_be_played(self):
        trace = self.generate()
        for policy in ("lineage", "lru", "fifo"):
            self.assertEqual(self.report(trace, *self.SMALL, "--policy", policy)["options"]["policy"], policy)

    def test_the_limit_ends_the_trace_early(self):
        report = self.report(self.generate(), *self.SMALL, "--limit", 3)
        self.assertEqual((report["requests"], report["options"]["limit"]), (3, 3))

    def test_metrics_are_prometheus_text(self):
        path = self.folder / "metrics"
        self.assert_succeeds(self.replay(self.generate(), "--quiet", "--metrics", path, *self.SMALL))
        self.assertIn("# TYPE kvbm_", path.read_text())

    def test_a_report_goes_to_standard_output_if_asked(self):
        out = self.assert_succeeds(self.replay(self.generate(), "--quiet", "--json", "/dev/stdout", *self.SMALL))
        self.assertEqual(json.loads(out)["mismatches"], 0)

    def test_a_report_goes_into_a_pipe(self):
        for option, begin in (("--json", '{\n'), ("--metrics", "# HELP")):
            pipe = self.pipe()
            reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
            self.addCleanup(reader.wait)
            self.addCleanup(reader.kill)
            self.assert_succeeds(self.replay(self.generate(), "--quiet", option, pipe, *self.SMALL))
            text, _ = reader.communicate(timeout=TIMEOUT_SECONDS)
            self.assertEqual(text[: len(begin)], begin)
            pipe.unlink()

    def test_waiting_for_the_reader_of_a_report_can_be_interrupted(self):
        trace = self.generate()
        pipe = self.pipe()
        self.assert_is_interruptible("replay", trace, "--quiet", "--json", pipe, *self.SMALL)
        with open(pipe, "r+b", buffering=0) as full:
            os.set_blocking(full.fileno(), False)
            while full.write(bytes(4096)):
                pass
            self.assert_is_interruptible("replay", trace, "--quiet", "--json", pipe, *self.SMALL)

    def test_a_report_that_finds_no_space_leaves_nothing(self):
        run = self.replay(self.generate(), "--quiet", "--json", "/dev/full", *self.SMALL)
        self.assert_fails(run, "cannot write /dev/full: No space left on device")

    def test_an_interrupted_replay_ends_with_130_and_leaves_nothing(self):
        trace = self.generate(sessions=4000)
        before = self.entries()
        terminal = Terminal(
            "replay", trace, "--g1-blocks", 1024, "--g2-blocks", 1024, "--json", self.folder / "report.json"
        )
        terminal.read_until(b"replay [")  # the bar is drawn as the replay begins
        os.kill(terminal.pid, signal.SIGINT)
        text, status = terminal.end()
        self.assertEqual(status, 130, text)
        self.assertTrue(text.rstrip().endswith("interrupted"), text)
        # The bar is gone before the message comes.
        self.assertGreater(text.rindex("\r\x1b[K"), text.rindex("replay ["))
        self.assertEqual(self.entries(), before)

    def lossy_replay(self, trace, start):
        """Runs a replay whose disk tier forgets all it holds, again and again."""
        process_id, wait = start(
            "replay", trace, *self.SMALL, "--g2-blocks", 256, "--g3-blocks", 4096, "--disk-dir", self.folder, "--json",
            self.folder / "report.json",
        )  # fmt: skip
        while os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            forget_files(process_id, self.folder)
        return wait()

    def test_loads_that_fail_are_reported_and_end_with_2(self):
        def start(*arguments):
            process = subprocess.Popen(
                [PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
            )
            return process.pid, lambda: (process.communicate()[0], process.returncode)

        trace = self.generate(sessions=400)
        with open(self.folder / "errors", "w+") as errors:
            out, status = self.lossy_replay(trace, start)
            errors.seek(0)
            lines = errors.read().splitlines()
        self.assertEqual(status, 2)
        report = json.loads((self.folder / "report.json").read_text())
        self.assertEqual(report["mismatches"], 0)
        self.assertGreater(report["failed_loads"], 0)
        self.assertRegex(out, r"(?m)^  onboarded .* [\d ]+ loads failed$")
        self.assertRegex(lines[-1], rf"^kvbm: {report['failed_loads']} loads .* failed or ran out of time; the first: ")
        warnings = [line for line in lines if line.startswith("kvbm: warning: [worker] operation ")]
        self.assertGreaterEqual(len(warnings), report["failed_loads"])

    def test_warnings_do_not_go_on_where_the_bar_stands(self):
        def start(*arguments):
            terminal = Terminal(*arguments)
            reader = threading.Thread(target=terminal.read_until)
            reader.start()

            def wait():
                reader.join()
                return terminal.end()

            return terminal.pid, wait

        text, status = self.lossy_replay(self.generate(sessions=400), start)
        self.assertEqual(status, 2, text)
        parts = re.split(r"\r\x1b\[K|\r\n", text)
        self.assertTrue(any(part.startswith("replay [") for part in parts))
        self.assertTrue(any(part.startswith("kvbm: warning: ") for part in parts))
        for part in parts:
            self.assertNotIn("kvbm: ", part[1:])

    def test_memory_stays_near_what_the_tiers_need(self):
        if b"__asan_init" in PROGRAM.read_bytes() or b"__tsan_init" in PROGRAM.read_bytes():
            self.skipTest("a sanitizer takes memory of its own")
        block_bytes, blocks = 16384, (1024, 4096, 8192)
        tiers = [f"--g{tier}-blocks={number}" for tier, number in enumerate(blocks, 1)]
        trace = self.generate(sessions=400)
        report = self.report(trace, *tiers, "--block-bytes", block_bytes, "--disk-dir", self.folder)
        self.assertGreater(report["evictions"]["g2"], 0)  # all tiers are in use
        memory_tiers = sum(blocks[:2]) * block_bytes  # what is on disk takes no memory
        slot_bytes = block_bytes + 4096  # a header, and whole pages
        self.assertEqual(report["configured_bytes"], memory_tiers + blocks[2] * slot_bytes)
        self.assertGreater(report["peak_rss_bytes"], memory_tiers)
        self.assertLess(report["peak_rss_bytes"], memory_tiers + 200 * sum(blocks) + (64 << 20))

    def test_progress_is_plain_where_there_is_no_terminal(self):
        run = self.replay(self.generate(), *self.SMALL)
        self.assertNotIn("\x1b", run.stderr)
        self.assertNotIn("\r", run.stderr)


class RecordTest(CliTest):
    """A flight record in place of a trace."""

    def setUp(self):
        super().setUp()
        self.record = self.folder / "record"
        subprocess.run([os.environ["KVBM_RECORD_CORPUS"], self.record], check=True, timeout=TIMEOUT_SECONDS)
        self.first, self.second = self.record / "record-00000000.kvbr", self.record / "record-00000001.kvbr"

    def play(self, *arguments):
        """In the first file a rank has less host memory than it was to: the leader of the replay says so again."""
        run = kvbm("replay", *arguments)
        self.assertEqual(run.returncode, 0, run)
        self.assertRegex(run.stderr, r"\Akvbm: warning: .* goes on with 5 of 8 blocks in G2 [^\n]+\n\Z")
        return run.stdout

    def test_a_record_is_played_to_equal_outcomes(self):
        path = self.folder / "report.json"
        out = self.play(self.record, "--json", path)
        self.assertRegex(out, r"(?m)^  files +2$")
        self.assertRegex(out, r"(?m)^  steps +(\d+) +\1$")
        self.assertTrue(out.endswith("\n  equal\n"), out)
        report = json.loads(path.read_text())
        self.assertEqual((report["format"], report["version"]), ("kvbm-record-report", 1))
        self.assertEqual(report["recorded"], report["replayed"])
        self.assertGreater(report["recorded"]["offered_tokens"], 0)
        self.assertEqual(self.play("--quiet", self.first), "")

    def test_without_its_beginning_it_is_played_cold(self):
        out = self.assert_succeeds(kvbm("replay", self.second))
        self.assertIn("not compared", out)
        self.assertIn("played cold: nothing was compared", out)

    def test_a_crash_costs_the_last_call(self):
        self.second.unlink()
        os.truncate(self.first, self.first.stat().st_size - 3)
        out = self.play(self.record)
        self.assertRegex(out, r"(?m)^  cut off +\d+ bytes")

    def test_calls_that_are_missing_are_told(self):
        shutil.copy(self.record / "damaged", self.first)
        out = self.play(self.record)
        self.assertRegex(out, r"(?m)^  missing +\d+ calls")
        self.assertIn("equal up to the first missing call", out)

    def test_what_cannot_be_read_is_refused(self):
        self.assert_fails(kvbm("replay", self.record / "newer_version"), "version 4")

    def test_options_of_traces_are_refused(self):
        for option in (["--g2-blocks", "4"], ["--ranks", "2"], ["--no-bytes"], ["--metrics", self.folder / "m"]):
            self.assert_fails(kvbm("replay", self.record, *option), f"{option[0]} is for traces")

    def test_the_report_does_not_replace_the_record(self):
        before = self.first.read_bytes()
        for record in (self.first, self.record):
            self.assert_fails(kvbm("replay", record, "--json", self.first), "name another file")
        self.assertEqual(self.first.read_bytes(), before)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
