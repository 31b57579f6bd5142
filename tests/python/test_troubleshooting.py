# SPDX-License-Identifier: Apache-2.0
"""Provokes the messages that docs/guides/troubleshooting.md quotes for Python."""

import pathlib
import re

import numpy as np
import pytest

import kvbm

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides" / "troubleshooting.md"


def quotes():
    """What stands in code in the second column of the section's table, as regular expressions."""
    section = GUIDE.read_text().split("\n## From Python\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| symptom")]
    found = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split(" | ")[1]) if " " in quote]
    assert found
    return {quote: re.compile(".*".join(re.escape(part) for part in quote.split("…"))) for quote in found}


def test_the_guide_quotes_what_is_said():
    config = kvbm.LayoutConfig(num_blocks=4, num_layers=2, outer_dim=2, page_size=4, inner_dim=8, dtype_width_bytes=2)
    wide = kvbm.LayoutConfig(num_blocks=4, num_layers=2, outer_dim=2, page_size=4, inner_dim=8, dtype_width_bytes=4)

    def tensors(count=2, dtype=np.float16, inner=8):
        return [np.zeros((4, 2, 4, inner), dtype) for _ in range(count)]

    def from_tensors(given):
        return lambda: kvbm.PhysicalLayout.from_tensors(config, given, "layer_separate_block_first")

    def copy():
        with kvbm.TransferManager() as manager:
            src = manager.register_layout(kvbm.PhysicalLayout.allocate(config))
            dst = manager.register_layout(kvbm.PhysicalLayout.allocate(wide))
            manager.execute_transfer(src, [0], dst, [0])

    calls = [
        from_tensors([tensors(1)[0], tensors(1, np.float32)[0]]),
        copy,
        from_tensors(tensors(3)),
        from_tensors([tensor[:, :, :, ::2] for tensor in tensors(inner=16)]),
    ]
    expected, said = quotes(), set()
    for call in calls:
        with pytest.raises(kvbm.InvalidArgumentError) as raised:
            call()
        matching = {quote for quote, pattern in expected.items() if pattern.search(str(raised.value))}
        assert matching, f"the guide does not quote: {raised.value}"
        said |= matching
    assert said == set(expected)
