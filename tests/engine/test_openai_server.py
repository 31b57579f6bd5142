# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server with the connector configuration that users of Dynamo's KVBM have, over HTTP."""

import os
import pathlib
import random
import subprocess

import pytest
from api_tester import ApiTester
from determinism_tester import DeterminismTester
from engine_run import ROOT, engine_environment
from metrics_text import fetch_kvbm_metrics, total
from openai_server import OpenAiServer, free_port
from test_vllm import PROGRAM

TRANSFER_CONFIG = (
    '{"kv_connector":"DynamoConnector","kv_role":"kv_both",'
    '"kv_connector_module_path":"kvbm.vllm_integration.connector"}'
)
ARGUMENTS = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "2048", "--block-size", "32"]
ARGUMENTS += ["--kv-cache-memory-bytes", str(512 * 4 * 32768), "--max-num-seqs", "8"]
ARGUMENTS += ["--max-num-batched-tokens", "256", "--disable-uvicorn-access-log"]


def words(rng, count):
    return " ".join(f"w{rng.randrange(4, 1024)}" for _ in range(count))


def make_prompts():
    rng = random.Random(7)
    systems = [words(rng, 150), words(rng, 260)]
    prompts = [f"{rng.choice(systems)} {words(rng, rng.randrange(5, 120))}" for _ in range(14)]
    tokens = [[rng.randrange(4, 1024) for _ in range(rng.randrange(40, 300))] for _ in range(6)]
    return prompts + tokens


@pytest.fixture
def start(tmp_path):
    """Starts a server in a folder of its own."""
    from tiny_model import make_tiny_model

    model = make_tiny_model(ROOT / "build" / "models" / "llama")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_KVBM_", "KVBM_"))}

    def server(name, arguments=(), variables=None):
        environment = {**kept, **engine_environment(), "VLLM_SERVER_DEV_MODE": "1", **(variables or {})}
        folder = tmp_path / name
        folder.mkdir()
        return OpenAiServer(folder, model, [*ARGUMENTS, *arguments], environment)

    return server


def check_doctor(page, hits):
    """What vLLM's page shows of kvbm may be older."""
    doctor = subprocess.run([PROGRAM, "doctor", "--metrics", page], capture_output=True, text=True, timeout=60)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    found = {line[8:23].strip(): line[23:] for line in doctor.stdout.splitlines()}
    assert set(found) == {"hits", "host memory", "disk", "drops", "failures", "bypass"}
    matched = int("".join(c for c in found["hits"].split(" tokens matched")[0] if c.isdigit()))
    assert 0 < matched <= hits
    assert "room for 100" in found["host memory"]


def test_answers_over_http_equal_those_without_kvbm(start, tmp_path):
    prompts = make_prompts()
    chat = [{"role": "user", "content": prompts[0]}]
    fields = {"ignore_eos": True}
    with start("plain") as server:
        api = ApiTester(server.base_url)
        expected = DeterminismTester(api, prompts).answers(**fields)
        expected_chat = api.chat(chat, 16, **fields)
    assert len(set(expected)) == len(expected)
    left_by_the_engine = server.files_left

    disk = tmp_path / "disk"
    disk.mkdir()
    port = free_port()
    variables = {
        "DYN_KVBM_METRICS": "true",
        "DYN_KVBM_METRICS_PORT": str(port),
        "DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS": "100",
        "DYN_KVBM_DISK_CACHE_GB": "0.2",
        "DYN_KVBM_DISK_CACHE_DIR": str(disk),
    }
    with start("kvbm", ["--kv-transfer-config", TRANSFER_CONFIG], variables) as server:
        api = ApiTester(server.base_url)
        tester = DeterminismTester(api, prompts)
        report = tester.check(expected, rounds=4, noise=5, **fields)
        assert report.success_rate == 1, f"{report}\n{server.log_text()[-3000:]}"
        assert report.compared == 80
        assert api.chat(chat, 16, **fields) == expected_chat
        hits = total(api.metrics(), "vllm:external_prefix_cache_hits_total")
        queries = total(api.metrics(), "vllm:external_prefix_cache_queries_total")
        assert hits > 0.4 * queries > 0, f"{hits} of {queries}"
        own_page = f"http://127.0.0.1:{port}/metrics"
        assert total(fetch_kvbm_metrics(own_page), "kvbm_matched_tokens") == hits
        for page in (own_page, server.base_url + "/metrics"):
            check_doctor(page, hits)

        # The user empties the connector too: nothing comes back, and the answers stay.
        api.reset_prefix_cache(external=True)
        before = total(api.metrics(), "vllm:external_prefix_cache_hits_total")
        assert tester.answers(**fields) == expected
        hits_then = total(api.metrics(), "vllm:external_prefix_cache_hits_total")
        assert hits_then == before
        api.reset_prefix_cache()
        assert tester.answers(**fields) == expected
        assert total(api.metrics(), "vllm:external_prefix_cache_hits_total") > hits_then
    assert list(disk.iterdir()) == []
    assert len(server.files_left) <= len(left_by_the_engine), server.files_left
