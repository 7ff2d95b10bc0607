"""The tokenizer: text survives, text never becomes a control token, prompts have the model's layout and budget."""

from __future__ import annotations

import json
import re
import sysconfig
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_samples import CHAT_TEMPLATE, FIM, SPECIAL, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.core.contracts import ContextFile, Message
from codemill.core.errors import ConfigError, InputError
from codemill.models.gguf import convert_gguf
from codemill.models.pull import pull
from codemill.models.tokenizer import Tokenizer

REAL = ["smollm2-135m", "qwen2.5-coder-0.5b"]
CONTROLS = [*SPECIAL, *FIM, "<tool_call>"]

# Ordinary text mixed with everything that could be taken for a control token, whole or in halves.
hostile_text = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*CONTROLS, "<|im_", "end|>", "<|", "|>", "<", ">", "<|fim_prefix|", "Ġ", "\ue0000:0\ue001"]),
        st.sampled_from(["  def f(x):\r\n", "\t\treturn  12\n", "日本語", "e\u0301", "\x00\x04", "[PAD0]"]),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint folder of each architecture, with and without FIM tokens."""
    base = tmp_path_factory.mktemp("tokenizers")
    for name, arch, fim in (("llama", "llama", False), ("qwen2", "qwen2", True)):
        write_gguf(base / f"{name}.gguf", arch, fim=fim)
        (base / name).mkdir()
        convert_gguf(base / f"{name}.gguf", base / name, progress=False)
    return {name: base / name for name in ("llama", "qwen2")}


@pytest.fixture(scope="module")
def qwen2(folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(folders["qwen2"])


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(folders["llama"])


def control_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    known = {token.id for token in tokenizer.controls.values()}
    return [token for token in ids if token in known]


def name_of(tokenizer: Tokenizer, token: int) -> str:
    return next(name for name, control in tokenizer.controls.items() if control.id == token)


# Text


@given(text=hostile_text)
def test_text_survives_and_never_becomes_a_control_token(llama: Tokenizer, qwen2: Tokenizer, text: str) -> None:
    for tokenizer in (llama, qwen2):
        ids = tokenizer.encode(text)
        assert control_ids(tokenizer, ids) == []
        expected = unicodedata.normalize("NFC", text) if tokenizer is qwen2 else text
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special=False) == expected


def test_every_control_token_written_in_a_file_is_ordinary_text(llama: Tokenizer, qwen2: Tokenizer) -> None:
    for tokenizer in (llama, qwen2):
        for name in tokenizer.controls:
            ids = tokenizer.encode(f"x = '{name}'")
            assert control_ids(tokenizer, ids) == []
            assert len(ids) > len(name) / 2
            assert tokenizer.token_id(name) == tokenizer.controls[name].id


@given(text=hostile_text, data=st.data())
def test_bytes_of_a_concatenation_are_the_concatenation_of_bytes(
    qwen2: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = qwen2.encode(text)
    cut = data.draw(st.integers(0, len(ids)))
    assert qwen2.decode_bytes(ids[:cut]) + qwen2.decode_bytes(ids[cut:]) == qwen2.decode_bytes(ids)
    assert qwen2.decode_bytes(ids).decode() == unicodedata.normalize("NFC", text)


def test_half_a_character_is_replaced_in_text_and_exact_in_bytes(qwen2: Tokenizer) -> None:
    ids = qwen2.encode("é")
    assert len(ids) == 2
    assert qwen2.decode(ids[:1]) == "\ufffd"
    assert qwen2.decode_bytes(ids[:1]) == b"\xc3"


@given(text=st.text(st.characters(categories=["Cs", "Lu", "Nd", "Zs"])))
def test_lone_surrogates_are_replaced(qwen2: Tokenizer, text: str) -> None:
    decoded = qwen2.decode(qwen2.encode(text))
    pairs_joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert decoded == unicodedata.normalize("NFC", pairs_joined)


def test_bytes_without_a_token_are_replaced_and_not_dropped(folders: dict[str, Path], tmp_path: Path) -> None:
    definition = json.loads((folders["llama"] / "tokenizer.json").read_text())
    del definition["model"]["vocab"]["Ą"]  # the byte 0x04
    del definition["model"]["vocab"]["ñ"]  # 0xF1, which begins the characters from U+40000 to U+7FFFF
    copy_with(folders["llama"], tmp_path, definition)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a\x04b\U00050000c\x05é")) == "a\ufffdb\ufffdc\x05é"


def test_batches_equal_single_texts(qwen2: Tokenizer) -> None:
    texts = ["def f():\n    return 12", "", "<|im_end|>", "日本 \ud800"]
    assert qwen2.encode_batch(texts) == [qwen2.encode(text) for text in texts]
    assert qwen2.encode_batch([]) == []


def test_special_tokens_are_left_out_and_others_kept_when_decoding(qwen2: Tokenizer) -> None:
    ids = [*qwen2.encode("a"), qwen2.eos_id, qwen2.controls["<tool_call>"].id, *qwen2.encode("b")]
    assert qwen2.decode(ids) == "a<tool_call>b"
    assert qwen2.decode(ids, skip_special=False) == "a<|im_end|><tool_call>b"


def test_padding_rows_spell_nothing_and_ids_beyond_them_are_errors(qwen2: Tokenizer) -> None:
    assert qwen2.vocab_size == len(qwen2._bytes) + 2  # two unused rows of the sample
    assert qwen2.decode([qwen2.vocab_size - 1]) == ""
    for token in (qwen2.vocab_size, -1):
        with pytest.raises(InputError, match=str(token)):
            qwen2.decode([token])


def test_added_tokens_that_are_text_stay_text(folders: dict[str, Path], tmp_path: Path) -> None:
    """Runs of spaces are added tokens in some tokenizers; to prune them with the control tokens would be wrong."""
    definition = json.loads((folders["qwen2"] / "tokenizer.json").read_text())
    last = definition["added_tokens"][-1]["id"]
    definition["added_tokens"].append(
        definition["added_tokens"][-1] | {"id": last + 1, "content": "    ", "special": False}
    )
    copy_with(folders["qwen2"], tmp_path, definition)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("    ") == [last + 1]
    assert tokenizer.decode([last + 1]) == "    "


def copy_with(source: Path, target: Path, definition: dict[str, object], **config: object) -> None:
    """A copy of a tokenizer with another definition, and with entries of its configuration changed."""
    Tokenizer.load(source).save(target)
    (target / "config.json").write_text((source / "config.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(definition))
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_ends_and_sizes(llama: Tokenizer, qwen2: Tokenizer) -> None:
    for tokenizer in (llama, qwen2):
        assert name_of(tokenizer, tokenizer.eos_id) == "<|im_end|>"
        assert {name_of(tokenizer, token) for token in tokenizer.stop_ids} == {"<|endoftext|>", "<|im_end|>"}
    assert llama.fim is None
    assert qwen2.fim is not None
    assert {name_of(qwen2, token) for token in qwen2.fim.stop_ids} == {*FIM, "<|endoftext|>", "<|im_end|>"}


def test_saving_keeps_the_tokenizer(folders: dict[str, Path], tmp_path: Path, qwen2: Tokenizer) -> None:
    qwen2.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode("def f(): return 1") == qwen2.encode("def f(): return 1")
    assert again.stop_ids == qwen2.stop_ids


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, InputError, "not found"),
        ("{", InputError, "not readable"),
        ("[]", InputError, "JSON object"),
        ('{"model": {"type": "Unigram", "vocab": []}}', ConfigError, "byte-level BPE"),
        ('{"model": {"type": "BPE", "vocab": {}}, "decoder": {"type": "Metaspace"}}', ConfigError, "byte-level BPE"),
        ('{"model": {"type": "BPE", "vocab": [1]}, "decoder": {"type": "ByteLevel"}}', InputError, "vocabulary"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}}, "decoder": {"type": "ByteLevel"}, "added_tokens": [3]}',
            InputError,
            "added_tokens",
        ),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}, "decoder": {"type": "ByteLevel"}}',
            InputError,
            "cannot be built",
        ),
    ],
)
def test_folders_without_a_usable_tokenizer(
    tmp_path: Path, content: str | None, kind: type[Exception], words: str
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(kind, match=words) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


# Prompts


def test_completion_prompts_are_cut_from_their_start(qwen2: Tokenizer) -> None:
    ids = qwen2.encode("one two three four")
    assert qwen2.completion_prompt("one two three four") == ids
    assert qwen2.completion_prompt("one two three four", 5) == ids[-5:]
    assert qwen2.completion_prompt("a", 5) == qwen2.encode("a")


def test_a_beginning_token_is_added_where_the_model_has_it(folders: dict[str, Path], tmp_path: Path) -> None:
    definition = json.loads((folders["qwen2"] / "tokenizer.json").read_text())
    copy_with(folders["qwen2"], tmp_path, definition, add_bos_token=True)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.completion_prompt("abc") == [tokenizer.bos_id, *tokenizer.encode("abc")]
    assert tokenizer.completion_prompt("abc", 2) == [tokenizer.bos_id, *tokenizer.encode("abc")[-1:]]
    with pytest.raises(ConfigError, match="no room"):
        tokenizer.completion_prompt("abc", 1)
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [tokenizer.bos_id], "tokens": ["<|endoftext|>"]}
        },
    }
    copy_with(folders["qwen2"], tmp_path, definition, add_bos_token=None)
    assert Tokenizer.load(tmp_path).completion_prompt("abc") == [tokenizer.bos_id, *tokenizer.encode("abc")]
    assert Tokenizer.load(tmp_path).encode("abc") == tokenizer.encode("abc")


def test_fim_prompts_are_prefix_suffix_middle(qwen2: Tokenizer) -> None:
    assert qwen2.fim is not None
    prompt = qwen2.fim_prompt("def f(", "):\n    pass")
    assert prompt == [
        qwen2.fim.prefix,
        *qwen2.encode("def f("),
        qwen2.fim.suffix,
        *qwen2.encode("):\n    pass"),
        qwen2.fim.middle,
    ]
    assert qwen2.decode(prompt, skip_special=False) == "<|fim_prefix|>def f(<|fim_suffix|>):\n    pass<|fim_middle|>"


def test_the_layout_of_a_repository(qwen2: Tokenizer) -> None:
    context = [ContextFile(path="a.py", text="A = 1"), ContextFile(path="b.py", text="<|file_sep|>")]
    prompt = qwen2.fim_prompt("p", "s", context=context, repository="demo", path="c.py")
    assert qwen2.decode(prompt, skip_special=False) == (
        "<|repo_name|>demo\n<|file_sep|>a.py\nA = 1\n<|file_sep|>b.py\n<|file_sep|>\n<|file_sep|>c.py\n"
        "<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )
    names = [name_of(qwen2, token) for token in control_ids(qwen2, prompt)]
    assert names == ["<|repo_name|>", *["<|file_sep|>"] * 3, "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


@given(
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    files=st.lists(st.integers(0, 30), max_size=3),
    room=st.integers(4, 150),
)
def test_a_fim_prompt_keeps_to_its_budget(
    qwen2: Tokenizer, before: int, after: int, files: list[int], room: int
) -> None:
    assert qwen2.fim is not None
    context = [ContextFile(path=f"{number}.py", text="y" * size) for number, size in enumerate(files)]
    options = {"context": context, "repository": "r", "path": "p.py"}
    whole = qwen2.fim_prompt("<" + "p" * before, "s" * after + ">", **options)  # type: ignore[arg-type]
    cut = qwen2.fim_prompt("<" + "p" * before, "s" * after + ">", **options, max_tokens=room)  # type: ignore[arg-type]
    assert len(cut) <= room
    if len(whole) <= room:
        assert cut == whole
        return
    prefix = cut[cut.index(qwen2.fim.prefix) + 1 : cut.index(qwen2.fim.suffix)]
    suffix = cut[cut.index(qwen2.fim.suffix) + 1 : -1]
    all_before, all_after = qwen2.encode("<" + "p" * before), qwen2.encode("s" * after + ">")
    assert cut[-1] == qwen2.fim.middle
    assert prefix == all_before[len(all_before) - len(prefix) :]  # the end of the prefix, nearest to the gap
    assert suffix == all_after[: len(suffix)]  # the start of the suffix
    if (prefix, suffix) != (all_before, all_after):  # context goes before a token of either side does
        assert cut[0] == qwen2.fim.prefix
        assert len(prefix) + len(suffix) + 3 == room
        third = (room - 3) / 3
        assert len(prefix) >= min(len(all_before), round(2 * third))
        assert len(suffix) >= min(len(all_after), int(third))


def test_a_model_without_fim_tokens_says_so(llama: Tokenizer, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no fill-in-the-middle tokens"):
        llama.fim_prompt("a", "b")
    definition = json.loads((folders["qwen2"] / "tokenizer.json").read_text())
    for token in definition["added_tokens"]:
        token["content"] = token["content"].replace("<|repo_name|>", "<|other|>")
    copy_with(folders["qwen2"], tmp_path, definition)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.fim_prompt("a", "b", path="x.py") == tokenizer.fim_prompt("a", "b")
    with pytest.raises(ConfigError, match="no repository tokens"):
        tokenizer.fim_prompt("a", "b", context=[ContextFile(path="x", text="y")])


def test_too_small_a_budget_is_an_error(qwen2: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no room"):
        qwen2.fim_prompt("a", "b", max_tokens=3)


# Chat


def chat(*contents: str) -> list[Message]:
    roles = ("system", "user", "assistant", "user")
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]  # type: ignore[arg-type]


def test_a_chat_prompt_is_the_rendered_template(qwen2: Tokenizer) -> None:
    prompt = qwen2.chat_prompt(chat("be brief", "hi"))
    assert qwen2.decode(prompt, skip_special=False) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    closed = qwen2.chat_prompt(chat("be brief", "hi"), generation_prompt=False)
    assert prompt[: len(closed)] == closed


@settings(max_examples=200)
@given(contents=st.lists(hostile_text, min_size=1, max_size=4))
def test_messages_cannot_end_their_turn_or_open_another(qwen2: Tokenizer, contents: list[str]) -> None:
    ids = qwen2.chat_prompt(chat(*contents))
    names = [name_of(qwen2, token) for token in control_ids(qwen2, ids)]
    assert names == ["<|im_start|>", "<|im_end|>"] * len(contents) + ["<|im_start|>"]
    roles = ("system", "user", "assistant", "user")
    # Normalisation happens between control tokens, never across one.
    turns = [
        f"<|im_start|>{unicodedata.normalize('NFC', f'{role}{chr(10)}{content}')}<|im_end|>\n"
        for role, content in zip(roles, contents, strict=False)
    ]
    assert qwen2.decode(ids, skip_special=False) == "".join([*turns, "<|im_start|>assistant\n"])


def template(folders: dict[str, Path], target: Path, source: str) -> Tokenizer:
    definition = json.loads((folders["qwen2"] / "tokenizer.json").read_text())
    copy_with(folders["qwen2"], target, definition, chat_template=source)
    return Tokenizer.load(target)


@given(contents=st.lists(hostile_text, min_size=2, max_size=4))
def test_messages_without_anything_between_them_cannot_join_into_a_control_token(
    adjoining: Tokenizer, contents: list[str]
) -> None:
    ids = adjoining.chat_prompt(chat(*contents))
    assert [name_of(adjoining, token) for token in control_ids(adjoining, ids)] == ["<|im_start|>"]


@pytest.mark.parametrize(
    ("source", "contents"),
    [
        ("<|im_{{ messages[0].content }}", ["end|> and more"]),
        ("{{ messages[0].content }}end|>", ["more and <|im_"]),
        ("<|{{ messages[0].content }}|>", ["im_end"]),
        ("{{ messages[0].content }}{{ messages[1].content }}", ["a<|im_", "end|>b"]),
        ("{{ messages[0].content }}{{ messages[1].content }}{{ messages[2].content }}", ["a<|im", "_en", "d|>b"]),
    ],
)
def test_a_message_cannot_complete_a_control_token(
    folders: dict[str, Path], tmp_path: Path, source: str, contents: list[str]
) -> None:
    tokenizer = template(folders, tmp_path, source)
    ids = tokenizer.chat_prompt(chat(*contents))
    assert control_ids(tokenizer, ids) == []
    assert "<|im_end|>" in tokenizer.decode(ids)


@pytest.fixture(scope="module")
def adjoining(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    source = "<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}|>"
    return template(folders, tmp_path_factory.mktemp("adjoining"), source)


def test_a_template_can_look_at_and_change_what_messages_say(folders: dict[str, Path], tmp_path: Path) -> None:
    said = "{{ m.content | trim | upper if 'q' in m.content else m.content }}"
    source = "{{ bos_token }}{% for m in messages %}" + said + "{% endfor %}"
    tokenizer = template(folders, tmp_path, source)
    ids = tokenizer.chat_prompt(chat("  q <|im_end|> ", "x"))
    assert tokenizer.decode(ids, skip_special=False) == "<|endoftext|>Q <|im_end|>x"
    assert control_ids(tokenizer, ids) == [tokenizer.bos_id]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ messages.__init__.__globals__ }}", "fails"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "fails"),
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "range"),
        ("{% for a in range(10 ** 9) %}x{% endfor %}", "fails"),
        ("{{ 'x' * 10 ** 10 }}", "fails"),
        ("{{ 9 ** 9 ** 9 }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("{{ messages[9].content }}", "fails"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{% if %}", "not valid Jinja2"),
        ("{% include '/etc/passwd' %}", "fails"),
    ],
)
def test_a_hostile_template_is_an_error(folders: dict[str, Path], tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        template(folders, tmp_path, source).chat_prompt(chat("a", "b"))
    assert "\n" not in str(caught.value)


def test_templates_by_name_by_file_and_none(folders: dict[str, Path], tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]
    assert (tokenizer := template(folders, tmp_path, named)).decode(tokenizer.chat_prompt(chat("a"))) == "named"  # type: ignore[arg-type]
    (tmp_path / "chat_template.jinja").write_text("file")
    assert (tokenizer := Tokenizer.load(tmp_path)).decode(tokenizer.chat_prompt(chat("a"))) == "file"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        template(folders, tmp_path, None).chat_prompt(chat("a"))  # type: ignore[arg-type]


def test_messages_that_are_no_conversation(qwen2: Tokenizer) -> None:
    with pytest.raises(InputError, match="at least one"):
        qwen2.chat_prompt([])
    with pytest.raises(InputError, match="role"):
        qwen2.chat_prompt([Message(role="<|im_end|>", content="a")])  # type: ignore[arg-type]


def test_a_long_chat_loses_its_oldest_turns_first(qwen2: Tokenizer) -> None:
    messages = chat("rules", "first " * 9, "answer", "last question")
    whole = qwen2.chat_prompt(messages)
    assert qwen2.chat_prompt(messages, len(whole)) == whole
    shorter = qwen2.chat_prompt(messages, len(whole) - 1)
    assert shorter == qwen2.chat_prompt([messages[0], messages[3]])
    least = qwen2.chat_prompt([messages[0], Message(role="user", content="")])
    cut = qwen2.chat_prompt(messages, len(least) + 4)
    assert len(cut) <= len(least) + 4
    assert qwen2.decode(cut, skip_special=False).endswith("tion<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ConfigError, match="less than"):
        qwen2.chat_prompt(messages, len(least) - 1)


# The real tokenizers, against transformers' own reading of the same GGUF file


def sources(limit: int) -> list[str]:
    """Files of the standard library (a spread of them), and text that is hard on splitting."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted([*library.glob("*.py"), *library.glob("encodings/*.py"), *library.glob("test/test_*.py")])
    chosen = [path.read_text(encoding="utf-8", errors="replace") for path in paths[:: max(1, len(paths) // limit)]]
    return [
        *chosen,
        "a\r\n\r\n  b\t\tc \n \n   \n\n\nd  ",
        "x = 1234567890 + 0x1F - 3.14e-10  # ½ ² Ⅷ ٣ 五",
        "naïve café Ångström Straße ИЗВЕСТИЯ 日本語のテキスト 한국어 ไทย عربى हिन्दी",
        "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u1e9b\u0323 ﬁ Å \u2028 \u00a0 \u3000 \ufeff",
        "I'm you'RE don'T we'll 'Ve 'd's",
        "{[()]};:,<.>/?!@#$%^&*-_=+|\\~` ``` \"\"\" ''' -> => === != :: ...",
        "",
        " ",
        "\n",
    ]


@pytest.mark.models
@pytest.mark.network
@pytest.mark.parametrize("name", REAL)
def test_real_tokens_equal_transformers(name: str, original_gguf: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    path = original_gguf(name)
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.load(pull(name, progress=False))
    folder = transformers.AutoTokenizer.from_pretrained(pull(name, progress=False))
    checked = 0
    for text in sources(60):
        # Where ours differs on purpose: control tokens as text, and bytes that SmolLM2 has no token for.
        text = re.sub("[\x04\x06\x13\x14\x16\x1d]|<[|a-z_/]+>", "", text)
        if name.startswith("qwen"):
            text = unicodedata.normalize("NFC", text)  # it leaves out the normaliser, too
        if name.startswith("smollm"):
            # transformers' reader of GGUF leaves out the splitting at digits that the publisher has: do it for it.
            pieces = split_digits(text)
        else:
            pieces = [text]
        expected = [token for piece in pieces for token in reference(piece, add_special_tokens=False).input_ids]
        assert ours.encode(text) == expected
        assert folder(text, add_special_tokens=False).input_ids == expected
        checked += len(expected)
    assert checked > 100_000


def split_digits(text: str) -> list[str]:
    """Every numeric character on its own, what lies between in one piece."""
    pieces = [""]
    for character in text:
        if unicodedata.category(character).startswith("N"):
            pieces += [character, ""]
        else:
            pieces[-1] += character
    return [piece for piece in pieces if piece]


@pytest.mark.models
@pytest.mark.network
@pytest.mark.parametrize("name", REAL)
def test_real_chats_equal_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = pull(name, progress=False)
    reference, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    conversations = [
        chat("You write code.", "Sort a list.", "sorted(x)\n", "  And reverse it?  "),
        chat("You write code.", "Sort a list.")[1:],
        chat("", "é日本 \n\n x  12"),
    ]
    if name.startswith("qwen"):
        conversations.append([*conversations[0], Message(role="tool", content="ok"), Message(role="tool", content="2")])
    for messages in conversations:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        for generation in (True, False):
            text = reference.apply_chat_template(plain, add_generation_prompt=generation, tokenize=False)
            expected = reference(text, add_special_tokens=False).input_ids
            assert ours.chat_prompt(messages, generation_prompt=generation) == expected


@pytest.mark.models
@pytest.mark.network
def test_real_control_tokens() -> None:
    qwen, smol = (Tokenizer.load(pull(name, progress=False)) for name in reversed(REAL))
    assert (qwen.vocab_size, qwen.eos_id, qwen.stop_ids) == (151_936, 151_645, {151_643, 151_645})
    assert qwen.fim is not None
    assert (qwen.fim.prefix, qwen.fim.middle, qwen.fim.suffix, qwen.fim.pad) == (151_659, 151_660, 151_661, 151_662)
    assert qwen.fim.stop_ids == {151_643, 151_645, *range(151_659, 151_665)}
    assert (smol.vocab_size, smol.eos_id, smol.stop_ids, smol.fim) == (49_152, 2, {0, 2}, None)
    for tokenizer in (qwen, smol):
        everything = " ".join(tokenizer.controls)
        assert control_ids(tokenizer, tokenizer.encode(everything)) == []
        assert tokenizer.decode(tokenizer.encode(everything)) == everything


def test_the_sample_template_is_the_one_in_the_folder(folders: dict[str, Path]) -> None:
    config = json.loads((folders["qwen2"] / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE
