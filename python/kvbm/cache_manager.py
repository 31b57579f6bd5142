# SPDX-License-Identifier: Apache-2.0
"""Slots over a BlockManager, for an engine that has no cache manager of its own, by the names of Dynamo's package."""

from collections.abc import Sequence

from kvbm._core import Block, BlockList, BlockManager, KvEvent, PrefixHit, TokenBlockSequence
from kvbm.errors import ExhaustedError, InvalidArgumentError, NotFoundError, UnavailableError, UnsupportedError
from kvbm.slots import KvbmRequest


class KvbmBlockList:
    """Blocks of a prefix in G1, held until they are given to allocate_slots or dropped."""

    def __init__(self, blocks: BlockList, sequence_hashes: Sequence[int], identities: Sequence[bytes]):
        self._blocks: BlockList | None = blocks
        self._hashes = list(sequence_hashes)
        self._identities = list(identities)

    def _held(self) -> BlockList:
        return BlockList([]) if self._blocks is None else self._blocks

    def _at(self, block_idx: int) -> int:
        if not 0 <= block_idx < len(self._held()):
            raise NotFoundError(f"there is no block {block_idx} in a list of {len(self._held())}")
        return block_idx

    def get_block_id(self, block_idx: int) -> int:
        """Raises kvbm.NotFoundError, also after the blocks were taken."""
        return self._held()[self._at(block_idx)].block_id

    def get_block_hash(self, block_idx: int) -> int:
        """The sequence hash. Raises kvbm.NotFoundError, also after the blocks were taken."""
        return self._hashes[self._at(block_idx)]

    def block_count(self) -> int:
        """How many there were from the start."""
        return len(self._hashes)

    def get_block_ids(self) -> list[int]:
        """Empty after the blocks were taken."""
        return self._held().block_ids

    def get_block_hashes(self) -> list[int]:
        """Empty after the blocks were taken."""
        return self._hashes[: len(self._held())]

    def get_block_types(self) -> list[str]:
        """["ImmutableDevice"], or nothing after the blocks were taken."""
        return [] if self._blocks is None else ["ImmutableDevice"]

    def _take(self) -> BlockList:
        if self._blocks is None:
            raise InvalidArgumentError("the blocks of the list were taken before")
        blocks, self._blocks = self._blocks, None
        return blocks

    def __repr__(self) -> str:
        return f"KvbmBlockList(count={self.block_count()}, block_ids={self.get_block_ids()})"


class BlockState:
    """A block that was given to a request. tokens: what it is to hold, where somebody knows."""

    def __init__(self, block_id: int, tokens: Sequence[int] | None = None):
        self._block_id = block_id
        self.tokens = None if tokens is None else list(tokens)

    def block_id(self) -> int:
        return self._block_id


class BlockStates:
    """Blocks in the order of a request."""

    def __init__(self) -> None:
        self._states: list[BlockState] = []

    def emplace_back(self, block_id: int, tokens: Sequence[int] | None = None) -> None:
        self._states.append(BlockState(block_id, tokens))

    def push_back(self, state: BlockState) -> None:
        self._states.append(state)

    def block_ids(self) -> list[int]:
        return [state.block_id() for state in self._states]

    def len(self) -> int:
        return len(self._states)

    def __len__(self) -> int:
        return len(self._states)


