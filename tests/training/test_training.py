"""The training mathematics and the loop: vectors, invariances, exact resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from codemill.core.errors import ConfigError, InputError, IntegrityError
from codemill.models.checkpoint import load_decoder
from codemill.models.decoder import PackedAttention, packed_positions
from codemill.training.config import FimConfig, TrainConfig
from codemill.training.data import BatchStream, pack
from codemill.training.loss import IGNORE, linear_cross_entropy, next_token_labels
from codemill.training.optimizer import MasterAdamW
from codemill.training.trainer import CHECKPOINT, train
from tiny import document, tiny_checkpoint

SOURCE = "def add(first, second):\n    total = first + second\n    return total\n\n\nprint(add(1, 2))\n"
DOCUMENTS = [document(SOURCE.replace("add", f"add{i}"), f"m{i}.py") for i in range(12)]


def config(**changes: object) -> TrainConfig:
    base = {
        "steps": 6, "max_tokens": 64, "micro_tokens": 128, "batch_tokens": 256, "lr": 1e-2, "checkpoint_every": 100,
        "dtype": "fp32", "device": "cpu", "lora_rank": 4,
    }  # fmt: skip
    return TrainConfig.model_validate({**base, **changes})


def test_linear_cross_entropy_equals_the_plain_form() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(50, 16, dtype=torch.float64), torch.randn(37, 16, dtype=torch.float64)
    labels = torch.randint(0, 37, (50,))
    labels[::7] = IGNORE
    for tensor in (hidden, head):
        tensor.requires_grad_()
    ours = linear_cross_entropy(hidden, head, labels, 0.25)
    grads = torch.autograd.grad(ours * 3, (hidden, head))
    plain = torch.nn.functional.cross_entropy(hidden @ head.t(), labels, ignore_index=IGNORE, reduction="sum") * 0.25
    expected = torch.autograd.grad(plain * 3, (hidden, head))
    assert math.isclose(float(ours.detach()), float(plain.detach()), rel_tol=1e-6)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_loss_does_not_depend_on_micro_batching(tmp_path: Path) -> None:
    """Vector V8: packed together, one by one, or in another order, loss and gradient are the same."""
    folder = tiny_checkpoint(tmp_path)
    rows = [[5, 6, 7, 8, 9], [1, 2, 3], [40, 41, 42, 43, 44, 45, 46, 47], [9, 9]]

    def run(groups: list[list[list[int]]]) -> tuple[float, torch.Tensor]:
        decoder = load_decoder(folder, dtype="fp32", device="cpu")
        batches = [pack(group) for group in groups]
        count = sum(batch.trained for batch in batches)
        total = 0.0
        for b in batches:
            hidden = decoder(b.ids_T, packed_positions(b.lengths), PackedAttention(b.lengths))
            loss = linear_cross_entropy(hidden, decoder.head.weight, b.labels_T, 1 / count)
            loss.backward()
            total += float(loss.detach())
        return total, decoder.blocks[0].qkv.weight.grad

    reference = run([rows])
    for groups in ([[r] for r in rows], [rows[2:], rows[:2]], [[rows[3], rows[0]], [rows[1]], [rows[2]]]):
        loss, gradient = run(groups)
        assert math.isclose(loss, reference[0], rel_tol=1e-5)
        torch.testing.assert_close(gradient, reference[1], rtol=1e-4, atol=1e-6)
    naive = sum(run([[r]])[0] for r in rows) / len(rows)  # the mean of means, which would be wrong
    assert not math.isclose(naive, reference[0], rel_tol=1e-3)


def test_loss_equals_transformers(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    ids = torch.randint(0, 256, (30,))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids[None], labels=ids[None]).loss
    decoder = load_decoder(folder, dtype="fp32", device="cpu")
    hidden = decoder(ids, packed_positions([30]), PackedAttention([30]))
    ours = linear_cross_entropy(hidden, decoder.head.weight, next_token_labels(ids, [30]), 1 / 29)
    assert math.isclose(float(ours.detach()), float(theirs.detach()), rel_tol=1e-5)


def test_labels_do_not_cross_documents() -> None:
    batch = pack([[1, 2, 3], [4, 5]])
    assert batch.labels_T.tolist() == [2, 3, IGNORE, 5, IGNORE]
    assert batch.trained == 3


def test_learning_rates() -> None:
    c = config(steps=10, warmup=0.2, lr=1.0, final_lr=0.1, schedule="cosine")
    rates = [c.learning_rate(step, c.steps) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert math.isclose(rates[-1], 0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert config(steps=10, warmup=0, lr=1.0, schedule="constant").learning_rate(9, 10) == 1.0
    assert math.isclose(config(steps=11, warmup=0, lr=1.0, final_lr=0, schedule="linear").learning_rate(5, 11), 0.5)


def test_master_weights_keep_small_updates() -> None:
    """A bf16 weight of 1 cannot move by 1e-4 at once; its fp32 master can, and after enough steps both have moved."""
    parameter = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("w", parameter)], eps=1e-12)
    for _ in range(100):
        parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.gather()
        optimizer.step(1e-4, clip=0)
    assert float(parameter[0, 0]) == pytest.approx(0.99, abs=0.004)


def test_a_step_that_is_not_finite_is_skipped() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = MasterAdamW([("w", parameter)])
    parameter.grad = torch.full((2, 2), float("nan"))
    optimizer.gather()
    assert optimizer.step(0.1, 1.0)[1] is False
    assert torch.equal(parameter, torch.ones(2, 2))
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.gather()
    norm, made = optimizer.step(0.1, 1.0)
    assert made
    assert norm == pytest.approx(6.0)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_learns_and_writes_a_checkpoint(tmp_path: Path, method: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    facts = train(folder, DOCUMENTS, config(method=method, steps=25), tmp_path / "out")
    assert facts["last_loss"] < facts["first_loss"] - 0.5
    assert not (tmp_path / "out" / CHECKPOINT).exists()
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) - {"lm_head.weight"} == set(after) - {"lm_head.weight"}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name].bfloat16(), after[name])
    moved = not torch.equal(before["model.embed_tokens.weight"].bfloat16(), after["model.embed_tokens.weight"])
    assert moved == (method == "full")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"]["model"]


def test_a_small_text_is_not_read_again_and_again(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    c = config(steps=100, epochs=2)
    train(folder, DOCUMENTS, c, tmp_path / "stopped", until=1)
    facts = train(folder, DOCUMENTS, c, tmp_path / "stopped")
    assert facts["epochs"] == 1  # the second pass
    assert 2 <= facts["steps"] < 100
    rates = [json.loads(line)["lr"] for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert rates[-1] == pytest.approx(0.1 * max(rates))  # the schedule ends with the run
    assert train(folder, DOCUMENTS, config(steps=3, epochs=50), tmp_path / "bounded")["steps"] == 3


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_is_bit_identical(tmp_path: Path, method: str, dtype: str) -> None:
    """Vector V12: k steps, save, load, k steps equal 2k steps, in weights and in the record."""
    folder = tiny_checkpoint(tmp_path / "model")
    c = config(method=method, dtype=dtype, steps=8)
    train(folder, DOCUMENTS, c, tmp_path / "whole")
    train(folder, DOCUMENTS, c, tmp_path / "parts", until=3)
    assert (tmp_path / "parts" / CHECKPOINT).is_dir()
    # What a kill after the checkpoint leaves: rows of steps that will be done again, and half a line.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step":3,"loss":9.0,"skipped":false,"tokens":1,"seconds":1,"epoch":0}\n{"step":4,"lo')
    train(folder, DOCUMENTS, c, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    rows = [
        [
            (row["step"], row["loss"])
            for row in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        ]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    train(folder, DOCUMENTS, config(), tmp_path / "out", until=2)
    with pytest.raises(InputError, match="another model, data or configuration"):
        train(folder, DOCUMENTS, config(lr=1e-3), tmp_path / "out")
    (tmp_path / "out" / CHECKPOINT / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(IntegrityError, match="damaged"):
        train(folder, DOCUMENTS, config(), tmp_path / "out")


def test_the_stream_goes_on_from_any_position(tmp_path: Path) -> None:
    from codemill.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tiny_checkpoint(tmp_path))
    first = BatchStream(DOCUMENTS, tokenizer, config())
    batches, positions = [], []
    iterator = iter(first)
    for _ in range(20):  # more than one epoch
        positions.append(first.position)
        batches.append(next(iterator).ids_T)
    assert positions[-1].epoch > 0
    for k in (1, 7, 19):
        second = BatchStream(DOCUMENTS, tokenizer, config())
        second.position = positions[k]
        assert torch.equal(next(iter(second)).ids_T, batches[k])


def test_what_cannot_be_trained_is_said_before(tmp_path: Path) -> None:
    plain = tiny_checkpoint(tmp_path / "plain", infills=False)
    with pytest.raises(ConfigError, match="fill-in-the-middle"):
        train(plain, DOCUMENTS, config(), tmp_path / "out")
    assert train(plain, DOCUMENTS, config(fim=FimConfig(rate=0), steps=1), tmp_path / "out2")["steps"] == 1
    with pytest.raises(InputError, match="nothing to train on"):
        train(tiny_checkpoint(tmp_path / "m"), DOCUMENTS, config(include=("*.rs",)), tmp_path / "out3")
