"""GGUF conversion: exact weights, a tokenizer that works, and nothing but an error for a file that is not right."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_samples import HIDDEN, KV_HEADS, gguf_name, weights, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from codemill.core.errors import IntegrityError
from codemill.models import gguf as conversion
from codemill.models.gguf import convert_gguf
from codemill.models.gguf_file import read_gguf
from codemill.models.pull import pull
from codemill.models.registry import find_model

transformers = pytest.importorskip("transformers")


def convert(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    convert_gguf(source, folder, progress=False)
    return load_file(folder / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name].float(), torch.from_numpy(weight)), name


@pytest.mark.parametrize(("arch", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)])
def test_weights_come_back_exactly_and_transformers_loads_the_folder(tmp_path: Path, arch: str, tied: bool) -> None:
    expected = write_gguf(tmp_path / "m.gguf", arch, tied=tied)
    assert_same(convert(tmp_path / "m.gguf", tmp_path / "hf"), expected)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.tie_word_embeddings is tied
    assert model.config.rms_norm_eps == 1e-5
    assert model.config.num_key_value_heads == KV_HEADS
    assert model(torch.tensor([[1, 2, 3]])).logits.shape[-1] == len(expected["model.embed_tokens.weight"])


def test_the_permutation_is_seen_by_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above must be able to fail: with rows left as stored, Q and K differ, and so does the model."""
    expected = write_gguf(tmp_path / "m.gguf")
    right = convert(tmp_path / "m.gguf", tmp_path / "right")
    monkeypatch.setattr(conversion, "unpermute", lambda values, heads: values)
    wrong = convert(tmp_path / "m.gguf", tmp_path / "wrong")
    different = {name.split(".")[-2] for name in expected if not torch.equal(right[name], wrong[name])}
    assert different == {"q_proj", "k_proj"}
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)(torch.arange(9)[None]).logits
        for name in ("right", "wrong")
    ]
    assert not torch.allclose(*logits)


def test_small_blocks_of_rows_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "whole")
    monkeypatch.setattr(conversion, "ELEMENTS_AT_ONCE", 3 * HIDDEN)
    convert(tmp_path / "m.gguf", tmp_path / "rows")
    whole, rows = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "rows"))
    assert whole == rows


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16"])
def test_quantised_tensors_are_dequantised_block_by_block(tmp_path: Path, kind: str) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    name = "model.layers.0.mlp.up_proj.weight"
    expected = write_gguf(tmp_path / "m.gguf", types={name: quantised})
    found = convert(tmp_path / "m.gguf", tmp_path / "hf")[name]
    values = gguf.quants.dequantize(gguf.quants.quantize(expected[name], quantised), quantised)
    assert torch.equal(found, torch.from_numpy(np.array(values, np.float32)).to(torch.bfloat16))
    assert (found.float() - torch.from_numpy(expected[name])).abs().max() < 0.05


def test_bfloat16_is_rounded_to_nearest_with_ties_to_even(tmp_path: Path) -> None:
    tensors = weights("llama", len(write_gguf(tmp_path / "a.gguf")["model.embed_tokens.weight"]))
    tie = 2.0**-8  # half of the step between neighbours at 1.0
    tensors["model.norm.weight"][:4] = [1 + tie, 1 + 3 * tie, 1 + tie * 1.01, -1 - tie]
    write_gguf(tmp_path / "m.gguf", tensors=tensors)
    found = convert(tmp_path / "m.gguf", tmp_path / "hf")["model.norm.weight"]
    assert found[:4].tolist() == [1.0, 1 + 4 * tie, 1 + 2 * tie, -1.0]


