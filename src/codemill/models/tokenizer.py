"""Text to token ids and back, for byte-level BPE checkpoints. Imports no torch.

One rule holds everywhere: **text never becomes a control token.** A source file that contains `<|endoftext|>` is
ordinary text; control tokens come from ids (`eos_id`, `fim`) and from chat templates only. Published tokenizers do not
keep that rule, so on such text, and only there, the ids differ from theirs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from codemill.core.contracts import ContextFile, Message
from codemill.core.errors import ConfigError, InputError
from codemill.models.chat import ChatTemplate, find_template
from codemill.models.fim import FimTokens, fim_layout, find_fim_tokens

FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")

# Names of tokens that end a text or a turn, whatever the configuration says.
END_NAMES = frozenset(
    {
        "<|endoftext|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|end_of_text|>",
        "</s>",
        "<｜end▁of▁sentence｜>",
        "<|EOT|>",
    }
)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that no text may produce. `special` ones are left out when text is decoded."""

    id: int
    special: bool
    lstrip: bool = False  # in a template: swallows whitespace on its left
    rstrip: bool = False


class Tokenizer:
    """The tokenizer of one checkpoint folder. Make it with `Tokenizer.load`; safe to share between threads."""

    def __init__(self, folder: Path, definition: dict[str, Any], configs: Mapping[str, dict[str, Any]]) -> None:
        self.folder = folder
        self._configs = configs
        self.controls = _control_tokens(definition)
        self._text = _text_tokenizer(folder, definition, self.controls)
        self._bytes = _byte_table(definition, self.controls)
        self._special_ids = frozenset(token.id for token in self.controls.values() if token.special)
        self._unspellable = _missing_bytes(self._text)
        self.vocab_size: int = max(_vocab_rows(folder, configs), len(self._bytes))
        self.eos_id: int = self._eos()
        self.bos_id: int | None = self._first_id("bos_token", "bos_token_id")
        self.stop_ids: frozenset[int] = self._stops()
        self.fim: FimTokens | None = find_fim_tokens(self._control_id, self.stop_ids)

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read `tokenizer.json` and its companions. Raises `InputError` for a folder without a usable tokenizer."""
        folder = Path(folder)
        definition = _read_json(folder / "tokenizer.json", required=True)
        names = ("tokenizer_config.json", "config.json", "generation_config.json")
        configs = {name: _read_json(folder / name, required=False) for name in names}
        _check_supported(folder, definition)
        return cls(folder, definition, configs)

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files unchanged into another checkpoint's folder."""
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    # Text and ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any control token.

        What the vocabulary cannot spell (a lone surrogate, for some models a rare control character) becomes U+FFFD;
        some models also normalise to NFC. All else survives `decode` exactly.
        """
        ids: list[int] = self._text.encode(self._spellable(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        cleaned = [self._spellable(text) for text in texts]
        return [found.ids for found in self._text.encode_batch_fast(cleaned, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids. Bytes that are no UTF-8, such as half a character at the end, become U+FFFD."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = True) -> bytes:
        """The exact bytes; those of a concatenation are the concatenation of the bytes, which streaming relies on."""
        table, special = self._bytes, self._special_ids if skip_special else frozenset()
        parts = []
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InputError(f"{self.folder}: token id {token} is outside the vocabulary of {self.vocab_size:,}")
            if token < len(table) and token not in special:  # rows behind the table are padding and spell nothing
                parts.append(table[token])
        return b"".join(parts)

    def token_id(self, token: str) -> int | None:
        """The id of a control token, or of an entry of the vocabulary as the vocabulary spells it."""
        found = self._control_id(token)
        if found is None:
            found = self._text.token_to_id(token)
        return found

    # Prompts

    def completion_prompt(self, text: str, max_tokens: int = 0) -> list[int]:
        """A text to be continued, cut from its start to `max_tokens` (0: not at all); with a beginning-of-text token
        where the model's own tokenizer puts one."""
        ids, start = self.encode(text), self._start_ids
        if not max_tokens:
            return [*start, *ids]
        room = max_tokens - len(start)
        if room < 1:
            raise ConfigError(f"max_tokens {max_tokens} leaves no room for a prompt")
        return [*start, *ids[-room:]]

    def fim_prompt(
        self,
        prefix: str,
        suffix: str,
        *,
        context: Sequence[ContextFile] = (),
        repository: str = "",
        path: str = "",
        max_tokens: int = 0,
    ) -> list[int]:
        """A gap to be filled, prefix-suffix-middle; prefix and suffix are tokenised each on its own.

        With context files, a repository or a path, the model's layout for repositories comes first. To fit
        `max_tokens` (0: no limit), context files go first, from the last one; then the prefix is cut from its start
        and the suffix from its end, two thirds to one. Raises `ConfigError` for a model without FIM tokens.
        """
        if self.fim is None:
            raise ConfigError(
                f"{self.folder}: this model has no fill-in-the-middle tokens; use a model trained for it, "
                "or ask for a completion of the prefix alone"
            )
        options = {"context": context, "repository": repository, "path": path, "max_tokens": max_tokens}
        return fim_layout(self.fim, self.encode, prefix, suffix, **options)  # type: ignore[arg-type]

    def chat_prompt(
        self,
        messages: Sequence[Message],
        max_tokens: int = 0,
        *,
        generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        opening: str = "",
    ) -> list[int]:
        """A conversation in the checkpoint's own template; `generation_prompt` opens the assistant's turn.

        `tools` are the functions that the model may call, `opening` begins its answer (see `ChatTemplate.render`).

        To fit `max_tokens` (0: no limit), the oldest turns are left out, never a leading system message or the last
        message; then the last message is cut from its start. Raises `ConfigError` for a model without a template.
        """
        ids = self._chat_ids(messages, generation_prompt, tools, opening)
        kept = list(messages)
        while max_tokens and len(ids) > max_tokens:
            kept = self._shorten(kept, len(ids) - max_tokens, max_tokens)
            ids = self._chat_ids(kept, generation_prompt, tools, opening)
        return ids

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template can show tools."""
        return self._template is not None and self._template.takes_tools

    def _shorten(self, messages: list[Message], excess: int, max_tokens: int) -> list[Message]:
        oldest = 1 if messages[0].role == "system" else 0
        if oldest < len(messages) - 1:
            after = oldest + 1
            while after < len(messages) - 1 and messages[after].role != "user":
                after += 1  # a turn is a user's message with all that answers it
            return messages[:oldest] + messages[after:]
        content = self.encode(messages[-1].content)
        if not content:
            raise ConfigError(f"max_tokens {max_tokens} is less than this conversation needs without its last message")
        last = replace(messages[-1], content=self.decode(content[excess:]))
        return [*messages[:-1], last]

    def _chat_ids(
        self, messages: Sequence[Message], generation_prompt: bool, tools: Sequence[Mapping[str, Any]], opening: str
    ) -> list[int]:
        if self._template is None:
            raise ConfigError(f"{self.folder}: this model has no chat template; use a completion prompt")
        ids: list[int] = []
        strip_next = False
        parts = self._template.render(messages, generation_prompt, tools, opening)
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self.controls[part].id)
                strip_next = self.controls[part].rstrip
                continue
            part = part.lstrip() if strip_next else part
            if place + 1 < len(parts) and self.controls[parts[place + 1]].lstrip:
                part = part.rstrip()
            ids += self.encode(part)
        return ids

    @cached_property
    def _template(self) -> ChatTemplate | None:
        config = self._configs["tokenizer_config.json"]
        file = self.folder / "chat_template.jinja"
        jinja = file.read_text(encoding="utf-8") if file.is_file() else None
        source = find_template(str(self.folder), config, jinja)
        if source is None:
            return None
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        variables = {name: text for name in names if (text := _token_text(config.get(name))) is not None}
        return ChatTemplate(source, str(self.folder), variables, frozenset(self.controls))

    # What the configuration says

    @cached_property
    def _start_ids(self) -> list[int]:
        """Tokens that the model's own tokenizer puts before a text."""
        flag = self._configs["tokenizer_config.json"].get("add_bos_token")
        if flag is not None:
            return [self.bos_id] if flag and self.bos_id is not None else []
        plain = self._text.encode("a", add_special_tokens=False).ids
        whole = self._text.encode("a", add_special_tokens=True).ids
        return list(whole[: whole.index(plain[0])]) if plain and plain[0] in whole else []

    def _control_id(self, name: str) -> int | None:
        found = self.controls.get(name)
        return None if found is None else found.id

    def _ids_of(self, key: str) -> list[int]:
        """Token ids under a key of `generation_config.json`, else `config.json`: a number or a list of them."""
        for name in ("generation_config.json", "config.json"):
            given = self._configs[name].get(key)
            values = given if isinstance(given, list) else [given]
            if given is not None and all(type(value) is int and 0 <= value < self.vocab_size for value in values):
                return list(values)
        return []

    def _first_id(self, token_key: str, id_key: str) -> int | None:
        text = _token_text(self._configs["tokenizer_config.json"].get(token_key))
        named = None if text is None else self.token_id(text)
        return named if named is not None else next(iter(self._ids_of(id_key)), None)

    def _eos(self) -> int:
        found = self._first_id("eos_token", "eos_token_id")
        if found is None:
            raise InputError(f"{self.folder}: no end-of-text token: tokenizer_config.json names no eos_token")
        return found

    def _stops(self) -> frozenset[int]:
        named = {self._control_id(name) for name in END_NAMES}
        return frozenset({self.eos_id, *self._ids_of("eos_token_id"), *(found for found in named if found is not None)})

    def _spellable(self, text: str) -> str:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            data = text.encode()
        if self._unspellable and len(data.translate(None, self._unspellable)) != len(data):
            gone = set(self._unspellable)
            text = "".join("\ufffd" if gone.intersection(character.encode()) else character for character in text)
        return text


