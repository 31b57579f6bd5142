# SPDX-License-Identifier: Apache-2.0
"""kvbm's disk below vLLM's own host pool, with the real engine."""

from conftest import run_engine

CHUNK_BYTES = 4 * 32768  # a block of the tiny model


def check(report, expected):
    for played in report["rounds"]:
        assert played["outputs"] == expected
    assert report["open_jobs"] == 0


def test_what_the_host_pool_loses_comes_back_from_disk(plain, tmp_path):
    options = {"conversations": 12, "turns": 3}
    variables = {"DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, native_pool_bytes=24 * CHUNK_BYTES, **options, rounds=3)
    check(report, plain.outputs(**options))
    written = report["rounds"][0]["statistics"]["kvbm_transfer_blocks_total{route=g1_to_g3}"]
    assert written > 24
    last = report["rounds"][-1]
    assert last["statistics"]["kvbm_transfer_blocks_total{route=g3_to_g1}"] > 0
    assert last["cached_tokens"] > 0.5 * last["prompt_tokens"]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_evicts(plain, tmp_path):
    options = {"conversations": 12, "turns": 2}
    variables = {"DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS": "16", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, native_pool_bytes=24 * CHUNK_BYTES, **options)
    check(report, plain.outputs(**options))
    assert report["rounds"][0]["statistics"]["kvbm_evictions_total{pool=g3}"] > 0
