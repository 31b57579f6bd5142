# SPDX-License-Identifier: Apache-2.0
"""Requests by their tokens, over KvbmLeader and KvbmWorker: the two connector cores of Dynamo's package, by its names.

An engine that names its blocks itself calls KvbmLeader instead.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from kvbm._core import KvbmLeader, KvbmWorker, TokenBlockSequence, hash_salt
from kvbm.errors import InvalidArgumentError, NotFoundError, UnavailableError, UnsupportedError


class KvbmRequest:
    """What names a request's blocks beside its tokens.

    lora_name: its adapter. salt_hash: the text that keeps its cache apart, as the engine's cache_salt; the attribute is 64
    bits of both, what TokenBlockSequence takes.
    """

    def __init__(self, request_id: str, lora_name: str | None = None, salt_hash: str | None = None):
        self.request_id = request_id
        self.lora_name = lora_name
        payload = {"salt": salt_hash, "lora_name": lora_name}
        text = json.dumps({name: value for name, value in payload.items() if value is not None},
                          separators=(",", ":"), ensure_ascii=False)
        self.salt_hash = hash_salt(text.encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return f"KvbmRequest({self.request_id!r}, lora_name={self.lora_name!r}, salt_hash={self.salt_hash:#018x})"


@dataclass(frozen=True)
class NewRequestData:
    """A request that is scheduled for the first time: block_ids are all it has."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    num_computed_tokens: int


@dataclass(frozen=True)
class CachedRequestData:
    """A request that is scheduled again: what has come since, or all blocks of one that was preempted."""

    request_id: str
    resumed_from_preemption: bool
    new_token_ids: tuple[int, ...]
    new_block_ids: tuple[int, ...]
    num_computed_tokens: int


def _refuse(name: str, value, reason: str):
    if value is not None:
        raise UnsupportedError(f"{name}: {reason}")


_PRIORITIES = "blocks are named before they are scheduled: give create_slot a priority"


class SchedulerOutput:
    """What an engine's scheduler has decided for one step."""

    def __init__(self) -> None:
        self.new_requests: list[NewRequestData] = []
        self.cached_requests: list[CachedRequestData] = []
        self.num_scheduled_tokens: dict[str, int] = {}

    def add_new_request(self, request_id: str, prompt_token_ids: Iterable[int], block_ids: Iterable[int],
                        num_computed_tokens: int, priorities: None = None) -> None:
        """num_computed_tokens: before the step. Raises kvbm.UnsupportedError for priorities."""
        _refuse("priorities", priorities, _PRIORITIES)
        self.new_requests.append(
            NewRequestData(request_id, tuple(prompt_token_ids), tuple(block_ids), num_computed_tokens))

    def add_cached_request(self, request_id: str, resumed_from_preemption: bool, new_token_ids: Iterable[int],
                           new_block_ids: Iterable[int], num_computed_tokens: int, priorities: None = None) -> None:
        """new_token_ids: accepted since the request was scheduled last; without them the blocks that they fill are not
        stored. new_block_ids: likewise, or all blocks after a preemption. Raises kvbm.UnsupportedError for priorities.
        """
        _refuse("priorities", priorities, _PRIORITIES)
        self.cached_requests.append(
            CachedRequestData(request_id, bool(resumed_from_preemption), tuple(new_token_ids), tuple(new_block_ids),
                              num_computed_tokens))

    def add_num_scheduled_tokens(self, num_scheduled_tokens: Mapping[str, int]) -> None:
        """Tokens that the step computes, by request. Takes the place of what was given before."""
        self.num_scheduled_tokens = dict(num_scheduled_tokens)

    def get_num_scheduled_tokens(self) -> int:
        """Of all requests."""
        return sum(self.num_scheduled_tokens.values())

    def serialize(self) -> bytes:
        """As JSON."""
        return json.dumps({
            "new_requests": [asdict(request) for request in self.new_requests],
            "cached_requests": [asdict(request) for request in self.cached_requests],
            "num_scheduled_tokens": self.num_scheduled_tokens,
        }, separators=(",", ":")).encode()


class _Slot:
    def __init__(self, sequence: TokenBlockSequence, priority: int | None):
        self.sequence = sequence
        self.priority = priority
        self.num_named = 0  # full blocks that the leader knows
        self.block_ids: list[int] = []
        self.offer = (0, 0)  # computed tokens, tokens that can be loaded behind them


