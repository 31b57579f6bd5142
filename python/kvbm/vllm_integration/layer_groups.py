# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV cache groups as kvbm's layer groups."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerGroups:
    """By layer group, in the engine's order."""

    block_tokens: list[int]
    window_blocks: list[int]  # see window_blocks()


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