def _read_json(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise InputError(f"{path}: not found; a checkpoint folder needs its tokenizer") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object")
    return content


def _check_supported(folder: Path, definition: dict[str, Any]) -> None:
    model, decoder = definition.get("model"), definition.get("decoder")
    stages = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE" or not any(isinstance(stage, dict) and stage.get("type") == "ByteLevel" for stage in stages):
        raise ConfigError(f"{folder}/tokenizer.json: only byte-level BPE is supported, this is {kind or 'unknown'}")
    vocab = model["vocab"] if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(type(token) is int and token >= 0 for token in vocab.values()):
        raise InputError(f"{folder}/tokenizer.json: the vocabulary must map tokens to ids")
    added = definition.get("added_tokens", [])
    if not isinstance(added, list) or not all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and t["content"] and type(t.get("id")) is int
        for t in added
    ):
        raise InputError(f"{folder}/tokenizer.json: added_tokens must be objects with an id and a content")


def _control_tokens(definition: dict[str, Any]) -> dict[str, ControlToken]:
    """Special tokens, and added ones in angle brackets, which some publishers forget to mark as special.

    Other added tokens, such as runs of spaces, are text.
    """
    return {
        token["content"]: ControlToken(
            token["id"], bool(token.get("special")), bool(token.get("lstrip")), bool(token.get("rstrip"))
        )
        for token in definition.get("added_tokens", [])
        if token.get("special") or (token["content"][0] == "<" and token["content"][-1] == ">")
    }


