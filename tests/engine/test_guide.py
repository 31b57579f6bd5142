# SPDX-License-Identifier: Apache-2.0
"""The program of docs/guides/vllm.md does what it says, on the tiny model."""

import re
import subprocess
import sys

from conftest import kept_environment
from engine_run import ROOT, engine_environment

MADE_SMALL = {
    'model="path/of/a/model",': 'model={model!r}, enforce_eager=True, dtype="float32", max_model_len=1024, '
    "block_size=32, kv_cache_memory_bytes=16 << 20,",
    '["DYN_KVBM_CPU_CACHE_GB"] = "4"': '["DYN_KVBM_CPU_CACHE_GB"] = "0.05"',
}


def test_the_guides_program_ends_with_a_hit(tmp_path):
    from tiny_model import make_tiny_model

    model = str(make_tiny_model(ROOT / "build" / "models" / "llama"))
    (program,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/guides/vllm.md").read_text(), re.MULTILINE | re.DOTALL)
    for written, small in MADE_SMALL.items():
        assert written in program
        program = program.replace(written, small.format(model=model) if "{model" in small else small)
    environment = {**kept_environment(), **engine_environment()}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # 18 whole blocks of 32 tokens.
    assert "576 of 600 tokens came back\nthe same answer: True\n" in done.stdout
