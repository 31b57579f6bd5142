# SPDX-License-Identifier: Apache-2.0
"""Prometheus' text format as numbers."""

import re

import requests

LINE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(\{.*\})?\s+(\S+)(?:\s+-?\d+)?$")


def parse_metrics(text: str) -> dict[str, float]:
    """Values by `name` or `name{label="value",...}`, as they stand in the text. Raises ValueError, naming the line."""
    values = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.match(line)
        if not found:
            raise ValueError(f"this is no line of metrics: {line!r}")
        values[found[1] + (found[2] or "")] = float(found[3])
    return values


def total(values: dict[str, float], name: str) -> float:
    """The sum over all labels of a metric. KeyError if it is not there."""
    found = [value for key, value in values.items() if key.split("{", 1)[0] == name]
    if not found:
        raise KeyError(name)
    return sum(found)


def kvbm_metrics(values: dict[str, float]) -> dict[str, float]:
    """Those of kvbm alone."""
    return {key: value for key, value in values.items() if key.startswith("kvbm_")}


def fetch_kvbm_metrics(url: str, timeout_seconds: float = 10) -> dict[str, float]:
    """kvbm's metrics from an endpoint such as http://127.0.0.1:6880/metrics."""
    answer = requests.get(url, timeout=timeout_seconds)
    answer.raise_for_status()
    return kvbm_metrics(parse_metrics(answer.text))