class KvConnectorLeader:
    """The scheduler's side of a connector for an engine that has tokens and no block hashes.

    worker_id: of the engine, for messages. leader: of one layer group, and for nobody else; page_size, tokens of a block,
    is the leader's. There is no event consolidator and no runtime: another value than None is refused.

    Calls of a request: create_slot, get_num_new_matched_tokens, update_state_after_alloc, then one
    build_connector_metadata a step, request_finished. Threads: one at a time.

    Raises kvbm.InvalidArgumentError, kvbm.UnsupportedError; every call kvbm.NotFoundError for a request without a slot,
    and nothing has changed then.
    """

    def __init__(self, worker_id: str, drt: None, page_size: int, leader: KvbmLeader,
                 consolidator_vllm_endpoint: None = None, consolidator_output_endpoint: None = None,
                 consolidator_mode: None = None):
        _refuse("drt", drt, "a leader needs no runtime; give None")
        no_consolidator = "there is no event consolidator; KvbmLeader.take_events tells what was stored and removed"
        _refuse("consolidator_vllm_endpoint", consolidator_vllm_endpoint, no_consolidator)
        _refuse("consolidator_output_endpoint", consolidator_output_endpoint, no_consolidator)
        _refuse("consolidator_mode", consolidator_mode, no_consolidator)
        if page_size != leader.page_size:
            raise InvalidArgumentError(f"page_size is {page_size}, and the leader's is {leader.page_size}")
        if leader.num_groups != 1:
            raise UnsupportedError(
                f"the leader has {leader.num_groups} layer groups, and block ids here are of one; call KvbmLeader")
        self.worker_id = worker_id
        self._page_size = page_size
        self._leader = leader
        self._slots: dict[str, _Slot] = {}

    def _slot(self, request_id: str) -> _Slot:
        slot = self._slots.get(request_id)
        if slot is None:
            raise NotFoundError(f"{self.worker_id}: request {request_id} has no slot; call create_slot first")
        return slot

    def _invalid(self, request_id: str, message: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self.worker_id}: request {request_id}: {message}")

    def has_slot(self, request_id: str) -> bool:
        return request_id in self._slots

    def create_slot(self, request: KvbmRequest, tokens: Sequence[int], *, priority: int | None = None) -> None:
        """tokens: all that the request has, accepted. priority: how much its blocks are worth keeping, 0 to 100. A slot
        that is there stays; raises kvbm.InvalidArgumentError if it has other tokens or another salt.
        """
        request_id = request.request_id
        slot = self._slots.get(request_id)
        if slot is not None:
            if slot.sequence.salt_hash != request.salt_hash or not slot.sequence.holds(0, tokens):
                raise self._invalid(request_id, "has a slot with other tokens or another salt")
            return
        if self._leader.num_identities(request_id):
            raise self._invalid(request_id, "the leader knows its blocks from somebody else")
        if priority is not None and not 0 <= priority <= 100:
            raise self._invalid(request_id, f"priority is {priority}, not 0 to 100")
        slot = _Slot(TokenBlockSequence(tokens, self._page_size, request.salt_hash), priority)
        self._name_blocks(request_id, slot)
        self._slots[request_id] = slot

    def _name_blocks(self, request_id: str, slot: _Slot):
        if slot.sequence.num_blocks > slot.num_named:
            self._leader.extend(request_id, slot.sequence.identities(slot.num_named), slot.priority)
            slot.num_named = slot.sequence.num_blocks

    def get_num_new_matched_tokens(self, request_id: str, request_num_tokens: int,
                                   num_computed_tokens: int) -> tuple[int, bool]:
        """(tokens that can be loaded behind num_computed_tokens, whether that takes place between steps). Pins them until
        the next call or update_state_after_alloc. The block of the last of request_num_tokens is never loaded.
        """
        slot = self._slot(request_id)
        if num_computed_tokens > request_num_tokens:
            raise self._invalid(request_id, f"{num_computed_tokens} of {request_num_tokens} tokens are computed")
        if request_num_tokens < len(slot.sequence):
            raise self._invalid(request_id, f"has {request_num_tokens} tokens, and its slot {len(slot.sequence)}")
        tokens, between_steps = self._leader.match(request_id, num_computed_tokens, request_num_tokens)
        slot.offer = (num_computed_tokens, tokens)
        return tokens, between_steps

    def update_state_after_alloc(self, request_id: str, block_ids: Sequence[int], num_external_tokens: int) -> None:
        """block_ids: all that the engine has given to the request. num_external_tokens of the last match are loaded into
        them: all or 0.
        """
        slot = self._slot(request_id)
        computed, offered = slot.offer
        if num_external_tokens not in (0, offered):
            raise self._invalid(request_id, f"{num_external_tokens} tokens are to be loaded, and {offered} were offered")
        if num_external_tokens and computed + num_external_tokens > len(block_ids) * self._page_size:
            raise self._invalid(request_id, f"{len(block_ids)} blocks do not hold {computed + num_external_tokens} tokens")
        block_ids = list(block_ids)
        self._leader.allocated(request_id, [block_ids], num_external_tokens)
        slot.offer = (0, 0)
        slot.block_ids = block_ids

    def build_connector_metadata(self, scheduler_output: SchedulerOutput) -> bytes:
        """Ends the scheduling of a step: the bytes with which every rank's worker begins it."""
        scheduled = scheduler_output.num_scheduled_tokens
        steps = []  # request, slot, blocks, whether these are all, computed and new tokens
        for new in scheduler_output.new_requests:
            slot = self._slot(new.request_id)
            if not slot.sequence.holds(0, new.prompt_token_ids):
                raise self._invalid(new.request_id, "prompt_token_ids are not the tokens of its slot")
            steps.append((new.request_id, slot, new.block_ids, True, new.num_computed_tokens, ()))
        for cached in scheduler_output.cached_requests:
            steps.append((cached.request_id, self._slot(cached.request_id), cached.new_block_ids,
                          cached.resumed_from_preemption, cached.num_computed_tokens, cached.new_token_ids))
        for request_id, slot, block_ids, are_all, computed, _ in steps:
            num_blocks = len(block_ids) + (0 if are_all else len(slot.block_ids))
            if computed + scheduled.get(request_id, 0) > num_blocks * self._page_size:
                raise self._invalid(request_id, f"{num_blocks} blocks do not hold {computed} computed and "
                                                f"{scheduled.get(request_id, 0)} scheduled tokens")
        names = {step[0] for step in steps}
        if len(names) < len(steps):
            raise InvalidArgumentError(f"{self.worker_id}: a request is scheduled twice")
        if unknown := scheduled.keys() - names:
            raise InvalidArgumentError(f"{self.worker_id}: tokens of {sorted(unknown)}, which were not added, are scheduled")
        calls = []
        for request_id, slot, block_ids, are_all, computed, tokens in steps:
            if are_all:
                slot.block_ids = []
            slot.block_ids += block_ids
            slot.sequence.extend(tokens)
            self._name_blocks(request_id, slot)
            calls.append((request_id, [list(block_ids)], are_all, computed, scheduled.get(request_id, 0)))
        return self._leader.build_step(calls)

    def request_finished(self, request_id: str, block_ids: Sequence[int]) -> bool:
        """The request has ended or was aborted: its slot goes. True if a load still writes to its blocks: they stay until
        the worker's get_finished has told the request. Nothing else holds blocks: what is stored is fenced. block_ids: the
        request's; raises kvbm.InvalidArgumentError for others. False for a request without a slot.
        """
        slot = self._slots.get(request_id)
        if slot is None:
            return False
        if others := set(block_ids).difference(slot.block_ids):
            raise self._invalid(request_id, f"blocks {sorted(others)} are not its own")
        del self._slots[request_id]
        return self._leader.finished(request_id)

    def reset_cache(self) -> bool:
        """Empties the tiers: see KvbmLeader.reset."""
        self._leader.reset()
        return True


