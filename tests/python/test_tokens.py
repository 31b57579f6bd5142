# SPDX-License-Identifier: Apache-2.0
"""kvbm.TokenBlockSequence, kvbm.hash_salt and kvbm.KvbmRequest against known answers and BlockManager.keys."""

import json
import pathlib
import re

import numpy as np
import pytest

import kvbm

KNOWN_ANSWERS = pathlib.Path(__file__).resolve().parents[2] / "src/kvbm/tokens/known_answers.inc"


def known_answers():
    """(salt, its hash, tokens of a block, tokens, hashes of blocks, sequence hashes), computed without kvbm."""
    row = r'\{"(\w*)", (\w+), (\d+), (\d+), (\d+),\s*\{([^}]*)\},\s*\{([^}]*)\}\}'
    for salt, salt_hash, block_size, count, seed, *hashes in re.findall(row, KNOWN_ANSWERS.read_text()):
        tokens = [((i + int(seed)) * 2654435761 + int(seed)) % 2**32 for i in range(int(count))]
        numbers = [[int(number, 16) for number in part.split(", ") if number] for part in hashes]
        yield bytes.fromhex(salt), int(salt_hash, 16), int(block_size), tokens, *numbers


def test_hashes_and_identities_are_those_of_the_known_answers():
    answers = list(known_answers())
    assert len(answers) >= 20
    for salt, salt_hash, block_size, tokens, blocks, hashes in answers:
        assert kvbm.hash_salt(salt) == salt_hash
        sequence = kvbm.TokenBlockSequence(tokens, block_size, salt_hash)
        assert (len(sequence), sequence.num_blocks) == (len(tokens), len(blocks))
        assert (sequence.block_size, sequence.salt_hash) == (block_size, salt_hash)
        assert sequence.sequence_hashes() == hashes
        parents = [0] + hashes[:-1]
        identities = [b"".join(number.to_bytes(8, "little") for number in parts)
                      for parts in zip(hashes, blocks, parents, range(len(blocks)))]
        assert sequence.identities() == identities
        assert sequence.identities(len(blocks) // 2) == identities[len(blocks) // 2 :]
        assert sequence.sequence_hashes(len(blocks)) == []


def test_it_grows_and_shrinks():
    sequence = kvbm.TokenBlockSequence([], 4)
    for part in ([0, 1], np.arange(2, 9, dtype=np.uint32), ()):
        sequence.extend(part)
    whole = kvbm.TokenBlockSequence(range(9), 4)
    assert sequence.sequence_hashes() == whole.sequence_hashes() and len(sequence) == 9
    sequence.truncate(5)
    assert (len(sequence), sequence.num_blocks) == (5, 1)
    assert sequence.holds(0, range(5)) and sequence.holds(3, [3, 4]) and sequence.holds(5, [])
    assert not sequence.holds(0, range(6)) and not sequence.holds(1, [0]) and not sequence.holds(6, [])


def test_what_makes_no_sense_is_refused():
    sequence = kvbm.TokenBlockSequence(range(9), 4)
    for call in (lambda: kvbm.TokenBlockSequence([], 0), lambda: sequence.truncate(10), lambda: sequence.identities(3),
                 lambda: sequence.sequence_hashes(3)):
        with pytest.raises(kvbm.InvalidArgumentError):
            call()
    for wrong in ([2**32], [-1], ["a"]):
        with pytest.raises((TypeError, OverflowError)):
            sequence.extend(wrong)


def test_a_request_hashes_adapter_and_salt_as_json():
    """As Dynamo's KvbmRequest: compact JSON of those that are there, so that salts meet."""
    for lora, salt in ((None, None), ("a", None), (None, "s"), ('ä"\n', "s\x01")):
        request = kvbm.KvbmRequest("r", lora, salt)
        text = {name: value for name, value in (("salt", salt), ("lora_name", lora)) if value is not None}
        encoded = json.dumps(text, separators=(",", ":"), ensure_ascii=False).encode()
        assert (request.request_id, request.lora_name) == ("r", lora)
        assert request.salt_hash == kvbm.hash_salt(encoded)
    assert kvbm.KvbmRequest("r").salt_hash == kvbm.hash_salt(b"{}")


def test_a_manager_gives_the_same_names():
    with kvbm.BlockManager(block_size=4, num_layers=1, num_heads=1, head_dim=2, num_blocks=4) as manager:
        tokens = range(14)
        sequence = kvbm.TokenBlockSequence(tokens, 4, kvbm.hash_salt(b"s"))
        blocks = manager.allocate_blocks(3)
        manager.register_blocks(blocks, manager.keys(tokens, salt="s")).release()
        assert len(manager.match(manager.keys_from_identities(sequence.identities()))) == 3