def test_what_generation_needs_is_written(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen2", tied=False)
    convert(tmp_path / "m.gguf", tmp_path / "hf")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>")]
    assert generation.eos_token_id == ends
    assert tokenizer.eos_token == "<|im_end|>"
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (ends[1], ends[0])
    assert config["torch_dtype"] == "bfloat16"


# Files that are not right


def refuse(path: Path, folder: Path, words: str) -> None:
    folder.mkdir()
    with pytest.raises(IntegrityError, match=words) as caught:
        convert_gguf(path, folder, progress=False)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 2**31 - 1}, "layers are announced"),
        ({"llama.block_count": 1}, "not part of LlamaForCausalLM"),
        ({"llama.embedding_length": 64}, "shape"),
        ({"llama.attention.head_count": 5}, "does not divide"),
        ({"llama.attention.head_count": 0}, "does not divide"),
        ({"llama.attention.head_count_kv": 3}, "evenly"),
        ({"llama.attention.head_count": None}, "head_count is missing"),
        ({"llama.attention.head_count": "four"}, "must be an integer"),
        ({"llama.rope.freq_base": float("nan")}, "finite"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count"),
        ({"tokenizer.ggml.pre": "gpt-4o"}, "pre-tokenizer 'gpt-4o' is unknown"),
        ({"tokenizer.ggml.model": "llama"}, "byte-level BPE"),
        ({"tokenizer.ggml.merges": ["d e", "q zz"]}, "merge 'q zz'"),
        ({"tokenizer.ggml.merges": ["d"]}, "merge 'd'"),
        ({"tokenizer.ggml.eos_token_id": 100_000}, "outside the vocabulary"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token types"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "shape"),
        ({"general.alignment": 7}, "power of two"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path: Path, metadata: dict[str, object], words: str) -> None:
    try:
        write_gguf(tmp_path / "m.gguf", metadata=metadata)
    except ValueError:
        pytest.skip("this version of the gguf package does not write such a file")
    refuse(tmp_path / "m.gguf", tmp_path / "hf", words)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    good = write_gguf(tmp_path / "good.gguf")
    name = "model.layers.1.self_attn.k_proj.weight"
    cases = {
        "missing": {key: value for key, value in good.items() if key != name},
        "shape": good | {name: good[name][:8]},
        "not part of": good | {"rope_freqs.weight": np.ones(4, np.float32)},
        "not finite": good | {name: good[name] + np.float32("nan")},
        "not finite in": good | {name: good[name] + np.float32(3.4e38)},  # overflows bfloat16
    }
    for number, (words, tensors) in enumerate(cases.items()):
        write_gguf(tmp_path / f"{number}.gguf", tensors=tensors)
        refuse(tmp_path / f"{number}.gguf", tmp_path / str(number), words)
    write_gguf(tmp_path / "arch.gguf", "mamba", tensors=weights("llama", 1))
    refuse(tmp_path / "arch.gguf", tmp_path / "arch", "architecture 'mamba'")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    return path.read_bytes()


def header(*, tensors: int = 0, keys: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable"),
        (b"PK\x03\x04", "not a GGUF file"),
        (header(version=1), "version 1"),
        (header(version=3 << 24), "big-endian"),
        (header(tensors=2**63), "more than the file can hold"),
        (header(keys=2**63), "more than the file can hold"),
        (header(keys=1, rest=struct.pack("<Q", 2**62) + bytes(20)), "name of"),
        (header(keys=1, rest=text(b"a") + struct.pack("<I", 77) + bytes(8)), "unknown type 77"),
        (header(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 0, 2**60) + bytes(20)), "numbers are announced"),
        (header(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(20)), "strings are announced"),
        (header(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 2) + bytes(20)), "unsupported type 9"),
        (header(keys=1, rest=text(b"a") + struct.pack("<IQ", 8, 2**40) + bytes(20)), "cut off"),
        (header(keys=1, rest=text(b"\xff") + struct.pack("<IQ", 8, 0) + bytes(20)), "not UTF-8"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<I", 9) + bytes(90)), "9 dimensions"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0)), "shape"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0)), "inside the file"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 32, 0, 2**63)), "inside the file"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 32, 99, 0)), "unknown type 99"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 31, 2, 0)), "blocks of 32"),
    ],
)
def test_a_hostile_header_is_refused_at_once(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=words):
        read_gguf(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(whole_file: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole_file[: data.draw(st.integers(0, len(whole_file) - 33))])
    with pytest.raises(IntegrityError):
        read_gguf(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_escapes_as_another_error(
    whole_file: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    start = len(whole_file) - sum(t.nbytes for t in weights("llama", 280).values())
    content = bytearray(whole_file)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, max(start, 2000)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        file = read_gguf(path)
        conversion.tensor_plans(file, config := conversion.model_config(file))
        conversion.tokenizer_files(file, config)
    except IntegrityError:
        pass


# The real models

GOLDEN = {  # SHA-256 of model.safetensors, after test_real_weights_equal_transformers had passed
    "smollm2-135m": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "qwen2.5-coder-0.5b": "df8f6054b92991e0e1c748f8e5c6dcd289f0798d8a5200745ec8c0ffc752a8df",
}


@pytest.mark.models
@pytest.mark.network
@pytest.mark.parametrize("name", list(GOLDEN))
def test_real_conversion_is_the_one_that_was_compared(name: str) -> None:
    folder = pull(name, progress=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["sha256"] == GOLDEN[name]
    assert manifest["facts"]["parameters"] == find_model(name).parameters
    assert manifest["facts"]["architecture"] == find_model(name).architecture
    assert manifest["facts"]["license"] == "Apache-2.0"


@pytest.mark.models
@pytest.mark.network
@pytest.mark.parametrize("name", list(GOLDEN))
def test_real_weights_equal_transformers(name: str, original_gguf: Callable[[str], Path]) -> None:
    """Tensor by tensor against transformers' own reading of the same GGUF file."""
    found = load_file(pull(name, progress=False) / "model.safetensors")
    path = original_gguf(name)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    if "lm_head.weight" not in found:
        assert torch.equal(reference.pop("lm_head.weight"), reference["model.embed_tokens.weight"])
    assert set(found) == set(reference)
    for key, weight in reference.items():
        assert torch.equal(found[key], weight.to(torch.bfloat16)), key


def test_names_of_the_samples_follow_the_format() -> None:
    """The samples' own mapping of names against that of the gguf package, so that both sides cannot be wrong alike."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name in weights("llama", 1, tied=False):
        stem, kind = name.rsplit(".", 1)
        assert f"{names.get_name(stem)}.{kind}" == gguf_name(name)