def _address(tensor) -> int:
    return tensor.data_ptr() if hasattr(tensor, "data_ptr") else tensor.__array_interface__["data"][0]


class KvConnectorWorker:
    """A rank's side of a connector: steps over a KvbmWorker.

    vllm_worker_id: of the engine, for messages. py_drt: None, there is no runtime.

    Calls of a step: bind_connector_metadata, the engine's compute with save_kv_layer for each layer,
    clear_connector_metadata, get_finished, get_block_ids_with_load_errors. Threads: the engine's.
    """

    def __init__(self, py_drt: None, vllm_worker_id: str):
        _refuse("py_drt", py_drt, "a worker needs no runtime; give None")
        self.worker_id = vllm_worker_id
        self._worker: KvbmWorker | None = None
        self._addresses: dict[str, int] = {}
        self._unsaved: set[str] | None = None  # layers of the step that is bound
        self._in_step = False
        self._failed_blocks: set[int] = set()

    @property
    def worker(self) -> KvbmWorker:
        """What KvbmLeader takes, and what connects to a leader of another process. Raises kvbm.UnavailableError before
        register_kv_caches and after stop.
        """
        if self._worker is None:
            raise UnavailableError(f"{self.worker_id}: there are no KV tensors; call register_kv_caches first")
        return self._worker

    def register_kv_caches(self, num_device_blocks: int, page_size: int, device_id: int, dtype_width_bytes: int,
                           kv_caches: Sequence[tuple[str, object]], raw_event_handles: Sequence[int],
                           device_layout_type: None = None, host_layout_type: None = None, disk_layout_type: None = None,
                           *, rank: int = 0) -> None:
        """kv_caches: (name, tensor) a layer, in their order; the rest as for KvbmWorker. raw_event_handles: empty, as
        tensors in host memory have no events. Raises kvbm.InvalidArgumentError, kvbm.UnsupportedError.
        """
        if self._worker is not None:
            raise InvalidArgumentError(f"{self.worker_id}: KV tensors are registered already")
        if len(raw_event_handles):
            raise UnsupportedError("raw_event_handles: the tensors are in host memory, which has no events")
        names = [name for name, _ in kv_caches]
        if len(set(names)) < len(names):
            raise InvalidArgumentError(f"{self.worker_id}: a layer is there twice: {names}")
        self._worker = KvbmWorker(
            num_device_blocks, page_size, [tensor for _, tensor in kv_caches], device_id, dtype_width_bytes,
            device_layout_type=device_layout_type, host_layout_type=host_layout_type, disk_layout_type=disk_layout_type,
            rank=rank)
        self._addresses = {name: _address(tensor) for name, tensor in kv_caches}

    def bind_connector_metadata(self, metadata: bytes) -> None:
        """Begins a step with the bytes of build_connector_metadata. Returns when what the step loads has arrived: there
        is no hook before a layer here; KvbmWorker.layer_needed is one.
        """
        if self._unsaved is not None:
            raise InvalidArgumentError(f"{self.worker_id}: the step before was not cleared")
        self.worker.begin_step(metadata)
        self._unsaved = set(self._addresses)
        self._in_step = True
        if self.worker.has_loads:
            self.worker.all_layers_needed()

    def save_kv_layer(self, layer_name: str, kv_layer: object) -> None:
        """The layer has been computed into kv_layer, its registered tensor. With the last one, storing begins."""
        if self._unsaved is None:
            raise InvalidArgumentError(f"{self.worker_id}: no step is bound")
        if layer_name not in self._addresses:
            raise NotFoundError(f"{self.worker_id}: there is no layer {layer_name}; there are {list(self._addresses)}")
        if _address(kv_layer) != self._addresses[layer_name]:
            raise InvalidArgumentError(f"{self.worker_id}: {layer_name} was registered with another tensor")
        self._unsaved.discard(layer_name)
        if not self._unsaved:
            self._end_step()

    def _end_step(self):
        if self._in_step:
            self._in_step = False
            self.worker.end_step()

    def clear_connector_metadata(self) -> None:
        """Ends the step. May be called again."""
        self._end_step()
        self._unsaved = None

    def get_finished(self, finished_requests: Iterable[str]) -> tuple[set[str], set[str]]:
        """(of finished_requests those whose stores have ended, requests whose load between steps has ended). The first is
        always empty: request_finished holds no blocks for stores.
        """
        received = set()
        for request, blocks in self.worker.take_ended_loads():
            received.add(request)
            self._failed_blocks.update(blocks)
        return set(), received

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that did not get their content since the last call: the engine computes them."""
        failed = self._failed_blocks.union(self.worker.take_failed_blocks())
        self._failed_blocks.clear()
        return failed

    def stop(self) -> None:
        """Waits for running copies; the tensors may go afterwards. May be called again."""
        if self._worker is not None:
            self.clear_connector_metadata()
            self._worker.stop()
            self._worker = None
            self._addresses.clear()
