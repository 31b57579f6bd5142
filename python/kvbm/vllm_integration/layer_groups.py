# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV cache groups as kvbm's layer groups."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerGroups:
    """By layer group, in the engine's order."""

    block_tokens: list[int]
    window_blocks: list[int]  # see window_blocks()

    @property
    def fails_by_request(self) -> bool:
        """Whether a load that fails has to be told by request, and not by block.

        Block ids are not unique over several groups. And of a window, the engine would go on before the first failed block,
        where the blocks that the window reaches from there were never loaded.
        """
        return len(self.block_tokens) > 1 or any(self.window_blocks)


def window_blocks(spec, block_tokens: int) -> int:
    """Blocks that a layer group needs to go on after a block boundary; 0: the whole prefix.

    By exact class, not by attribute: a full-attention group may say sliding_window too, where the engine keeps all its
    blocks and other layers of the group read them. Raises NotImplementedError for what is not known.
    """
    kind = type(spec).__name__
    if kind in ("FullAttentionSpec", "MLAAttentionSpec"):
        return 0
    if kind in ("SlidingWindowSpec", "SlidingWindowMLASpec"):
        # The next token sees itself and the window - 1 tokens before it.
        needed = spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)
        return max(1, -(-needed // block_tokens))
    raise NotImplementedError(f"layers with a {kind} are not supported: full attention and sliding windows are")


def layer_groups_of(kv_cache_config) -> LayerGroups:
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    return LayerGroups(
        block_tokens=[spec.block_size for spec in specs],
        window_blocks=[window_blocks(spec, spec.block_size) for spec in specs],
    )


def hash_tokens_of(vllm_config, kv_cache_config) -> int:
    """How many tokens one of a request's block hashes is about."""
    told = getattr(kv_cache_config, "hash_block_size", None)
    if told:
        return told
    try:  # vLLM before it said so in the config; the engine core asks the same function
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    except ImportError:
        return min(layer_groups_of(kv_cache_config).block_tokens)
    return resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)[1]