class SlotUpdate:
    """How a request goes on.

    request_num_tokens, request_num_computed_tokens: of the request, before new_computed_blocks. tokens_to_append: those
    that were computed since the last update, or those of new_computed_blocks. num_new_tokens: for which there shall be
    blocks. num_new_computed_tokens: those of new_computed_blocks, which are what get_computed_blocks has found.
    num_lookahead_blocks, delay_cache_blocks: not supported, as in Dynamo.
    """

    def __init__(self, request_id: str, request_num_tokens: int, request_num_computed_tokens: int,
                 tokens_to_append: Sequence[int], num_new_tokens: int, num_new_computed_tokens: int | None = None,
                 new_computed_blocks: KvbmBlockList | None = None, num_lookahead_blocks: int | None = None,
                 delay_cache_blocks: bool | None = None):
        if num_lookahead_blocks is not None:
            raise UnsupportedError("num_lookahead_blocks: count their tokens in num_new_tokens")
        if delay_cache_blocks:
            raise UnsupportedError("delay_cache_blocks: a block is registered once its tokens come in tokens_to_append")
        self.request_id = request_id
        self.request_num_tokens = request_num_tokens
        self.request_num_computed_tokens = request_num_computed_tokens
        self.tokens_to_append = list(tokens_to_append)
        self.num_new_tokens = num_new_tokens
        self.num_new_computed_tokens = num_new_computed_tokens
        self.new_computed_blocks = new_computed_blocks


class _Slot:
    def __init__(self, sequence: TokenBlockSequence):
        self.sequence = sequence
        self.computed = 0  # tokens
        self.registered: list[Block] = []
        self.filling: list[Block] = []
        self.staged: PrefixHit | None = None  # what trigger_onboard brings

    def unstage(self):
        if self.staged is not None:
            self.staged.release()
            self.staged = None

    def free(self):
        """Deepest first, as eviction wants them."""
        self.unstage()
        BlockList(self.registered + self.filling).release()
        self.registered, self.filling, self.computed = [], [], 0


