"""Evaluation of a model behind a server: the artifact, going on, what cannot be had, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.core.contracts import Answer, Sampling, Status, Task, Verdict
from codemill.core.errors import InputError, UnavailableError
from codemill.core.records import read_records, write_records
from codemill.engine.openai import OpenAIGenerator, Price
from codemill.engine.openai_http import Patience
from codemill.evaluation.checkpoint import SuiteRun
from codemill.evaluation.endpoint import evaluate_endpoint
from codemill.evaluation.evaluate import GIVE_UP
from openai_server import Asked, OpenAIServer, Say, completion, counted, error, models

QUICK = Patience(connect=2.0, first_byte=5.0, whole=10.0, retries=1, pause=0.01, longest_pause=0.02)
GOOD, BAD = "    return x + x\n", "    return 5\n"


def program(i: int, suffix: str | None = None) -> Task:
    test = "def check(f):\n    assert f(2) == 4\n"
    return Task(
        id=f"p/{i}",
        prefix=f"def f(x):\n    # {i}\n",
        suffix=suffix,
        gold=GOOD,
        verifier={"kind": "program", "test": test, "call": "check(f)", "seconds": 5.0},
        metadata={"language": "python"},
    )


def number(asked: Asked) -> int:
    return int(asked.body["prompt"].split("# ")[1].split("\n")[0])


def half_right(asked: Asked) -> Say:
    if asked.path == "/v1/models":
        return models("m", owner="fake")
    return Say(completion(BAD if number(asked) % 2 else GOOD, prompt_tokens=10, tokens=4))


def run(
    server: OpenAIServer, out: Path, tasks: int | list[Task] = 4, samples: int = 1, **changes: Any
) -> dict[str, Any]:
    given = [program(i) for i in range(tasks)] if isinstance(tasks, int) else tasks
    sampling = Sampling(max_tokens=9, temperature=0.8 if samples > 1 else 0.0)
    suite = SuiteRun(name="tiny", tasks=tuple(given), folder=Path(), sampling=sampling, samples=samples)
    generator = OpenAIGenerator(server.url, changes.pop("model", "m"), **{"patience": QUICK, **changes})
    return evaluate_endpoint(generator, [suite], out, config={})


def asked_for(server: OpenAIServer) -> list[int]:
    return sorted(number(asked) for asked in server.asked if asked.path == "/v1/completions")


def test_the_artifact_names_the_model_as_not_checked(tmp_path: Path) -> None:
    with OpenAIServer(half_right) as server:
        facts = run(server, tmp_path, samples=2, price=Price(prompt=1.0, completion=10.0))
    summary = facts["suites"]["tiny"]
    assert summary["scores"]["pass@1"]["value"] == 0.5
    assert (summary["prompt_tokens"], summary["generated_tokens"]) == (80, 32)
    assert summary["cost"] == pytest.approx((80 * 1 + 32 * 10) / 1e6)
    assert len({asked.body["seed"] for asked in server.asked if asked.body}) == 8  # samples of a task are drawn apart
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["inputs"]["model"] == f"endpoint {server.url}/v1 model m infill unasked (not hash-checked)"
    known = {key: manifest["facts"][key] for key in ("model", "endpoint", "hash_checked", "server", "answered_by")}
    assert known == {
        "model": "m", "endpoint": f"{server.url}/v1", "hash_checked": False, "server": {"owned_by": "fake"},
        "answered_by": ["m"],
    }  # fmt: skip
    assert {"tiny/answers.jsonl", "tiny/verdicts.jsonl", "tiny/summary.json"} <= set(manifest["files"])


def test_a_run_that_failed_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    def broken(asked: Asked) -> Say:
        return error(500, "out of memory") if asked.path != "/v1/models" and number(asked) >= 2 else half_right(asked)

    with OpenAIServer(broken) as server:
        with pytest.raises(UnavailableError, match=r"2 of 4 answers could not be had.*out of memory.*same command"):
            run(server, tmp_path)
        assert not (tmp_path / "manifest.json").exists()
        assert len(list(read_records(tmp_path / "tiny" / "answers.jsonl", Answer))) == 2
        server.answer = half_right
        server.asked.clear()
        assert run(server, tmp_path)["suites"]["tiny"]["answers"] == 4
        assert asked_for(server) == [2, 3]
        run(server, tmp_path)
        assert asked_for(server) == [2, 3]
        with pytest.raises(InputError, match="different model"):
            (tmp_path / "tiny" / "summary.json").unlink()
            server.answer = lambda asked: models("other") if asked.path == "/v1/models" else half_right(asked)
            run(server, tmp_path, model="other")


def test_a_failure_that_passes_is_asked_for_once_more_at_the_end(tmp_path: Path) -> None:
    failed: list[int] = []

    def shaky(asked: Asked) -> Say:
        if asked.path == "/v1/completions" and number(asked) == 1 and len(failed) < 1 + QUICK.retries:
            failed.append(1)
            return error(503, "busy")
        return half_right(asked)

    with OpenAIServer(shaky) as server:
        assert run(server, tmp_path)["suites"]["tiny"]["statuses"] == {"failed": 2, "passed": 2}


def test_one_in_a_hundred_may_be_missing_and_is_not_scored(tmp_path: Path) -> None:
    def refusing(asked: Asked) -> Say:
        return error(400, "flagged") if asked.path != "/v1/models" and number(asked) == 7 else half_right(asked)

    with OpenAIServer(refusing) as server:
        summary = run(server, tmp_path, 100)["suites"]["tiny"]
    assert summary["statuses"] == {"failed": 49, "harness_error": 1, "passed": 50}
    assert summary["valid"]
    assert summary["bounds"]["all_unscorable_left_out"] == pytest.approx(50 / 99)
    verdicts = list(read_records(tmp_path / "tiny" / "verdicts.jsonl", Verdict))
    (missing,) = [v for v in verdicts if v.status is Status.HARNESS_ERROR]
    assert missing.task_id == "p/7"
    assert "flagged" in missing.reason


def test_a_server_that_is_gone_is_not_asked_for_everything(tmp_path: Path) -> None:
    def gone(asked: Asked) -> Say:
        return half_right(asked) if asked.path == "/v1/models" or number(asked) < 3 else error(500, "gone")

    with OpenAIServer(gone) as server:
        with pytest.raises(UnavailableError, match=f"{GIVE_UP} answers in a row"):
            run(server, tmp_path, 200, concurrency=4)
        assert len(server.asked) < 4 * GIVE_UP
    assert len(list(read_records(tmp_path / "tiny" / "answers.jsonl", Answer))) == 3


def test_tasks_with_a_suffix_are_asked_as_the_server_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def reads(asked: Asked) -> Say:
        if asked.path == "/v1/models":
            return error(404, "no")
        return Say(completion(GOOD, prompt_tokens=counted(asked.body)))

    def refuses(asked: Asked) -> Say:
        return (
            error(400, "suffix is not currently supported") if asked.body and "suffix" in asked.body else reads(asked)
        )

    tasks = [program(0, suffix="\n")]
    with OpenAIServer(reads) as server:
        facts = run(server, tmp_path / "a", tasks)
        assert server.asked[-1].body["suffix"] == "\n"
    assert facts["infill"]["way"] == "suffix"
    assert facts["suites"]["tiny"]["styles"] == ["infill"]
    with OpenAIServer(refuses) as server:
        facts = run(server, tmp_path / "b", tasks)
        assert "suffix" not in server.asked[-1].body
    assert facts["infill"]["way"] == "none"
    assert facts["suites"]["tiny"]["styles"] == ["prefix"]
    assert "does not infill" in capsys.readouterr().err


# The command


NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed")
sys.meta_path.insert(0, Refuse())
from codemill.cli import main
main()
"""


