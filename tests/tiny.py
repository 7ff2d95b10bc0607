"""Tiny checkpoints with random weights and a byte tokenizer, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from codemill.core.contracts import Document, content_hash
from codemill.models.tokenizer import byte_symbols

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def tiny_checkpoint(folder: Path, *, seed: int = 0, infills: bool = True, hidden: int = 48, layers: int = 2) -> Path:
    """A Qwen2-shaped model over bytes. Ids 0..255 are bytes; control tokens follow."""
    controls = CONTROLS if infills else CONTROLS[:3]
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=256 + len(controls),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=256,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256 + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i, name in enumerate(controls)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": byte_symbols(),
                  "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"eos_token": "<|endoftext|>", "chat_template": CHAT, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def document(text: str, path: str = "a.py", language: str = "python") -> Document:
    return Document(
        text=text, path=path, repository="path:r", revision="1", language=language, license="MIT",
        hash=content_hash(text.encode("utf-8", "surrogatepass")),
    )  # fmt: skip
