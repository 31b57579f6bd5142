#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What kvbm does behind the real vLLM, on this machine's CPU with a tiny model: a table and a plot.

  demo.py [--conversations N] [--turns N]

Plays the same conversations without kvbm, then with host memory, then with a host tier that is too small and a disk. The
engine's own prefix cache is reset between rounds, so that what comes back comes from kvbm.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from engine_run import engine_environment

HERE = pathlib.Path(__file__).resolve().parent
BAR = 40
FROM_HOST = ("g2_to_g1",)
FROM_DISK = ("g3_to_g2", "g3_to_g1")


def run(variables, **options):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_KVBM_", "KVBM_"))}
    done = subprocess.run(
        [sys.executable, str(HERE / "engine_run.py"), json.dumps(options)],
        env={**kept, **engine_environment(), **variables},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"the engine ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))["rounds"]


def blocks(played, *routes):
    return sum(played["statistics"].get(f"kvbm_transfer_blocks_total{{route={route}}}", 0) for route in routes)


def milliseconds(played, *routes):
    """In which a copy of the routes was open."""
    name = "kvbm_transfer_busy_nanoseconds_total"
    return sum(played["statistics"].get(f"{name}{{route={route}}}", 0) for route in routes) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    shape = {"conversations": arguments.conversations, "turns": arguments.turns}

    rows = []
    print("1/3 vLLM without kvbm ...", flush=True)
    plain = run({}, connector=False, **shape)
    rows += [("without kvbm", plain[0]), ("without kvbm, after a reset", plain[1])]
    print("2/3 with host memory ...", flush=True)
    host = run({"DYN_KVBM_CPU_CACHE_GB": "0.2"}, **shape)
    rows += [("kvbm, cold", host[0]), ("kvbm, after a reset: host", host[1])]
    print("3/3 with little host memory and a disk ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        disk = run(
            {
                "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS": "24",
                "DYN_KVBM_DISK_CACHE_GB": "1",
                "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER": "true",
                "DYN_KVBM_DISK_CACHE_DIR": folder,
            },
            **shape,
        )
    rows += [("kvbm, after a reset: disk", disk[1])]

    expected = plain[0]["outputs"]
    print()
    print(
        f"{'':<29} {'prompt':>8} {'computed':>9} {'cached':>8}   {'host':>5} {'':>7}   {'disk':>5} {'':>7}   "
        f"{'round':>7}  outputs"
    )
    loaded = f"{'blocks':>5} {'ms':>7}"
    print(f"{'':<29} {'tokens':>8} {'tokens':>9} {'tokens':>8}  {loaded}  {loaded}   {'seconds':>7}")
    for name, played in rows:
        computed = played["prompt_tokens"] - played["cached_tokens"]
        equal = "equal" if played["outputs"] == expected else "DIFFERENT"
        print(
            f"{name:<29} {played['prompt_tokens']:>8} {computed:>9} {played['cached_tokens']:>8}   "
            f"{blocks(played, *FROM_HOST):>5} {milliseconds(played, *FROM_HOST):>7.2f}   "
            f"{blocks(played, *FROM_DISK):>5} {milliseconds(played, *FROM_DISK):>7.2f}   "
            f"{played['seconds']:>7.2f}  {equal}"
        )
    print("\nprompt tokens that the engine computed (#) and that were there (.)")
    for name, played in rows:
        computed = round(BAR * (1 - played["cached_tokens"] / played["prompt_tokens"]))
        print(f"{name:<29} {'#' * computed}{'.' * (BAR - computed)}")
    print("\nHost and disk: blocks that were loaded, and the time in which such copies were under way.")
    print("Within a round, later turns find the earlier ones in the engine's own prefix cache.")
    if any(played["outputs"] != expected for _, played in rows):
        sys.exit("the outputs differ")


if __name__ == "__main__":
    main()
