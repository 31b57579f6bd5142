#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the figures that kvbm promises beside what a run of kvbm_bench measured.

usage: bench_figures.py RESULT.json [--json FILE]

RESULT.json is Google Benchmark's output. Several repetitions of a benchmark count as their median. The
exit status tells only whether the figures could be read: machines are noisy, and a timing is never a test.
"""
import argparse
import json
import statistics
import sys

NANOSECONDS = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}


def seconds_of_cpu(run):
    return run["cpu_time"] * NANOSECONDS[run["time_unit"]] / 1e9


def counter(name):
    return lambda run: run[name]


# (what, benchmark, value of a run, unit, bar, whether more is better)
FIGURES = [
    ("match 128 keys, 4,096 blocks", "BM_Match/4096/128", lambda r: seconds_of_cpu(r) * 1e6, "us", 5.0, False),
    ("match 128 keys, 65,536 blocks", "BM_Match/65536/128", lambda r: seconds_of_cpu(r) * 1e6, "us", 5.0, False),
    ("match 128 keys, 1 Mi blocks", "BM_Match/1048576/128", lambda r: seconds_of_cpu(r) * 1e6, "us", 5.0, False),
    ("register 1,024 blocks", "BM_Register/65536/1024/0", lambda r: seconds_of_cpu(r) * 1e3, "ms", 0.3, False),
    ("replay without bytes, 18,279 blocks", "BM_ReplayWithoutBytes/18279/0/0/process_time", seconds_of_cpu, "s", 0.5,
     False),
    ("16 blocks of 64 KiB, host to host / memcpy", "BM_TransferHostToHost/blocks:16/layout:0/manual_time",
     counter("ratio"), "x", 0.8, True),
    ("256 blocks of 64 KiB, host to host / memcpy", "BM_TransferHostToHost/blocks:256/layout:0/manual_time",
     counter("ratio"), "x", 0.8, True),
    ("a blocked thread goes on after the end, median", "BM_CompletionWakesAThread/iterations:1000/manual_time",
     counter("median_us"), "us", 50.0, False),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    try:
        with open(arguments.result, encoding="utf-8") as file:
            runs = json.load(file)["benchmarks"]
    except (OSError, ValueError, KeyError) as error:
        print(f"bench_figures: cannot read {arguments.result}: {error}", file=sys.stderr)
        return 2

    rows = []
    missing = []
    for what, name, value, unit, bar, more_is_better in FIGURES:
        measured = [value(run) for run in runs
                    if run.get("run_type", "iteration") == "iteration" and run["run_name"] == name]
        if not measured:
            missing.append(name)
            continue
        median = statistics.median(measured)
        met = median >= bar if more_is_better else median < bar
        rows.append({"figure": what, "measured": median, "unit": unit, "bar": bar,
                     "more_is_better": more_is_better, "met": met, "runs": len(measured)})

    print(f"{'figure':<44} {'measured':>10}      bar")
    for row in rows:
        sign = ">=" if row["more_is_better"] else "< "
        print(f"{row['figure']:<44} {row['measured']:>10.3f} {row['unit']:<3} {sign} {row['bar']:g} {row['unit']}"
              f"{'' if row['met'] else '   MISSED'}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")
    for name in missing:
        print(f"bench_figures: the result has no {name}", file=sys.stderr)
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
