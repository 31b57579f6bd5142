# SPDX-License-Identifier: Apache-2.0
# Written by scripts/make_stubs.py.
"""kvbm's C++ library: the two sides of an engine's connector."""

from collections.abc import Generator, Iterator, Sequence
import os
from typing import Any, overload

from kvbm.errors import Error as Error


class ContractViolation(RuntimeError):
    pass

class Layer:
    """
    One layer of a block on one rank. As a tensor: [outer, block_size, num_heads, head_dim], in host memory, contiguous; outer is 2 for keys and values.
    """

    @property
    def index(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(outer, block_size, num_heads, head_dim)"""

    def __dlpack__(self, *, stream: object | None = None, max_version: tuple | None = None, dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> object:
        """As Block.__dlpack__."""

    def __dlpack_device__(self) -> tuple[int, int]: ...

class Block:
    """
    A block of GPU memory (G1) that is held: its layers by index, and as a tensor.

    The tensor is the block's memory on one rank: [num_layers, outer, block_size, num_heads, head_dim], contiguous in this order, of the manager's dtype. A tensor keeps the block, whatever becomes of this object. What a registered block holds does not change: its tensor is a copy, or read-only.
    """

    @property
    def block_id(self) -> int:
        """Its slot in G1."""

    @property
    def group(self) -> int:
        """Its layer group, by index."""

    @property
    def rank(self) -> int: ...

    @property
    def state(self) -> str:
        """mutable, immutable or released"""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(num_layers, outer, block_size, num_heads, head_dim)"""

    def on_rank(self, rank: int) -> Block:
        """The same block, seen on another rank."""

    def release(self) -> None:
        """
        Lets go of the block, in every object of it; tensors keep it. May be called again.
        """

    def __len__(self) -> int: ...

    def __getitem__(self, layer: int) -> Layer: ...

    def __iter__(self) -> Iterator[Layer]: ...

    def to_list(self) -> list[Layer]:
        """Its layers."""

    def __dlpack__(self, *, stream: object | None = None, max_version: tuple | None = None, dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> object:
        """
        A mutable block: its memory, without a copy. A registered block: a copy, or with copy=False its memory, flagged as read-only, which NumPy heeds and torch does not. Waits until copies have ended that still read what the slot held before.

        Raises BufferError for another device, a stream, or copy=False from a consumer that asks without max_version.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0): host memory."""

class BlockList:
    """Blocks of one layer group, in the order of a prefix."""

    def __init__(self, blocks: Sequence[Block]) -> None: ...

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, slice: slice) -> BlockList: ...

    def __iter__(self) -> Iterator[Block]: ...

    def to_list(self) -> list[Block]:
        """The blocks."""

    def release(self) -> None:
        """Lets go of all of them, deepest first. May be called again."""

    @property
    def block_ids(self) -> list[int]:
        """Their slots in G1."""

class SequenceKeys:
    """What names the full blocks of a token sequence, for one manager."""

    def __len__(self) -> int: ...

class PrefixHit:
    """
    What a sequence has in all tiers, pinned until it is released or onboarded.
    """

    @property
    def num_blocks(self) -> int:
        """Blocks of the prefix that are somewhere."""

    @property
    def num_gpu_blocks(self) -> int:
        """Those at the front that are in G1."""

    def tier(self, position: int) -> str:
        """G1, G2 or G3: the slowest tier that a position comes from."""

    def __len__(self) -> int: ...

    def keep_gpu_part(self) -> None:
        """Forgets what is below G1, and unpins it there."""

    def release(self) -> None:
        """Unpins it. May be called again."""

class Onboarded:
    """
    Positions [0, num_blocks) of a prefix are in G1 and held; the rest is to be computed.
    """

    @property
    def num_blocks(self) -> int: ...

    @property
    def groups(self) -> list[BlockList]:
        """A BlockList for each layer group."""

    @property
    def first(self) -> list[int]:
        """
        The position of each group's first block: not 0 where a sliding window starts later.
        """

    @property
    def blocks(self) -> BlockList:
        """The blocks of the first group."""

    @property
    def error(self) -> Error | None:
        """Why it is less than the hit, as an exception that was not raised."""

class Onboarding:
    """
    Copies into G1 that are under way: wait() or await gives the result, once.
    """

    def done(self) -> bool:
        """Whether wait() returns at once."""

    def wait(self, timeout: float | None = None) -> Onboarded:
        """
        timeout in seconds. Raises kvbm.TimeoutError: the copies go on, and it may be asked again.
        """

    def __await__(self) -> Generator[Any, None, Onboarded]: ...

class KvEvent:
    """A block came to, or left, a tier."""

    @property
    def type(self) -> str:
        """created (from compute), migrated (copied from from_tier) or deleted."""

    @property
    def tier(self) -> str:
        """G1, G2 or G3."""

    @property
    def from_tier(self) -> str | None:
        """Of a migrated block, else None."""

    @property
    def block_id(self) -> int:
        """Its slot in the tier."""

    @property
    def group(self) -> int:
        """Its layer group, by index."""

    @property
    def identity(self) -> bytes:
        """
        32 bytes: what keys_from_identities was given, with zeros behind it, or the hash of the tokens.
        """

    @property
    def timestamp(self) -> float:
        """Seconds since 1970."""

    def __repr__(self) -> str: ...

class BlockManager:
    """
    Finds, keeps and restores KV blocks over GPU (G1), host (G2) and disk (G3).

    Keywords are the keys of docs/configuration.md, with its defaults, over KVBM_* variables and a TOML file: the argument config_file, or else the one that KVBM_CONFIG names. Sizes are int, or a str such as "16 GiB". dtype names the elements of tensors (float16, bfloat16, float32, uint8, ...) and with it dtype_width_bytes; without it they are unsigned integers of that width.

    with closes it. Threads: any; calls take turns, and what waits releases the GIL. In a forked child every call raises kvbm.UnsupportedError.

    Raises kvbm.InvalidArgumentError, naming the key and for an unknown one the nearest, kvbm.ExhaustedError, kvbm.IoError, kvbm.NotFoundError.
    """

    def __init__(self, *, config_file: str | None = None, dtype: str | None = None, max_events: int = 0, **values: bool | int | float | str) -> None:
        """max_events: how many block events are kept for take_events()."""

    def __enter__(self) -> BlockManager: ...

    def __exit__(self, *exception: object) -> None: ...

    def close(self, timeout: float | None = None) -> None:
        """
        Writes what is only in host memory to disk, if there is a disk tier, and stops. timeout in seconds; raises kvbm.TimeoutError, then it may be called again. Tensors and registered blocks keep the memory. May be called again.
        """

    @property
    def closed(self) -> bool: ...

    def keys(self, tokens: Sequence[int], salt: str = '') -> SequenceKeys:
        """
        The keys of the full blocks of tokens (32-bit unsigned); salt keeps caches apart.
        """

    def keys_from_identities(self, identities: Sequence[bytes]) -> SequenceKeys:
        """
        The keys of blocks that the engine names itself, by 1 to 32 bytes each.
        """

    def match(self, keys: SequenceKeys) -> PrefixHit:
        """The longest prefix that is in any tier, pinned."""

    def allocate_blocks(self, num_blocks: int, group: int = 0) -> BlockList:
        """
        Blocks of G1 to fill, evicting idle ones. Raises kvbm.ExhaustedError, all or nothing.
        """

    def begin_onboard(self, hit: PrefixHit, into: Sequence[BlockList] | None = None) -> Onboarding:
        """
        Begins to copy what the hit has below G1 into blocks of G1, and consumes the hit. into: the blocks, a list for each layer group, which are consumed too; without it they are allocated. Raises kvbm.ExhaustedError: the hit stays; kvbm.InvalidArgumentError if into does not fit the hit.
        """

    def onboard(self, hit: PrefixHit, timeout: float | None = None) -> Onboarded:
        """
        begin_onboard and wait, timeout in seconds. Raises kvbm.TimeoutError: the copies go on, and what arrives can be matched. A failed copy raises nothing: the result is shorter, and says why.
        """

    def register_blocks(self, blocks: BlockList, keys: SequenceKeys, first: int = 0) -> BlockList:
        """
        Makes filled blocks findable: blocks[i] is position first + i of the keys. They are consumed, and copied down in the background. Returns the registered ones, held. Raises kvbm.InvalidArgumentError while a tensor could still write to one of them, or if there are fewer keys.
        """

    def store_kv(self, block: Block, layer: int, data: bytes | bytearray | memoryview | Any) -> None:
        """
        Writes one layer of a mutable block on its rank. data: a contiguous buffer of [outer, block_size, num_heads, head_dim] elements.
        """

    def load_kv(self, block: Block, layer: int) -> bytes:
        """
        Reads one layer of a registered block on its rank, in the shape of store_kv.
        """

    def wait_idle(self, timeout: float | None = None) -> None:
        """
        Waits until nothing is copied. timeout in seconds; raises kvbm.TimeoutError.
        """

    def reset(self) -> None:
        """
        Empties all tiers. Raises kvbm.UnavailableError while a block of G1 is held or something is copied: nothing has changed; or where hits pin blocks below G1: all others are gone.
        """

    def poll(self) -> None:
        """Takes in what has ended; match, onboard and register_blocks do so too."""

    def resident_blocks(self, tier: str) -> int:
        """Blocks that can be found in G1, G2 or G3, over all groups."""

    def occupancy(self, group: int = 0) -> dict[str, int]:
        """Blocks of G1 by what they are: free, idle, active or mutable."""

    def take_events(self) -> list[KvEvent]:
        """The block events since the last call, oldest first."""

    @property
    def num_dropped_events(self) -> int:
        """
        Events lost because more than max_events came between two calls: the oldest ones.
        """

    @property
    def num_groups(self) -> int: ...

    @property
    def block_size(self) -> int:
        """Tokens of a block."""

    @property
    def dtype(self) -> str:
        """The element type of tensors."""

    def config_toml(self) -> str:
        """Every value as TOML, with where it comes from."""

def live_objects() -> dict[str, int]:
    """
    How many managers, held blocks, tensors, hits, onboardings, workers, leaders, layouts, transfer managers and notifications are alive in this process.
    """

def replay(trace: str | os.PathLike, *, device: str = 'host', cuda_ring_size: int | None = None, g1_blocks: int = 4096, g2_blocks: int = 0, g3_blocks: int = 0, block_bytes: int = 65536, ranks: int = 1, groups: str = 'full', disk_dir: str | os.PathLike | None = None, policy: str = 'lineage', bytes: str = 'verified', overlap: str = 'off', seed: int = 0, limit: int | None = None) -> dict[str, Any]:
    """
    Plays a trace (docs/formats/trace.md) through the tiers, as the program kvbm replay does, and gives its report (docs/formats/replay-report.md). Keywords are the report's options, which say what they mean. Wrong bytes and failed loads raise nothing: the report counts them as mismatches and failed_loads. Ctrl-C ends it.

    Raises kvbm.InvalidArgumentError, naming the key or the line of the trace, kvbm.NotFoundError, kvbm.ExhaustedError, kvbm.IoError, kvbm.UnsupportedError (a pipe).
    """

class SecondaryTier:
    """
    Chunks of an engine's host pool, copied to disk and back by key.

    Threads: any; calls take turns, and what waits releases the GIL. In a forked child every call raises kvbm.UnsupportedError.
    """

    def __init__(self) -> None: ...

    @staticmethod
    def create(*, address: int, num_chunks: int, chunk_bytes: int, chunk_stride: int, model: str = '', disk_bytes: int = 0, disk_blocks: int = 0, disk_directory: str = '/tmp/', disk_direct_io: bool = True, disk_zero_fill: bool = False) -> SecondaryTier:
        """
        Borrows the pool until close(): chunk i at address + i * chunk_stride, in bytes. Raises kvbm.Error if there is no such disk.
        """

    def contains(self, key: bytes) -> bool:
        """Whether the chunk can be loaded; renews its recency."""

    def store(self, job: int, keys: list, chunks: Sequence[int]) -> None:
        """Starts to copy chunks to disk; never waits."""

    def load(self, job: int, keys: list, chunks: Sequence[int]) -> None:
        """Starts to copy what was stored to chunks; never waits."""

    def take_finished(self) -> list[tuple[int, bool, list[int], int, float]]:
        """
        [(job, succeeded, positions of a load that arrived, bytes, seconds), ...]
        """

    @property
    def num_open_jobs(self) -> int: ...

    @property
    def num_disk_blocks(self) -> int: ...

    @property
    def num_resident_blocks(self) -> int: ...

    def statistics(self) -> dict:
        """What there is and what was counted, by name and labels."""

    def drain(self, timeout: float | None = None) -> None:
        """
        Waits until no copy is under way. timeout in seconds; raises kvbm.TimeoutError, then it may be called again.
        """

    def close(self, timeout: float | None = None) -> None:
        """
        Waits for running copies; the pool may go afterwards. Nothing else works then. timeout in seconds; raises kvbm.TimeoutError: the tier is as before.
        """

class TokenBlockSequence:
    """
    Tokens cut into blocks of one size. A block that is full has a sequence hash, of its tokens and all before them, and an identity; BlockManager.keys names the same blocks by the same identities.

    Threads: one at a time.
    """

    def __init__(self, tokens: Sequence[int], block_size: int, salt_hash: int = 0) -> None:
        """
        tokens: 32-bit unsigned. salt_hash, of hash_salt, keeps caches apart. Raises kvbm.InvalidArgumentError if block_size is 0.
        """

    def __len__(self) -> int:
        """Tokens, those behind the last full block among them."""

    @property
    def block_size(self) -> int:
        """Tokens of a block."""

    @property
    def salt_hash(self) -> int: ...

    @property
    def num_blocks(self) -> int:
        """Full blocks."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""

    def truncate(self, num_tokens: int) -> None:
        """
        Keeps the first num_tokens. Raises kvbm.InvalidArgumentError if there are fewer.
        """

    def holds(self, first: int, tokens: Sequence[int]) -> bool:
        """Whether the tokens from position first on begin with these."""

    def sequence_hashes(self, first: int = 0) -> list[int]:
        """
        64 bits for each full block from block first on. Raises kvbm.InvalidArgumentError if there are fewer.
        """

    def identities(self, first: int = 0) -> list[bytes]:
        """
        32 bytes for each full block from block first on: what BlockManager.keys_from_identities and KvbmLeader.extend take. Raises kvbm.InvalidArgumentError if there are fewer.
        """

def hash_salt(salt: bytes) -> int:
    """64 bits of whatever has to keep caches apart: model, adapter, tenant."""

class LayoutConfig:
    """
    The shape of the blocks of one layer group: a block is [num_layers, outer_dim, page_size, inner_dim] elements. Does not change.
    """

    def __init__(self, num_blocks: int, num_layers: int, outer_dim: int, page_size: int, inner_dim: int, dtype_width_bytes: int = 2, num_heads: int | None = None, alignment: int = 1) -> None:
        """Raises kvbm.InvalidArgumentError, naming what is wrong."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def outer_dim(self) -> int:
        """2: keys and values; 1: one tensor."""

    @property
    def page_size(self) -> int:
        """Tokens of a block."""

    @property
    def inner_dim(self) -> int:
        """
        Elements of a token in one layer and one of outer_dim: heads times head size, where there are heads.
        """

    @property
    def dtype_width_bytes(self) -> int:
        """Bytes of an element: 1, 2, 4 or 8."""

    @property
    def num_heads(self) -> int | None:
        """
        Divides inner_dim; None: unknown. Two layouts that both know it have to agree.
        """

    @property
    def alignment(self) -> int:
        """
        Bytes, a power of two: each part of a block that is stored apart starts at a multiple of it.
        """

    @property
    def chunk_bytes(self) -> int:
        """Of [page_size, inner_dim]."""

    @property
    def layer_bytes(self) -> int:
        """Of [outer_dim, page_size, inner_dim]."""

    @property
    def block_bytes(self) -> int:
        """Of a block, without padding."""

    def __eq__(self, other: object, /) -> bool: ...

    def __hash__(self) -> int: ...

    def __repr__(self) -> str: ...

class LayoutLayer:
    """
    One layer of a layout. As a tensor: [num_blocks, outer_dim, page_size, inner_dim] unsigned integers of dtype_width_bytes, in host memory, with the layout's strides; it is the memory, and keeps it.
    """

    @property
    def index(self) -> int: ...

    def __dlpack__(self, *, stream: object | None = None, max_version: tuple | None = None, dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> object:
        """
        Without a copy. Raises BufferError for another device, a stream, or copy=True.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0): host memory."""

class PhysicalLayout:
    """
    Where every part of every block of one place is: layout[i] is a layer, as a tensor. It owns its memory or keeps the tensors that it lies over; so does whatever was made from it.
    """

    @staticmethod
    def allocate(config: LayoutConfig, kind: str = 'fully_contiguous') -> PhysicalLayout:
        """
        Over new host memory, which reads as zero. kind:

        - fully_contiguous: block after block;
        - layer_separate_block_first: each layer apart, block after block;
        - layer_separate_block_second: each layer apart, all keys before all values.

        Raises kvbm.InvalidArgumentError, kvbm.ExhaustedError.
        """

    @staticmethod
    def from_tensors(config: LayoutConfig, tensors: Sequence[object], kind: str) -> PhysicalLayout:
        """
        Over writable tensors in host memory that come by DLPack, without a copy, of elements of dtype_width_bytes. By kind:

        - fully_contiguous: one, [num_blocks, num_layers, outer_dim, page_size, ...];
        - layer_separate_block_first: one a layer, [num_blocks, outer_dim, page_size, ...];
        - layer_separate_block_second: one a layer, [outer_dim, num_blocks, page_size, ...].

        What follows page_size has inner_dim elements together and is contiguous with it; axes before it may have any stride. Raises kvbm.InvalidArgumentError, naming the tensor.
        """

    @property
    def config(self) -> LayoutConfig: ...

    @property
    def kind(self) -> str:
        """That of allocate, or page_maps over tensors."""

    @property
    def storage_kind(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, layer: int) -> LayoutLayer: ...

class LayoutHandle:
    """
    The name of a registered layout, in 128 bits: 64 of the worker, 16 of its layout, zeros.
    """

    @staticmethod
    def from_bits(low: int, high: int) -> LayoutHandle:
        """Raises kvbm.InvalidArgumentError if a bit above 79 is set."""

    @property
    def worker_id(self) -> int: ...

    @property
    def layout(self) -> int:
        """Counted by each worker."""

    @property
    def low(self) -> int: ...

    @property
    def high(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __hash__(self) -> int: ...

    def __repr__(self) -> str: ...

class TransferCompleteNotification:
    """
    How a transfer ended, once it has: then nothing touches its blocks any more. May be dropped; the transfer goes on.
    """

    def done(self) -> bool:
        """Whether wait() returns at once."""

    def wait(self, timeout: float | None = None) -> int:
        """
        The bytes that have arrived. timeout in seconds; raises kvbm.TimeoutError: the transfer goes on, and it may be asked again. Raises the kvbm.Error with which the transfer failed, whose blocks are then undefined at the destination.
        """

    def __await__(self) -> Generator[Any, None, int]: ...

    @property
    def failed(self) -> list[int]:
        """
        Positions in the lists of ids that did not arrive, ascending. Raises kvbm.UnavailableError before it is done.
        """

class TransferManager:
    """
    Copies blocks between registered layouts, in the background.

    Keeps what is registered, and its memory or tensors, until it is closed or gone and nothing runs any more. with closes it. Threads: any. In a forked child every call raises kvbm.UnsupportedError.
    """

    def __init__(self, worker_id: int = 0, *, copy_threads: int = 2, max_transfers: int = 4096) -> None:
        """
        worker_id: in the handles. max_transfers: that are not done yet. Raises kvbm.InvalidArgumentError, kvbm.ExhaustedError (threads).
        """

    def __enter__(self) -> TransferManager: ...

    def __exit__(self, *exception: object) -> None: ...

    def close(self, timeout: float | None = None) -> None:
        """
        Waits for what runs, and lets go of all layouts. Nothing new is taken meanwhile. timeout in seconds; raises kvbm.TimeoutError: the manager is as before. May be called again.
        """

    @property
    def closed(self) -> bool: ...

    def register_layout(self, layout: PhysicalLayout) -> LayoutHandle:
        """Raises kvbm.ExhaustedError if 65536 are registered."""

    def execute_transfer(self, src: LayoutHandle, src_ids: Sequence[int], dst: LayoutHandle, dst_ids: Sequence[int], *, layer_range: tuple[int, int] | None = None) -> TransferCompleteNotification:
        """
        Copies block src_ids[i] of src to block dst_ids[i] of dst, for every i: all layers, or those of layer_range, (first, count). Never waits. Until it is done the caller neither writes the blocks of src nor touches those of dst.

        Raises kvbm.NotFoundError (a handle), kvbm.InvalidArgumentError (lists of different lengths, an id out of range, a destination twice or that is also a source, block shapes that differ, a range outside), kvbm.UnsupportedError (layouts that may share bytes), kvbm.ExhaustedError (max_transfers), kvbm.UnavailableError (closed, or being closed).
        """

    @property
    def in_flight(self) -> int:
        """Transfers that are not done."""

    @property
    def worker_id(self) -> int: ...

class KvbmWorker:
    """
    One rank: an engine's KV tensors and what moves their bytes.

    In a forked child every call raises kvbm.UnsupportedError.
    """

    def __init__(self, num_device_blocks: int, page_size: int, tensors: list, device_id: int = 0, dtype_width_bytes: int | None = None, drt: object | None = None, layout_blocking: bool = False, device_layout_type: object | None = None, host_layout_type: object | None = None, disk_layout_type: object | None = None, rank: int = 0, world_size: int | None = None, nccl_comm_ptr: object | None = None, **settings) -> None:
        """
        As Dynamo's KvbmWorker: one group of layers that are alike. tensors: one a layer, each [num_device_blocks, ...] in host memory, of torch or NumPy, with strides of any kind; page_size tokens a block; kept until stop(). Where the disk tier lies and how it is read: see connector_config; settings are as the leader's. The arguments without an effect here take their defaults alone.

        Raises kvbm.InvalidArgumentError, naming the tensor, kvbm.UnsupportedError.
        """

    @staticmethod
    def create(rank: int, num_blocks: int, groups: Sequence[tuple[int, Sequence[tuple[int, int]]]], *, disk_directory: str = '', disk_direct_io: bool = True, disk_zero_fill: bool = False, runs_per_layer: Sequence[int] = []) -> KvbmWorker:
        """
        groups: per layer group (run_bytes, [(address, block_stride), ...]), in bytes, layer by layer. Borrows the memory until stop(). runs_per_layer: of each group; without it each layer needs all of a load.
        """

    def connect(self, endpoint: str, secret: str = '') -> None:
        """Comes to a leader of another process, now or when it is there."""

    def begin_step(self, step: bytes) -> None:
        """Begins a step with the bytes of build_step."""

    @property
    def has_loads(self) -> bool: ...

    def layer_needed(self, layer: int) -> None:
        """
        Waits for what the layer reads. Layers are counted in each layer group, from 0: layer i is that of every group.
        """

    def all_layers_needed(self) -> None:
        """Waits for what all layers read."""

    def statistics(self) -> dict:
        """What the copies of this rank have counted, by name and labels."""

    def end_step(self) -> None:
        """
        Everything of the step is computed: its stores may begin. Waits for nothing.
        """

    def take_ended_loads(self) -> list[tuple[str, list[int]]]:
        """[(request, blocks that did not get their content), ...]"""

    def take_failed_blocks(self) -> list[int]:
        """
        Blocks that a load within a step was to fill and has not, since the last call.
        """

    def stop(self, timeout: float | None = None) -> None:
        """
        Starts no more copies and waits for those that run; the tensors may go afterwards.

        timeout: in seconds; None: no limit. Raises kvbm.TimeoutError while copies still touch the tensors: they stay, and stop may be called again.
        """

    def __enter__(self) -> KvbmWorker: ...

    def __exit__(self, *exception: object) -> None: ...

class KvbmLeader:
    """
    The scheduler's side: requests, tiers and steps.

    In a forked child every call raises kvbm.UnsupportedError.
    """

    def __init__(self, world_size: int, drt: object | None = None, *, workers: list = [], endpoint: str = '', secret: str = '', page_size: int = 0, model: str = '', dtype: str = '', scheme: str = '', **settings) -> None:
        """
        As Dynamo's KvbmLeader, whose runtime brings the workers together; here they are given: world_size workers of this process, by rank, or the endpoint to which they come. Each has one layer group, kept as a whole prefix. page_size, tokens of a block, if the workers do not tell. Sizes, times and the metrics port: see connector_config; settings are those of docs/configuration.md, such as host_blocks=64. model, dtype, scheme: see create.
        """

    @staticmethod
    def create(workers: list = [], *, endpoint: str = '', num_ranks: int = 1, secret: str = '', init_timeout_secs: float = 120.0, place_timeout_secs: float = 1800.0, model: str, dtype: str, scheme: str, block_tokens: int | Sequence[int], window_blocks: Sequence[int], load_mode: str = 'auto', host_bytes: int = 0, disk_bytes: int = 0, host_blocks: int = 0, disk_blocks: int = 0, disk_filter: bool = False, min_priority: int = 0, store_budget: float | None = None, weights_epoch: int = 0, timeout_seconds: float = 30.0, max_events: int = 0, metrics_port: int | None = None, record_directory: str = '') -> KvbmLeader:
        """
        block_tokens: tokens of a block, of every layer group or of each. window_blocks: by layer group, how many of its last blocks it needs to go on; 0: all. Where sizes differ, each divides the larger ones, and the workers have every group as often as group_parts says.

        workers: of this process, by rank. Or endpoint, to which num_ranks workers of other processes come (KvbmWorker.connect), for how long to wait for them, and then for all of them to make one place; Ctrl-C ends the wait. store_budget: the share of the engine's blocks that stores under way may read at a time; None: 0.05, but not less than 1024 blocks. metrics_port: where http://…:port/metrics is served; None: nowhere, 0: any. record_directory: where a folder with a flight record is made; '': none.
        """

    def num_identities(self, arg: str, /) -> int:
        """How many hashes of a request were handed over."""

    def extend(self, request: str, hashes: list, priority: int | None = None) -> None:
        """
        hashes: of the next full blocks of a request, of the smallest size that a layer group has. priority: 0 to 100, how much they are worth keeping.
        """

    def match(self, request: str, num_computed_tokens: int, num_tokens: int) -> tuple[int, bool]:
        """
        (tokens that can be loaded beyond those that are computed, whether that happens between steps) for a request of num_tokens tokens. Pins them until allocated, finished or the next match.
        """

    def allocated(self, request: str, blocks: Sequence[Sequence[int]], num_external_tokens: int) -> None:
        """
        blocks: by layer group, all of the request. num_external_tokens: what match has offered, to be loaded into them, or 0. Raises kvbm.ContractViolation for another number.
        """

    def build_step(self, scheduled: list) -> bytes:
        """
        scheduled: [(request, blocks by group, replaces_blocks, num_computed_tokens, num_scheduled_tokens), ...]
        """

    def finished(self, arg: str, /) -> bool:
        """
        The request has ended. True if a load still writes to its blocks: they stay until take_ended_loads names it.
        """

    @property
    def page_size(self) -> int:
        """Tokens of a block, of the largest where sizes differ."""

    @property
    def num_groups(self) -> int:
        """Layer groups."""

    @property
    def num_requests(self) -> int: ...

    @property
    def num_open_loads(self) -> int: ...

    @property
    def num_host_blocks(self) -> int:
        """
        Of each layer group. Fewer than asked for once match or build_step has heard of a worker that could not have all of its memory.
        """

    @property
    def num_disk_blocks(self) -> int: ...

    def reset(self) -> None:
        """
        Empties the tiers; what requests have computed so far is not stored any more.
        """

    def take_events(self) -> list:
        """
        [(stored or removed, tier, layer group, identity of 32 bytes), ...] since the last call.
        """

    @property
    def metrics_port(self) -> int | None: ...

    def statistics(self) -> dict:
        """What there is and what was counted, by name and labels."""

    def stop(self) -> None:
        """
        Lets go of the workers, and waits for none of their copies. Nothing else can be called afterwards.
        """

    def __enter__(self) -> KvbmLeader: ...

    def __exit__(self, *exception: object) -> None: ...

class MetricsReader:
    """What has changed in the series of a leader or a worker."""

    @overload
    def __init__(self, leader: KvbmLeader) -> None: ...

    @overload
    def __init__(self, worker: KvbmWorker) -> None: ...

    def take(self) -> tuple:
        """
        (growth of counters, gauges), by name and labels, of what has changed since the last call. Raises kvbm.UnavailableError once the leader was stopped.
        """

def group_parts(block_tokens: Sequence[int], window_blocks: Sequence[int]) -> list[int]:
    """
    How many groups each layer group is to a worker: 1, or more where its blocks hold fewer tokens than another's. The worker gets its tensors as often, one after the other.

    Arguments as of KvbmLeader.create, by layer group. Raises kvbm.InvalidArgumentError, kvbm.UnsupportedError for sizes that do not divide each other.
    """

def connector_config(settings: dict = {}, where: str = 'keyword') -> dict:
    """
    What a connector is told, as arguments of KvbmLeader.create and KvbmWorker.create, and endpoint, where they meet ('ipc': in a folder of the user's own): from the defaults, the table [connector] of the file that KVBM_CONFIG names, the variables DYN_KVBM_* and settings, each over those before it. settings: by the names of docs/configuration.md. where: what messages call them.

    Raises kvbm.InvalidArgumentError with the name and what is allowed, kvbm.UnsupportedError for a variable that nothing here acts on.
    """
