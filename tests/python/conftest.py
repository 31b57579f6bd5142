# SPDX-License-Identifier: Apache-2.0
"""What every test of the package owes: to leave nothing behind."""

import gc
import os

import pytest

from kvbm._core import live_objects


def pytest_collection_finish():
    """What imports have made stays: collections look at what tests make alone, which takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """What live_objects() counts is gone at the end of a test."""
    for name in [name for name in os.environ if name.startswith(("KVBM_", "DYN_KVBM_"))]:
        monkeypatch.delenv(name)
    yield
    gc.collect()
    left = {name: count for name, count in live_objects().items() if count}
    assert not left, f"the test left behind {left}"