def evaluate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_TORCH, "evaluate", *arguments]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def test_the_command_works_without_torch_and_keeps_the_key(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    long = "x = 1\n" * 1000  # more than the default budget of a prompt for a model of our own
    write_records(tasks, [replace(task, prefix=long + task.prefix) for task in map(program, range(2))])
    out = tmp_path / "out"
    with OpenAIServer(half_right) as server:
        where = ("--endpoint", server.url, "--model", "m", "--api-key-env", "TEST_KEY", "--price", "1,2")
        flags = ("--split", "all", "--concurrency", "2", "--json", "-o", str(out))
        done = evaluate(str(tasks), *where, *flags, TEST_KEY="sk-secret-9")
        assert done.returncode == 0, done.stderr
        assert server.asked[-1].headers["authorization"] == "Bearer sk-secret-9"
        again = evaluate(str(tasks), *where, *flags, TEST_KEY="sk-secret-9")
        assert again.returncode == 0, again.stderr
        assert asked_for(server) == [0, 1]
    facts = json.loads(done.stdout)
    assert facts["suites"]["tasks"]["scores"]["pass@1"]["value"] == 0.5
    assert facts["hash_checked"] is False
    assert server.bodies("/v1/completions")[0]["prompt"].startswith(long)
    everything = done.stdout + done.stderr + "".join(p.read_text() for p in out.rglob("*") if p.is_file())
    assert "sk-secret-9" not in everything


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("humaneval", "--endpoint", "http://127.0.0.1:9"), "name a model"),
        (("--endpoint", "http://u:p@h", "--model", "m", "humaneval"), "credentials"),
        (("humaneval", "--endpoint", "http://h", "--model", "m", "--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("humaneval", "--endpoint", "http://h", "--model", "m", "--infill", "sufix"), "did you mean 'suffix'"),
        (("humaneval", "--endpoint", "http://h", "--model", "m", "--price", "1"), "two numbers"),
        (("humaneval", "--endpoint", "http://h", "--model", "m", "--dtype", "bf16"), "weights"),
        (("humaneval",), "name a model"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = evaluate(*flags, "-o", str(tmp_path / "never"))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "never").exists()
