# SPDX-License-Identifier: Apache-2.0
"""How an event loop waits for what C++ does in the background."""

import asyncio

POLL_SECONDS = 0.001


async def result_of(operation):
    """The result of something with done() and wait(), without holding up the loop."""
    while not operation.done():
        await asyncio.sleep(POLL_SECONDS)
    return operation.wait(0)
