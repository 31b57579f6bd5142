# SPDX-License-Identifier: Apache-2.0
"""Which distributed runtime is there."""

import importlib.util


def detect_runtime() -> str | None:
    """"dynamo" where Dynamo's runtime can be imported, else None. Imports nothing.

    kvbm runs without one. What Dynamo's classes take as `drt` is None here.
    """
    try:
        found = importlib.util.find_spec("dynamo.runtime")
    except ModuleNotFoundError:  # no package dynamo
        return None
    return "dynamo" if found is not None else None
