"""The tokenizer inside a GGUF file, as the files of a Hugging Face folder.

GGUF stores the vocabulary, the merges and the *name* of the pre-tokenizer. The two names known here are written out as
the publishers of the models have them; an unknown name is an error, since a wrong split gives wrong tokens silently.
"""

from __future__ import annotations

import json
from typing import Any

from codemill.core.errors import IntegrityError
from codemill.models.gguf_file import GgufFile
from codemill.models.tokenizer import END_NAMES

# Token types of ggml. `UNUSED` ones are padding rows of the embedding and belong to no text.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

# Words with one leading character, single digits, punctuation with its newlines, whitespace (Qwen2's own pattern).
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def _splitting(file: GgufFile) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Normaliser and pre-tokenizer, in the notation of `tokenizer.json`."""
    name = file.text("tokenizer.ggml.pre")
    if name == "qwen2":
        split = {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
        return {"type": "NFC"}, {"type": "Sequence", "pretokenizers": [split, _byte_level(False)]}
    if name == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        return None, {"type": "Sequence", "pretokenizers": [digits, _byte_level(True)]}
    raise IntegrityError(f"{file.path}: pre-tokenizer {name!r} is unknown; known: qwen2, smollm")


def tokenizer_files(file: GgufFile, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Contents of `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` by name."""
    model = file.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise IntegrityError(f"{file.path}: tokenizer model {model!r} is not byte-level BPE (gpt2)")
    tokens = file.items("tokenizer.ggml.tokens", str)
    types = file.items("tokenizer.ggml.token_type", int)
    _check_vocabulary(file, tokens, types)
    special_ids = {name: _special_id(file, name, len(tokens)) for name in ("bos", "eos", "padding", "unknown")}
    tokenizer = _tokenizer_json(file, tokens, types)
    _check_loads(file, tokenizer)
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(file, config, tokens, tokenizer["added_tokens"], special_ids),
        "generation_config.json": _generation_config(tokenizer["added_tokens"], special_ids),
    }


def _check_vocabulary(file: GgufFile, tokens: list[str], types: list[int]) -> None:
    if not tokens or len(types) != len(tokens):
        raise IntegrityError(f"{file.path}: {len(tokens):,} tokens and {len(types):,} token types")
    unknown = set(types) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED}
    if unknown:
        raise IntegrityError(f"{file.path}: token type {min(unknown)} does not belong in byte-level BPE")
    if len(set(tokens)) != len(tokens):
        raise IntegrityError(f"{file.path}: the vocabulary names a token twice")
    if _NORMAL not in types:
        raise IntegrityError(f"{file.path}: the vocabulary has no ordinary token")


def _special_id(file: GgufFile, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in file.metadata:
        return None
    token = file.integer(key)
    if token >= count:
        raise IntegrityError(f"{file.path}: {key} {token} is outside the vocabulary of {count:,}")
    return token


def _tokenizer_json(file: GgufFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    normalizer, pre_tokenizer = _splitting(file)
    last = max(index for index, kind in enumerate(types) if kind == _NORMAL)
    # Control tokens before the last ordinary one are part of the model's table, later ones only added to it:
    # `tokenizers` numbers added tokens onwards from the table, so that both keep their ids.
    vocab = {token: index for index, token in enumerate(tokens[: last + 1]) if types[index] != _UNUSED}
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[index] == _CONTROL,
        }
        for index, token in enumerate(tokens)
        if types[index] in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _byte_level(True),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(file, vocab),
        },
    }


def _merges(file: GgufFile, vocab: dict[str, int]) -> list[list[str]]:
    merges = []
    for merge in file.items("tokenizer.ggml.merges", str):
        parts = merge.split(" ")
        if len(parts) != 2 or any(part not in vocab for part in (*parts, "".join(parts))):
            raise IntegrityError(f"{file.path}: merge {merge!r} does not fit the vocabulary")
        merges.append(parts)
    return merges


def _check_loads(file: GgufFile, tokenizer: dict[str, Any]) -> None:
    """Load it once, and see that every added token kept the id it has in the embedding."""
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:  # the library raises plain Exception
        raise IntegrityError(f"{file.path}: the tokenizer cannot be built: {error}") from None
    for token in tokenizer["added_tokens"]:
        if loaded.token_to_id(token["content"]) != token["id"]:
            raise IntegrityError(f"{file.path}: token {token['content']!r} cannot keep its id {token['id']}")


def _tokenizer_config(
    file: GgufFile,
    config: dict[str, Any],
    tokens: list[str],
    added: list[dict[str, Any]],
    special_ids: dict[str, int | None],
) -> dict[str, Any]:
    content: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; the model's own class would build its own splitting.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": file.metadata.get("tokenizer.ggml.add_bos_token") is True,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "added_tokens_decoder": {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added},
    }
    for name, key in (
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("padding", "pad_token"),
        ("unknown", "unk_token"),
    ):
        token_id = special_ids[name]
        content[key] = None if token_id is None else tokens[token_id]
    if "tokenizer.chat_template" in file.metadata:
        content["chat_template"] = file.text("tokenizer.chat_template")
    return content


def _generation_config(added: list[dict[str, Any]], special_ids: dict[str, int | None]) -> dict[str, Any]:
    """Generation ends at the end of a turn and at the end of a text, whichever the model writes."""
    ends = {index for name, index in special_ids.items() if name == "eos" and index is not None}
    ends |= {token["id"] for token in added if token["content"] in END_NAMES}  # ordinary tokens may be spelt alike
    content: dict[str, Any] = {"do_sample": False, "eos_token_id": sorted(ends)}
    for name, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if special_ids[name] is not None:
            content[key] = special_ids[name]
    return content