class KvbmCacheManager:
    """Slots by request over a BlockManager of one layer group that is kept as a whole prefix.

    Calls of a request: create_slot, get_computed_blocks, get_num_new_matched_tokens, allocate_slots, trigger_onboard, then
    allocate_slots for each step, free. blocks(request_id) are its blocks as tensors: the engine writes what it computes
    there, and drops the tensors before allocate_slots is told that the tokens were computed.

    Threads: one at a time. Errors: kvbm.NotFoundError for a request without a slot, kvbm.InvalidArgumentError; nothing has
    changed then.
    """

    def __init__(self, block_manager: BlockManager):
        if block_manager.num_groups != 1:
            raise UnsupportedError(f"the BlockManager has {block_manager.num_groups} layer groups, and allowed is one")
        self._manager = block_manager
        self._block_size = block_manager.block_size
        self._slots: dict[str, _Slot] = {}

    def _slot(self, request_id: str) -> _Slot:
        slot = self._slots.get(request_id)
        if slot is None:
            raise NotFoundError(f"request {request_id} has no slot; call create_slot first")
        return slot

    def has_slot(self, request_id: str) -> bool:
        return request_id in self._slots

    def create_slot(self, request: KvbmRequest, tokens: Sequence[int],
                    extra_block_hashes: Sequence[int | None] | None = None) -> list[int]:
        """The sequence hashes of the full blocks of all tokens that the request has. A slot that is there stays; raises
        kvbm.InvalidArgumentError if it has other tokens or another salt, kvbm.UnsupportedError for extra_block_hashes
        other than None.
        """
        if any(extra is not None for extra in extra_block_hashes or ()):
            raise UnsupportedError("extra_block_hashes: put what tells the content apart into the request's salt")
        slot = self._slots.get(request.request_id)
        if slot is None:
            slot = _Slot(TokenBlockSequence(tokens, self._block_size, request.salt_hash))
            self._slots[request.request_id] = slot
        elif slot.sequence.salt_hash != request.salt_hash or not slot.sequence.holds(0, tokens):
            raise InvalidArgumentError(f"request {request.request_id} has a slot with other tokens or another salt")
        return slot.sequence.sequence_hashes()

    def num_computed_tokens(self, request_id: str) -> int:
        return self._slot(request_id).computed

    def get_computed_blocks(self, sequence_hashes: Sequence[int]) -> KvbmBlockList:
        """What G1 has of a prefix, held. sequence_hashes: of a slot, from its first block on; raises kvbm.NotFoundError for
        others, as 64 bits alone do not name a block.
        """
        hashes = list(sequence_hashes)
        if not hashes:
            return KvbmBlockList(BlockList([]), [], [])
        for slot in reversed(self._slots.values()):
            if slot.sequence.sequence_hashes()[: len(hashes)] == hashes:
                break
        else:
            raise NotFoundError(f"no slot has these {len(hashes)} sequence hashes")
        identities = slot.sequence.identities()[: len(hashes)]
        hit = self._manager.match(self._manager.keys_from_identities(identities))
        hit.keep_gpu_part()
        found = self._manager.onboard(hit).blocks
        return KvbmBlockList(found, hashes[: len(found)], identities[: len(found)])

    def get_num_new_matched_tokens(self, request_id: str, request_num_tokens: int,
                                   num_computed_tokens: int) -> tuple[int, bool]:
        """(tokens that trigger_onboard brings from host and disk behind num_computed_tokens, False). Pins them. The block
        of the last of request_num_tokens is never brought.
        """
        slot = self._slot(request_id)
        if num_computed_tokens > request_num_tokens or num_computed_tokens % self._block_size:
            raise InvalidArgumentError(f"request {request_id}: {num_computed_tokens} of {request_num_tokens} tokens are "
                                       f"computed, and allowed are whole blocks of {self._block_size}")
        slot.unstage()
        most = min((request_num_tokens - 1) // self._block_size, slot.sequence.num_blocks)
        computed = num_computed_tokens // self._block_size
        if most <= computed:
            return 0, False
        hit = self._manager.match(self._manager.keys_from_identities(slot.sequence.identities()[:most]))
        # What came to G1 since get_computed_blocks has looked is not below it: the engine computes it again.
        if hit.num_gpu_blocks != computed or hit.num_blocks == computed:
            hit.release()
            return 0, False
        slot.staged = hit
        return (hit.num_blocks - computed) * self._block_size, False

    def allocate_slots(self, update: SlotUpdate) -> BlockStates | None:
        """Takes in what was computed, registers the blocks that it fills, and allocates blocks for num_new_tokens. The new
        ones, or None if there is no room: a request that had no block then has none of new_computed_blocks either.

        Raises kvbm.InvalidArgumentError if request and slot disagree, or while a tensor could still write to a block that
        is full.
        """
        slot = self._slot(update.request_id)
        is_first = not slot.registered and not slot.filling
        if update.new_computed_blocks is None:
            self._take_computed(slot, update)
        else:
            self._take_found(slot, update)
        needed = -(-(slot.computed + update.num_new_tokens) // self._block_size)
        states = BlockStates()
        try:
            blocks = self._manager.allocate_blocks(max(0, needed - len(slot.registered) - len(slot.filling)))
        except ExhaustedError:
            if is_first:
                slot.free()
            return None
        for block in blocks:
            slot.filling.append(block)
            states.emplace_back(block.block_id)
        return states

    def _check_computed(self, slot: _Slot, update: SlotUpdate, computed: int):
        expected = update.request_num_computed_tokens + (update.num_new_computed_tokens or 0)
        if computed != expected:
            raise InvalidArgumentError(f"request {update.request_id}: {expected} tokens are computed, and by its slot "
                                       f"{computed}")
        if computed > update.request_num_tokens:
            raise InvalidArgumentError(f"request {update.request_id}: {computed} of {update.request_num_tokens} tokens are "
                                       "computed")

    def _take_found(self, slot: _Slot, update: SlotUpdate):
        found = update.new_computed_blocks
        if slot.filling or slot.registered:
            raise InvalidArgumentError(f"request {update.request_id} has blocks already")
        count = found.block_count()
        if found._identities != slot.sequence.identities()[:count]:
            raise InvalidArgumentError(f"request {update.request_id}: new_computed_blocks are of other tokens")
        if update.tokens_to_append and (len(update.tokens_to_append) != count * self._block_size
                                        or not slot.sequence.holds(0, update.tokens_to_append)):
            raise InvalidArgumentError(f"request {update.request_id}: tokens_to_append are not those of its blocks")
        self._check_computed(slot, update, count * self._block_size)
        slot.registered = found._take().to_list()
        slot.computed = count * self._block_size

    def _take_computed(self, slot: _Slot, update: SlotUpdate):
        tokens, before = update.tokens_to_append, len(slot.sequence)
        computed = slot.computed + len(tokens)
        self._check_computed(slot, update, computed)
        if computed > (len(slot.registered) + len(slot.filling)) * self._block_size:
            raise InvalidArgumentError(f"request {update.request_id}: it has no blocks for {computed} tokens")
        known = max(0, before - slot.computed)
        if not slot.sequence.holds(slot.computed, tokens[:known]):
            raise InvalidArgumentError(f"request {update.request_id}: tokens_to_append are not the tokens of its slot")
        slot.sequence.extend(tokens[known:])
        first = len(slot.registered)
        full = BlockList(slot.filling[: computed // self._block_size - first])
        if len(full):
            keys = self._manager.keys_from_identities(slot.sequence.identities()[: first + len(full)])
            try:
                registered = self._manager.register_blocks(full, keys, first)
            except Exception:
                slot.sequence.truncate(before)
                raise
            slot.registered += registered.to_list()
            slot.filling = slot.filling[len(full) :]
        slot.computed = computed

    def trigger_onboard(self, request_id: str) -> None:
        """Brings what get_num_new_matched_tokens has found into the first free blocks of the request, and waits for it. The
        tokens count as computed afterwards. Raises the kvbm.Error of a copy that failed: the request has no blocks then,
        and is to be scheduled anew.
        """
        slot = self._slot(request_id)
        if slot.staged is None:
            return
        count = slot.staged.num_blocks - slot.staged.num_gpu_blocks
        if slot.computed != slot.staged.num_gpu_blocks * self._block_size:
            raise InvalidArgumentError(f"request {request_id}: {slot.computed} tokens are computed, and what was found goes "
                                       f"on behind {slot.staged.num_gpu_blocks * self._block_size}")
        if count > len(slot.filling):
            raise InvalidArgumentError(f"request {request_id}: {count} blocks were found, and it has {len(slot.filling)}")
        onboarding = self._manager.begin_onboard(slot.staged, [BlockList(slot.filling[:count])])
        slot.staged = None
        slot.filling = slot.filling[count:]
        try:
            arrived = onboarding.wait()
            if arrived.error is not None:
                raise arrived.error
        except BaseException:
            slot.free()
            raise
        first = len(slot.registered)
        arrived.blocks[:first].release()  # held by the slot
        slot.registered += arrived.blocks[first:].to_list()
        slot.computed += count * self._block_size

    def blocks(self, request_id: str) -> BlockList:
        """The request's blocks as tensors, in their order."""
        slot = self._slot(request_id)
        return BlockList(slot.registered + slot.filling)

    def get_block_ids(self, request_id: str) -> list[int]:
        """Empty for a request without a slot."""
        slot = self._slots.get(request_id)
        return [] if slot is None else BlockList(slot.registered + slot.filling).block_ids

    def free(self, request_id: str) -> None:
        """Lets go of the request's blocks; the slot stays, with nothing computed. Nothing for one without a slot."""
        if request_id in self._slots:
            self._slots[request_id].free()

    def free_block_hashes(self, request_id: str) -> None:
        """Lets go of the slot too. Nothing for a request without one."""
        if request_id in self._slots:
            self._slots.pop(request_id).free()

    def reset_prefix_cache(self) -> bool:
        """Empties all tiers of the BlockManager. False, and nothing has changed, while a request has blocks or something is
        copied.
        """
        for slot in self._slots.values():
            slot.unstage()
        try:
            self._manager.reset()
        except UnavailableError:
            return False
        return True

    def usage(self) -> float:
        """The share of G1 that is held, 0 to 1."""
        found = self._manager.occupancy()
        return (found["active"] + found["mutable"]) / sum(found.values())

    def take_events(self) -> list[KvEvent]:
        """Those of the BlockManager, if it was made with max_events."""
        return self._manager.take_events()
