"""The decoder against `transformers` on tiny random weights: logits, gradients, packing; and checkpoints both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from codemill.core.errors import InputError, IntegrityError
from codemill.models.checkpoint import load_decoder, save_decoder
from codemill.models.config import parse_config, read_config
from codemill.models.decoder import PackedAttention, packed_positions
from codemill.models.lora import add_lora, merge_lora

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}


def tiny(folder: Path, name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if name == "llama-tied":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **heads, tie_word_embeddings=True, rope_theta=5000.0))
    elif name == "llama-wide-head":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **heads, head_dim=12, attention_bias=True, mlp_bias=True))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **heads, tie_word_embeddings=False, rms_norm_eps=1e-6))
    else:
        model = Qwen2ForCausalLM(
            Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True)
        )
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms away from 0 and 1, so that a forgotten one shows
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model.float().eval()


FAMILIES = ["llama-tied", "llama-wide-head", "qwen2", "qwen2-tied"]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    reference = tiny(tmp_path, name)
    ours = load_decoder(tmp_path, dtype="fp32", device="cpu")
    ids = torch.randint(0, 97, (2, 19))
    theirs = reference(ids).logits
    got = ours.packed_logits(ids.flatten(), [19, 19]).view_as(theirs)
    torch.testing.assert_close(got, theirs, atol=1e-5, rtol=1e-5)
    assert ours.config.parameters == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_transformers(tmp_path: Path, name: str) -> None:
    reference = tiny(tmp_path, name)
    ours = load_decoder(tmp_path, dtype="fp32", device="cpu")
    ids = torch.randint(0, 97, (1, 23))
    weight = torch.randn(23, 97)
    (reference(ids).logits[0] * weight).sum().backward()
    (ours.packed_logits(ids[0], [23]) * weight).sum().backward()
    theirs = dict(reference.named_parameters())
    for i, block in enumerate(ours.blocks):
        layer = f"model.layers.{i}."
        parts = [theirs[f"{layer}self_attn.{p}_proj.weight"].grad for p in "qkv"]
        torch.testing.assert_close(block.qkv.weight.grad, torch.cat(parts), atol=2e-4, rtol=2e-4)
        parts = [theirs[f"{layer}mlp.{p}_proj.weight"].grad for p in ("gate", "up")]
        torch.testing.assert_close(block.gate_up.weight.grad, torch.cat(parts), atol=2e-4, rtol=2e-4)
        norm = theirs[f"{layer}input_layernorm.weight"].grad
        torch.testing.assert_close(block.attention_norm.grad, norm, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(ours.embed.grad, theirs["model.embed_tokens.weight"].grad, atol=2e-4, rtol=2e-4)


def test_packed_documents_do_not_see_each_other(tmp_path: Path) -> None:
    tiny(tmp_path, "qwen2")
    decoder = load_decoder(tmp_path, dtype="fp32", device="cpu")
    lengths = [5, 1, 9, 9, 3]
    ids = torch.randint(0, 97, (sum(lengths),))
    together = decoder.packed_logits(ids, lengths)
    alone = torch.cat([decoder.packed_logits(part, [len(part)]) for part in ids.split(lengths)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    merged = decoder.packed_logits(ids, [sum(lengths)])
    assert (merged[5:] - together[5:]).abs().max() > 1e-3  # the test can tell the difference


def test_packed_positions() -> None:
    assert packed_positions([2, 3, 1]).tolist() == [0, 1, 0, 1, 2, 0]
    assert PackedAttention([4, 4, 2, 4]).equal == [(0, 2, 4), (8, 1, 2), (10, 1, 4)]


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoint_round_trip_through_transformers(tmp_path: Path, name: str) -> None:
    tiny(tmp_path / "a", name)
    ours = load_decoder(tmp_path / "a", dtype="bf16", device="cpu")
    save_decoder(ours, tmp_path / "b", like=tmp_path / "a")
    before, after = load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    assert set(before) - {"lm_head.weight"} == set(after) - {"lm_head.weight"}
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key].bfloat16()), key
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    ids = torch.randint(0, 97, (1, 11))
    got = load_decoder(tmp_path / "b", dtype="fp32", device="cpu").packed_logits(ids[0], [11])
    torch.testing.assert_close(got, again(ids).logits[0], atol=1e-5, rtol=1e-5)


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    tiny(tmp_path, "llama-tied")
    weights = tmp_path / "model.safetensors"
    good = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    for change, message in (
        ({name: None}, f"{name}' is missing"),
        ({name: good[name][:-1].clone()}, "expected \\[56, 32\\]"),
        ({name: torch.full_like(good[name], float("nan"))}, "not finite"),
    ):
        save_file({k: v for k, v in {**good, **change}.items() if v is not None}, weights)
        with pytest.raises(IntegrityError, match=message):
            load_decoder(tmp_path, dtype="fp32", device="cpu")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(IntegrityError, match="safetensors"):
        load_decoder(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="missing"):
        load_decoder(tmp_path)
    with pytest.raises(InputError, match=r"config\.json"):
        load_decoder(tmp_path / "nowhere")


def test_unsupported_configs_are_refused(tmp_path: Path) -> None:
    tiny(tmp_path, "qwen2")
    raw = json.loads((tmp_path / "config.json").read_text())
    assert read_config(tmp_path).qkv_bias
    for change, message in (
        ({"architectures": ["LamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"use_sliding_window": True}, "sliding"),
        ({"num_attention_heads": 3}, "impossible"),
        ({"hidden_size": "wide"}, "config"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config({**raw, **change}, "config.json")


def test_lora_starts_as_identity_and_merges(tmp_path: Path) -> None:
    tiny(tmp_path, "qwen2")
    decoder = load_decoder(tmp_path, dtype="fp32", device="cpu")
    ids, lengths = torch.randint(0, 97, (20,)), [12, 8]
    plain = decoder.packed_logits(ids, lengths)
    trained = add_lora(decoder, rank=4, alpha=8, seed=1)
    assert torch.equal(decoder.packed_logits(ids, lengths), plain)
    assert {p.requires_grad for p in trained} == {True}
    assert not decoder.embed.requires_grad
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted = decoder.packed_logits(ids, lengths)
    assert (adapted - plain).abs().max() > 1e-2
    merged = merge_lora(decoder).packed_logits(ids, lengths)
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert not any(".base." in name for name, _ in decoder.named_parameters())