def _text_tokenizer(
    folder: Path, definition: dict[str, Any], controls: Mapping[str, ControlToken]
) -> tokenizers.Tokenizer:
    """The tokenizer without its control tokens: it does not know them, so it cannot produce them."""
    added = [token for token in definition.get("added_tokens", []) if token["content"] not in controls]
    vocab = {token: index for token, index in definition["model"]["vocab"].items() if token not in controls}
    vocab |= {token["content"]: token["id"] for token in added}  # so that they keep their ids
    pruned = {**definition, "added_tokens": added, "model": {**definition["model"], "vocab": vocab}}
    pruned |= {"truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(pruned))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{folder}/tokenizer.json: the tokenizer cannot be built: {error}") from None


def byte_symbols() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _byte_table(definition: dict[str, Any], controls: Mapping[str, ControlToken]) -> list[bytes]:
    """The bytes of every token id; ids without a token spell nothing."""
    symbols = byte_symbols()
    spelled: dict[int, bytes] = {}
    for token, index in definition["model"]["vocab"].items():
        try:
            spelled[index] = bytes([symbols[character] for character in token])
        except KeyError:  # an added token that also stands in the vocabulary
            spelled[index] = token.encode()
    for token in definition.get("added_tokens", []):
        spelled[token["id"]] = token["content"].encode()
    if not spelled or max(spelled) > 1 << 22:
        raise InputError("tokenizer.json: the vocabulary is empty or its ids are out of any range")
    return [spelled.get(index, b"") for index in range(max(spelled) + 1)]


def _missing_bytes(text: tokenizers.Tokenizer) -> bytes:
    """Bytes that occur in UTF-8 but have no token: `tokenizers` would drop them without a word."""
    possible = {*range(0x00, 0xC0), *range(0xC2, 0xF5)}
    return bytes(
        sorted(byte for symbol, byte in byte_symbols().items() if byte in possible and text.token_to_id(symbol) is None)
    )


def _vocab_rows(folder: Path, configs: Mapping[str, dict[str, Any]]) -> int:
    rows = configs["config.json"].get("vocab_size", 0)
    if type(rows) is not int or not 0 <= rows <= 1 << 22:
        raise InputError(f"{folder}/config.json: vocab_size {rows!r} is not a count of rows")
    return rows


def _token_text(given: Any) -> str | None:
    """A special token as the configuration writes it: text, or an object with its text as `content`."""
    if isinstance(given, dict):
        given = given.get("content")
    return given if isinstance(given, str) else None
