"""The server: time to the first token under an edit with a warm and a cold cache, and 32 clients at once.

Rows: `serve-edit-type` and `serve-edit-up` (the peer is the same server with a cold cache), `serve-clients-32` (the peer is the
engine alone with the same requests).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx

from codemill.core.contracts import Request, Sampling
from codemill.engine.engine import Engine
from codemill.engine.service import EngineService
from codemill.models.pull import pull
from codemill.serving.server import Server, listen
from codemill.serving.settings import ServeSettings
from duel import row, write

LINES, CURSOR, SUFFIX_LINES = 400, 320, 64
TYPED = "value = self.compute"  # 20 characters, one by one
CLIENTS, ANSWERS, NEW_TOKENS = 32, 2, 64
PROMPT = (
    "# Numbers in order\nrows = [{0}000, {0}001, {0}002, {0}003, {0}004,"  # who answers goes on counting from its own
)


@contextmanager
def serving(engine: Engine) -> Iterator[httpx.Client]:
    settings = ServeSettings(port=0, rate_per_minute=0)
    listener = listen(settings)
    with EngineService(engine) as service:
        server = Server(service, settings)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=600) as client:
            yield client
        server.should_exit = True
        thread.join()


def source() -> list[str]:
    path = Path(sysconfig.get_paths()["stdlib"]) / "argparse.py"
    return path.read_text(encoding="utf-8").splitlines(keepends=True)[:LINES]


def first_token_seconds(client: httpx.Client, lines: list[str], cursor: int, typed: str) -> float:
    """A key stroke as llama.vim sends it, with the whole file before the cursor, for one token."""
    body = {
        "input_prefix": "".join(lines[:cursor]), "prompt": f"        {typed}",
        "input_suffix": "\n" + "".join(lines[cursor : cursor + SUFFIX_LINES]), "n_predict": 1, "trim": False,
    }  # fmt: skip
    started = time.perf_counter()
    client.post("/infill", json=body).raise_for_status()
    return time.perf_counter() - started


def edits(engine: Engine, runs: int) -> dict[str, tuple[list[float], list[float]]]:
    """By kind of edit: requests per second with a warm and with a cold cache, a median for each run."""
    lines = source()
    steps = {
        "type": [(CURSOR, TYPED[:length]) for length in range(1, len(TYPED) + 1)],
        "up": [(CURSOR - moved, "") for moved in range(1, 11)],
    }
    found: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in steps}
    with serving(engine) as client:
        for _ in range(runs):
            for kind, kind_steps in steps.items():
                engine.reset_cache()  # nothing runs between two requests
                cold = [first_token_seconds(client, lines, CURSOR, "")]
                warm = [first_token_seconds(client, lines, *step) for step in kind_steps]
                for step in kind_steps[::4]:
                    engine.reset_cache()
                    cold.append(first_token_seconds(client, lines, *step))
                found[kind][0].append(1 / statistics.median(warm))
                found[kind][1].append(1 / statistics.median(cold))
    return found


def questions() -> list[tuple[str, str]]:
    return [
        (f"{client}-{n}", PROMPT.format(10 + client * ANSWERS + n)) for client in range(CLIENTS) for n in range(ANSWERS)
    ]


def alone(engine: Engine) -> tuple[float, dict[str, str]]:
    """Tokens per second and the texts without a server."""
    how = Sampling(max_tokens=NEW_TOKENS)
    engine.reset_cache()
    started = time.perf_counter()
    done = list(engine.generate([Request(id=name, prompt=text, sampling=how) for name, text in questions()]))
    seconds = time.perf_counter() - started
    return sum(c.completion_tokens for c in done) / seconds, {c.request_id: c.text for c in done}


def together(engine: Engine) -> tuple[float, dict[str, str], list[float], int]:
    """Tokens per second of 32 clients with two questions each, one after the other; texts, latencies, dropped requests."""
    texts: dict[str, str] = {}
    latencies: list[float] = []
    tokens, dropped = [], []
    asked = questions()
    engine.reset_cache()
    with serving(engine) as probe:

        def work(mine: list[tuple[str, str]]) -> None:
            connection = HTTPConnection(probe.base_url.host, probe.base_url.port, timeout=600)
            for name, prompt in mine:
                body = json.dumps({"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0})
                began = time.perf_counter()
                try:
                    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
                    answer: dict[str, Any] = json.load(connection.getresponse())
                    texts[name] = answer["choices"][0]["text"]
                except (OSError, ValueError, KeyError) as error:
                    dropped.append(str(error))
                    continue
                latencies.append(time.perf_counter() - began)
                tokens.append(answer["usage"]["completion_tokens"])

        threads = [
            threading.Thread(target=work, args=(asked[i * ANSWERS : (i + 1) * ANSWERS],)) for i in range(CLIENTS)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
    return sum(tokens) / seconds, texts, sorted(latencies), len(dropped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    # As many places for keys and values as the longest prompt of an edit and 32 short ones need.
    engine = Engine.load(pull(arguments.model), dtype="bf16", device="cpu", max_batch=CLIENTS)
    engine.tokenizer.stop_ids = frozenset()  # both sides write exactly NEW_TOKENS tokens
    rows = []
    if engine.infills:
        for kind, (warm, cold) in edits(engine, arguments.runs).items():
            work = f"{arguments.model}, {LINES} lines, cursor at {CURSOR}, suffix {SUFFIX_LINES} lines, first token, {kind}"
            found = row(f"serve-edit-{kind}", work, "requests/s", warm, cold)
            rows.append({**found, "peer_name": "the same with a cold cache"})
    ours, peer, lasts, mixed, strays, drops = [], [], [], 0, 0, 0
    alone(engine)
    for _ in range(arguments.runs):
        speed, expected = alone(engine)
        served, texts, latencies, dropped = together(engine)
        ours.append(served)
        peer.append(speed)
        lasts.append(latencies)
        drops += dropped
        mixed += sum(not _is_own(name, text) for name, text in texts.items())
        strays += sum(not _is_own(name, text) for name, text in expected.items())
    every = sorted(seconds for run in lasts for seconds in run)
    found = row("serve-clients-32", f"{arguments.model}, greedy, {NEW_TOKENS} new tokens, bf16", "tokens/s", ours, peer)
    figures = {
        "peer_name": "the engine alone", "dropped": drops, "mixed_up": mixed, "counts_wrong_alone": strays,
        "p50_seconds": round(every[len(every) // 2], 3), "p99_seconds": round(every[int(len(every) * 0.99)], 3),
    }  # fmt: skip
    rows.append({**found, **figures})
    write("serve", rows)


def _is_own(name: str, text: str) -> bool:
    client, number = map(int, name.split("-"))
    return f"{10 + client * ANSWERS + number}005" in text


if __name__ == "__main__":
    main()
