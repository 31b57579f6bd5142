#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/kvbm/tokens/known_answers.inc: token hashes computed without kvbm.

Needs the Python package xxhash (Debian: python3-xxhash). With --check it writes nothing and fails if
the file is not what it would write.
"""

import argparse
import pathlib
import struct
import sys

import xxhash

OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "src/kvbm/tokens/known_answers.inc"

SALTS = [b"", b"kvbm", b"model=llama-3.1-8b;lora=7", bytes(range(40))]
# (tokens in a block, tokens)
SHAPES = [(1, 3), (4, 11), (16, 64), (64, 200), (100, 99)]


def tokens_of(count: int, seed: int) -> list[int]:
    """Spread over all 32 bits; token_hash_test.cpp has the same formula."""
    return [((i + seed) * 2654435761 + seed) % 2**32 for i in range(count)]


def hashes_of(tokens: list[int], block_size: int, salt: bytes):
    salt_hash = xxhash.xxh3_64_intdigest(salt, seed=0)
    blocks, sequences = [], []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block_tokens = tokens[start : start + block_size]
        block = xxhash.xxh3_64_intdigest(struct.pack(f"<{block_size}I", *block_tokens), seed=salt_hash)
        if sequences:
            sequence = xxhash.xxh3_64_intdigest(struct.pack("<QQ", sequences[-1], block), seed=0)
        else:
            sequence = block
        blocks.append(block)
        sequences.append(sequence)
    return salt_hash, blocks, sequences


def render() -> str:
    def listed(numbers: list[int]) -> str:
        return "{" + ", ".join(f"0x{number:016x}" for number in numbers) + "}"

    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Made by scripts/make_token_known_answers.py; do not edit.",
        "// {salt in hexadecimal, salt hash, block size, number of tokens, seed of the tokens,",
        "//  block hashes, sequence hashes}",
        "// clang-format off",
    ]
    seed = 0
    for salt in SALTS:
        for block_size, count in SHAPES:
            seed += 1
            salt_hash, blocks, sequences = hashes_of(tokens_of(count, seed), block_size, salt)
            lines.append(f'{{"{salt.hex()}", 0x{salt_hash:016x}, {block_size}, {count}, {seed},')
            lines.append(f" {listed(blocks)},")
            lines.append(f" {listed(sequences)}}},")
    lines.append("// clang-format on")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if OUTPUT.read_text() != render():
            print(f"{OUTPUT.name} is out of date: run scripts/make_token_known_answers.py", file=sys.stderr)
            return 1
        return 0
    OUTPUT.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
