# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama with random weights, whose output changes if its KV does.

Untied embeddings and a large range of weights: otherwise such a model repeats one token, and equal outputs prove nothing.
"""

import json
import pathlib


def make_tiny_model(
    folder: pathlib.Path, sliding_window: int | None = None, max_position_embeddings: int = 4096
) -> pathlib.Path:
    """Writes a model with its tokenizer; with sliding_window every other layer has one. Returns the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "config.json").exists():
        return folder
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=max_position_embeddings,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        initializer_range=0.15,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, 1024)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
    if sliding_window is not None:
        path = folder / "config.json"
        text = json.loads(path.read_text())
        text["sliding_window"] = sliding_window
        text["layer_types"] = ["sliding_attention", "full_attention"] * 2
        path.write_text(json.dumps(text))
    return folder
