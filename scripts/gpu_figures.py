#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the figures that kvbm promises on a GPU beside what one run of `run_gpu_tests --bench` measured.

usage: gpu_figures.py RESULTS [--json FILE]

RESULTS is the folder of that run: kvbench.json, kvbench-64.json, kvbm_cuda_bench.json, kvbm_kernels_bench.json. Shares
are of plain copies in the same run. A figure of several cells is the worst of them, with the cell's name. The exit status tells
only whether the figures could be read: machines are noisy, and a timing is never a test.
"""
import argparse
import functools
import json
import pathlib
import sys

MIB = 1 << 20


class Missing(Exception):
    """A result that a figure needs is not in the run."""


class Run:
    def __init__(self, folder):
        self.kvbench = self._read(folder / "kvbench.json")
        self.kvbench_64 = self._read(folder / "kvbench-64.json")
        self.cuda = self._read(folder / "kvbm_cuda_bench.json")
        self.kernels = self._read(folder / "kvbm_kernels_bench.json")

    @staticmethod
    def _read(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def cells(self, patterns, directions, backend="auto"):
        """Of kvbench, with a name for people."""
        for cell in self.kvbench["results"]:
            if (cell["pattern"] in patterns and cell["direction"] in directions and cell["backend"] == backend):
                yield cell, f"{cell['pattern']} {cell['direction']} N={cell['num_blocks']}"

    def bench(self, prefix):
        """Of kvbm_cuda_bench: (counters, the arguments as numbers, the name)."""
        for each in self.cuda["benchmarks"]:
            parts = each["name"].split("/")
            if parts[0] == prefix and each.get("run_type", "iteration") == "iteration":
                yield each, [int(part) for part in parts[1:] if part.lstrip("-").isdigit()], each["name"]

    def kernel_cases(self, section):
        for each in self.kernels["results"]:
            if each["section"] == section:
                yield each, each["case"]


def worst(values, more_is_better):
    """(value, where) of the worst; `values` are such pairs."""
    values = list(values)
    if not values:
        raise Missing
    return (min if more_is_better else max)(values, key=lambda pair: pair[0])


BOTH = ("h2d", "d2h")
APART = ("lw_to_fc", "fc_to_lw")
PERMUTED = ("nhd_to_universal", "universal_to_nhd")


def contiguous(run):
    for cell, name in run.cells(("fc_to_fc",), BOTH):
        yield cell["share_of_plain"], name
        if cell["total_bytes"] >= 256 * MIB:
            yield cell["share"], name + " of the large copy"


def fragments(run):
    for cell, name in run.cells(APART, BOTH):
        if cell["num_blocks"] == 128:
            yield cell["share"], name


def one_block(run):
    for cell, name in run.cells(APART, BOTH):
        if cell["num_blocks"] == 1:
            yield cell["share_of_plain"], name


def against_best(run):
    for grid in (run.kvbench, run.kvbench_64):
        for cell in grid["auto"]:
            where = f"{cell['pattern']} {cell['direction']} N={cell['num_blocks']} of {cell['tokens_per_block']} tokens"
            yield cell["auto_share"], f"{where} against {cell['backend']}"


def both_ways(run):
    for each, arguments, name in run.bench("BM_CudaBothWays"):
        if arguments[0] == 128:
            yield each["chosen_share"], name


def permutes(run):
    for case, name in run.kernel_cases("permutes"):
        if case["bytes"] >= 64 * MIB and "universal" in name:
            yield case["share"], name


def fused(run):
    for cell, name in run.cells(PERMUTED, BOTH):
        if cell["num_blocks"] == 128:
            yield cell["share"], name


def manager_added(run):
    for each, _, name in run.bench("BM_CudaLevels"):
        yield each["managed_us"] - each["raw_us"], name


def submission(run):
    for each, _, name in run.bench("BM_CudaSubmission"):
        yield each["submit_us"], name


def allocations(run):
    for prefix in ("BM_CudaContiguous", "BM_CudaChunks"):
        for each, _, name in run.bench(prefix):
            yield each["allocations"], name


def pinned_pool(run):
    for each, _, name in run.bench("BM_PinnedMemory"):
        yield each["ratio"], name


def digests(run):
    times = {name: case["ms"] for case, name in run.kernel_cases("fragments")}
    for name, ms in times.items():
        plain = name.removesuffix(", digests")
        if plain != name:
            yield 100 * (ms / times[plain] - 1), name


def beside(run, both):
    for each, (_, way, _), name in run.bench("BM_CudaBeside"):
        if (way == 2) == both:
            yield 100 * each["slowed"], name


# (what, values, unit, bar, whether more is better)
FIGURES = [
    ("contiguous blocks, auto", contiguous, "", 0.98, True),
    ("20,480 runs of 32 KiB, layers apart", fragments, "", 0.92, True),
    ("one block of 160 runs of 32 KiB", one_block, "", 0.88, True),
    ("auto against the best fixed backend", against_best, "", 0.97, True),
    ("both ways at a time", both_ways, "", 0.95, True),
    ("permutation on the device", permutes, "", 0.90, True),
    ("permutation on the way", fused, "", 0.90, True),
    ("TransferManager adds to the raw call", manager_added, "us", 20, False),
    ("submission, 1,024 contiguous blocks", submission, "us", 10, False),
    ("allocations of a ready plan", allocations, "", 0, False),
    ("32 GiB pinned, times cudaMallocHost", pinned_pool, "x", 2.5, True),
    ("digests in the kernel copy", digests, "%", 2, False),
    ("a matrix product slowed by a transfer", functools.partial(beside, both=False), "%", 3, False),
    ("the same by transfers both ways", functools.partial(beside, both=True), "%", 3, False),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    try:
        run = Run(arguments.results)
    except (OSError, ValueError) as error:
        print(f"gpu_figures: cannot read the results: {error}", file=sys.stderr)
        return 2

    rows = []
    missing = []
    for what, values, unit, bar, more_is_better in FIGURES:
        try:
            pairs = list(values(run))
            measured, where = worst(pairs, more_is_better)
        except (KeyError, Missing):
            missing.append(what)
            continue
        met = [value >= bar if more_is_better else value <= bar for value, _ in pairs]
        rows.append({"figure": what, "measured": round(measured, 4), "unit": unit, "bar": bar,
                     "more_is_better": more_is_better, "worst": where, "cells": len(met), "met": sum(met)})

    print(f"{'figure':<42} {'worst':>9}      bar       cells met   the worst is")
    for row in rows:
        sign = ">=" if row["more_is_better"] else "<="
        cells = f"{row['met']} of {row['cells']}"
        print(f"{row['figure']:<42} {row['measured']:>9.3f} {row['unit']:<3} {sign} {row['bar']:<5g} {cells:>12}   "
              f"{row['worst']}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")
    for what in missing:
        print(f"gpu_figures: the run does not have what this needs: {what}", file=sys.stderr)
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
