"""`codemill serve` as a process: it starts, answers, drains on SIGTERM, and says what is wrong before it loads anything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from serving_support import eventually

RUN = "from codemill.cli import main; main()"


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "serve", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_serve_and_sigterm(folder: Path) -> None:
    process = command(
        str(folder), "--port", "0", "--dtype", "fp32", "--name", "mine", "--api-key-env", "KEY", KEY="sesame"
    )
    try:
        assert process.stderr is not None
        found = None
        for line in process.stderr:
            if found := re.search(r"serving mine on (http://\S+)", line):
                break
        assert found
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
        reader.start()
        with httpx.Client(base_url=found.group(1), timeout=60, headers={"authorization": "Bearer sesame"}) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
            answers: list[httpx.Response] = []
            ask = {"model": "mine", "prompt": "SECRET", "max_tokens": 300, "logit_bias": {"256": -100, "258": -100}}
            thread = threading.Thread(target=lambda: answers.append(client.post("/v1/completions", json=ask)))
            thread.start()

            def is_running() -> bool:
                return (
                    "codemill_running_sequences 1"
                    in httpx.get(f"{found.group(1)}/metrics", headers=client.headers).text
                )

            eventually(is_running)
            process.send_signal(signal.SIGTERM)
            thread.join(60)
            assert answers[0].status_code == 200
            assert answers[0].json()["usage"]["completion_tokens"] == 300
        assert process.wait(30) == 0
        reader.join(10)
        text = "".join(lines)
        assert "POST /v1/completions 200" in text
        assert "SECRET" not in text
        assert "sesame" not in text
        assert "Traceback" not in text
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing-there", "--host", "0.0.0.0"], "--api-key-env"),
        (["nothing-there", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["nothing-there", "--port", "99999"], "port"),
        (["nothing-there", "--port", "0"], "nothing-there"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], words: str) -> None:
    process = command(*arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert words in errors
    assert len(errors.strip().splitlines()) == 1


def test_without_its_extra_it_names_it() -> None:
    block = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('fastapi', 'uvicorn', 'starlette'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.argv = ['codemill', 'serve', 'x']\n"
    )
    done = subprocess.run([sys.executable, "-c", block + RUN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "codemill[serve]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
