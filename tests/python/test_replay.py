# SPDX-License-Identifier: Apache-2.0
"""kvbm.replay."""

import json
import os
import pathlib
import signal
import subprocess
import threading
import time

import pytest

import kvbm
import kvbm.program

SMALL = {"g1_blocks": 6, "block_bytes": 4096}


def write_trace(path, prompts):
    """A request for each list of block ids."""
    lines = [
        {"timestamp": i, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}
        for i, ids in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def trace(tmp_path):
    return write_trace(tmp_path / "trace.jsonl", [[1, 2, 3, 4], [11, 12, 13, 14], [1, 2, 3, 5], [1, 2, 3, 4]])


def test_a_report_counts_what_came_of_the_trace(trace):
    report = kvbm.replay(trace, **SMALL)
    assert (report["requests"], report["accesses"], report["mismatches"]) == (4, 16, 0)
    more = kvbm.replay(str(trace), **SMALL, g2_blocks=16)
    # The second request leaves two of the first four blocks in G1; the host has the rest.
    assert more["hits"]["total"] == 7 > report["hits"]["total"]
    assert more["hits"]["g2"] > 0 and more["verified_blocks"] > 0
    assert kvbm.replay(trace, **SMALL, limit=1)["accesses"] == 4


def test_it_is_what_the_program_writes(trace, tmp_path):
    options = {"g2_blocks": 2, "g3_blocks": 16, "disk_dir": tmp_path, "groups": "full,window:2@8192", "ranks": 2,
               "policy": "lru", "overlap": "off", "seed": 7}
    report = kvbm.replay(trace, **SMALL, **options)
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in {**SMALL, **options}.items() if key != "overlap"]
    written = tmp_path / "report.json"
    subprocess.run([kvbm.program.path(), "replay", trace, "--quiet", "--json", written, *arguments], check=True)
    expected = json.loads(written.read_text())
    for key in ("options", "requests", "accesses", "hits", "misses", "evictions", "trace", "version"):
        assert report[key] == expected[key], key
    again = kvbm.replay(trace, **report["options"])  # the options of a report are keywords
    assert again["options"] == report["options"]


def test_names_alone_are_moved_without_bytes(trace):
    report = kvbm.replay(trace, **SMALL, bytes="none", overlap="on")
    assert (report["verified_blocks"], report["configured_bytes"]) == (0, 0)
    assert (report["options"]["bytes"], report["options"]["overlap"]) == ("none", "on")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"bytes": "some"}, 'bytes = "some": allowed is verified or none'),
        ({"overlap": "yes"}, "overlap"),
        ({"policy": "best"}, "best"),
        ({"groups": "half"}, "half"),
        ({"g1_blocks": 0}, "G1|g1"),
        ({"cuda_ring_size": 0}, "which is no GPU"),
        ({"g3_blocks": 1}, "folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(trace, values, message):
    with pytest.raises(kvbm.InvalidArgumentError, match=message):
        kvbm.replay(trace, **{**SMALL, **values})


def test_a_trace_that_is_none_is_refused(tmp_path):
    with pytest.raises(kvbm.NotFoundError, match="none.jsonl"):
        kvbm.replay(tmp_path / "none.jsonl", **SMALL)
    (tmp_path / "broken.jsonl").write_text("{}\n")
    with pytest.raises(kvbm.InvalidArgumentError, match="broken.jsonl"):
        kvbm.replay(tmp_path / "broken.jsonl", **SMALL)
    with pytest.raises(kvbm.ExhaustedError, match="memory"):
        kvbm.replay(tmp_path / "none.jsonl", g1_blocks=1 << 30, block_bytes=1 << 20)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(kvbm.UnsupportedError, match="is a pipe"):
        kvbm.replay(tmp_path / "pipe", **SMALL)


def test_ctrl_c_ends_it_and_other_threads_run(tmp_path):
    """The trace would take far longer than the signal."""
    trace = write_trace(tmp_path / "long.jsonl", [[20 * i + j for j in range(20)] for i in range(20_000)])
    others = threading.Event()

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    thread = threading.Timer(0.02, others.set)
    before = signal.signal(signal.SIGALRM, interrupt)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            kvbm.replay(trace, g1_blocks=64, block_bytes=65536)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert others.is_set() and time.monotonic() - started < 10
    thread.join()
    assert "kvbm-replay" not in threads()


def threads():
    return [pathlib.Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
