# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, whose output changes if their KV does.

Untied embeddings and a large range of weights: otherwise such a model repeats one token, and equal outputs prove nothing.
"""

import json
import pathlib


VOCABULARY = 1024
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.15,
}
LAYER_TYPES = ["sliding_attention", "full_attention"] * 2


def write_tokenizer(folder: pathlib.Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


def make_tiny_model(
    folder: pathlib.Path, sliding_window: int | None = None, max_position_embeddings: int = 4096
) -> pathlib.Path:
    """Writes a Llama with its tokenizer; with sliding_window every other layer has one. Returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=max_position_embeddings)).save_pretrained(folder)
    write_tokenizer(folder)
    if sliding_window is not None:
        path = folder / "config.json"
        text = json.loads(path.read_text())
        text["sliding_window"] = sliding_window
        text["layer_types"] = LAYER_TYPES
        path.write_text(json.dumps(text))
    return folder


def make_model_of_two_block_sizes(folder: pathlib.Path, sliding_window: int) -> pathlib.Path:
    """Writes a Gemma 4 with its tokenizer, whose layers with a window keep half as many bytes of a token as the others: in
    blocks of as many bytes vLLM puts twice the tokens. Returns the folder."""
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    if (folder / "config.json").exists():
        return folder
    config = Gemma4TextConfig(
        **SHAPE,
        global_head_dim=2 * SHAPE["head_dim"],
        max_position_embeddings=4096,
        sliding_window=sliding_window,
        layer_types=LAYER_TYPES,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=0,
    )
    torch.manual_seed(0)
    Gemma4ForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder
