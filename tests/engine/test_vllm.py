# SPDX-License-Identifier: Apache-2.0
"""The real vLLM with kvbm gives token by token what it gives without."""

import pytest
from conftest import run_engine

HOST = {"DYN_KVBM_CPU_CACHE_GB": "0.2"}
LITTLE_HOST = {"DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS": "24"}


def moved(report, route, which=-1):
    return report["rounds"][which]["statistics"].get(f"kvbm_transfer_blocks_total{{route={route}}}", 0)


def check(report, expected):
    """Every round equals the run without kvbm, and nothing is left behind."""
    for number, played in enumerate(report["rounds"]):
        assert played["outputs"] == expected, f"round {number} differs"
    assert (report["open_requests"], report["open_loads"]) == (0, 0)


def test_outputs_depend_on_the_prompt(plain):
    """Otherwise equal outputs would prove nothing."""
    outputs = [tuple(answer) for turns in plain.outputs() for answer in turns]
    assert len(set(outputs)) == len(outputs)
    assert all(len(set(answer)) > len(answer) // 2 for answer in outputs)


def test_two_hundred_requests_over_host_memory(plain):
    options = {"conversations": 24, "turns": 3}
    report = run_engine(HOST, **options, rounds=3)
    check(report, plain.outputs(**options))
    cold, *warm = report["rounds"]
    assert moved(report, "g1_to_g2", 0) > 0
    for played in warm:
        # All full blocks before the last token come back.
        assert played["cached_tokens"] > 0.85 * played["prompt_tokens"]
    assert moved(report, "g2_to_g1") > 0


def test_loads_between_steps(plain):
    report = run_engine(HOST, load_mode="between_steps")
    check(report, plain.outputs())
    assert moved(report, "g2_to_g1") > 0


def test_a_host_tier_too_small_spills_to_disk(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine({**variables, "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER": "true"}, rounds=3)
    check(report, plain.outputs())
    assert moved(report, "g2_to_g3", 0) > 0
    assert moved(report, "g3_to_g2") + moved(report, "g3_to_g1") > 0
    played = report["rounds"][-1]
    assert played["cached_tokens"] > 0.5 * played["prompt_tokens"]


def test_the_disk_filter_writes_what_was_seen_twice(plain, tmp_path):
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables, rounds=3)
    check(report, plain.outputs())
    assert report["rounds"][0]["statistics"]["kvbm_disk_filtered_blocks_total"] > 0
    first, second, third = (played["cached_tokens"] for played in report["rounds"])
    assert third > second > first
    assert moved(report, "g3_to_g2") + moved(report, "g3_to_g1") > 0


def test_disk_alone(plain, tmp_path):
    variables = {"DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    report = run_engine(variables)
    check(report, plain.outputs())
    assert moved(report, "g3_to_g1") > 0


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_corrupt_disk_is_a_miss(plain, tmp_path, hybrid):
    """The engine goes on with equal answers, and a line in the log and a metric say what happened."""
    variables = {**LITTLE_HOST, "DYN_KVBM_DISK_CACHE_GB": "1", "DYN_KVBM_DISK_CACHE_DIR": str(tmp_path)}
    variables["DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER"] = "true"
    report = run_engine(variables, hybrid=hybrid, rounds=3, corrupt_disk=True)
    check(report, plain.outputs(hybrid=hybrid))
    assert report["worker_statistics"]["kvbm_corrupt_blocks_total"] > 0
    assert "are computed anew" in report["stderr"]


def test_a_pool_so_small_that_requests_are_preempted(plain):
    options = {"conversations": 8, "turns": 2, "max_tokens": 100}
    report = run_engine(HOST, **options, gpu_blocks=40, max_model_len=1024)
    check(report, plain.outputs(**options))
    assert report["preemptions"] > 0
    assert moved(report, "g2_to_g1") > 0


def test_a_hybrid_model_with_sliding_windows(plain):
    report = run_engine(HOST, hybrid=True)
    check(report, plain.outputs(hybrid=True))
    played = report["rounds"][-1]
    assert played["cached_tokens"] > 0.8 * played["prompt_tokens"]


def test_mistakes_in_the_variables_stop_the_start():
    for variables, part in (
        ({}, "nowhere to keep blocks"),
        ({"DYN_KVBM_CPU_CACHE_GB": "much"}, "DYN_KVBM_CPU_CACHE_GB"),
    ):
        with pytest.raises(pytest.fail.Exception, match=part):
            run_engine(variables)
