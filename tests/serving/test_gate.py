"""The door: who enters, with how much, how often; who goes away or takes nothing; and what is counted and logged."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from serving_support import Running, Script, ScriptedService, events_of, eventually, running

from codemill.core.errors import ConfigError, UnavailableError
from codemill.engine.engine import Engine
from codemill.serving.gate import Gate, RateLimit
from codemill.serving.metrics import Metrics
from codemill.serving.server import listen
from codemill.serving.settings import ServeSettings

ASK = {"prompt": "a", "max_tokens": 4, "temperature": 0}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_key_is_needed_for_everything_but_health(engine: Engine) -> None:
    with running(ScriptedService(engine, Script(["x"])), api_key="sesame") as server, server.client() as client:
        assert client.get("/health").status_code == 200
        for header in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic sesame"},
            {"authorization": "sesamé".encode("latin-1")},
        ):
            for response in (
                client.get("/v1/models", headers=header),
                client.get("/metrics", headers=header),
                client.post("/v1/completions", json=ASK, headers=header),
            ):
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
                assert "sesame" not in response.text
        assert client.post("/v1/completions", json=ASK, headers={"authorization": "Bearer sesame"}).status_code == 200


def test_other_hosts_need_a_key_or_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="api-key-env"):
        ServeSettings(host="0.0.0.0")
    assert ServeSettings(host="0.0.0.0", api_key="k").host
    assert ServeSettings(host="0.0.0.0", open_to_all=True).host
    for host in ("127.0.0.1", "::1", "localhost"):
        assert ServeSettings(host=host).is_loopback
    for bad in ({"port": 70000}, {"api_key": "a b"}, {"drain_seconds": -1}, {"stall_seconds": float("nan")}):
        with pytest.raises(ConfigError):
            ServeSettings(**bad)  # type: ignore[arg-type]


def test_a_port_in_use_is_an_error() -> None:
    with listen(ServeSettings(port=0)) as taken:
        taken.listen()
        with pytest.raises(UnavailableError, match="--port"):
            listen(ServeSettings(port=taken.getsockname()[1]))


def test_pages_in_a_browser_cannot_use_it(served: Running) -> None:
    with served.client() as client:
        rebound = client.post("/v1/completions", json=ASK, headers={"host": "evil.example:80"})
        assert rebound.status_code == 403
        form = client.post("/v1/completions", content=json.dumps(ASK), headers={"content-type": "text/plain"})
        assert form.status_code == 415
        preflight = client.options("/v1/completions", headers={"origin": "http://evil.example"})
        assert preflight.status_code == 405
        good = client.post("/v1/completions", json=ASK, headers={"origin": "http://evil.example"})
        assert not any(name.startswith("access-control") for name in good.headers)


def test_bodies_are_bounded_before_they_are_read(engine: Engine) -> None:
    script = Script(["x"])
    with running(ScriptedService(engine, script), max_body_bytes=1000) as server, server.client() as client:
        assert client.post("/v1/completions", json={**ASK, "prompt": "a" * 800}).status_code == 200
        declared = client.post("/v1/completions", json={**ASK, "prompt": "a" * 2000})
        assert declared.status_code == 413
        assert error_of(declared)["code"] == "request_too_large"

        def chunks() -> Any:
            for _ in range(100):
                yield b" " * 100

        chunked = client.post("/v1/completions", content=chunks(), headers={"content-type": "application/json"})
        assert chunked.status_code == 413
        assert len(script.prompts) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "temperature": -Infinity}', b'{"prompt": ' + b"[" * 100_000 + b"}",
        b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", b'{"prompt": 5}',
    ],
    ids=lambda body: str(body[:30]),
)  # fmt: skip
def test_broken_bodies_are_400(served: Running, body: bytes) -> None:
    with served.client() as client:
        response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert len(error_of(response)["message"]) < 700


def test_unknown_paths_and_methods(served: Running) -> None:
    with served.client() as client:
        assert error_of(missing := client.get("/v2/x"))["type"] == "not_found_error"
        assert missing.status_code == 404
        assert client.get("/v1/completions").status_code == 405
        assert client.get("/health").json() == {"status": "ok"}


def test_a_client_that_asks_too_often_is_told_when_to_come_back(engine: Engine) -> None:
    with running(ScriptedService(engine, Script(["x"])), rate_per_minute=3) as server, server.client() as client:
        answers = [client.post("/v1/completions", json=ASK) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert error_of(answers[3])["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20
        assert client.get("/health").status_code == 200


def test_a_rate_is_refilled_evenly_and_clients_are_forgotten() -> None:
    limit = RateLimit(60)
    assert all(limit.take("a", 0.0) == 0 for _ in range(60))
    assert limit.take("a", 0.0) == pytest.approx(1.0)
    assert limit.take("b", 0.0) == 0
    assert limit.take("a", 1.01) == 0
    assert limit.take("a", 1.01) > 0.9
    for number in range(5000):
        limit.take(str(number), 2.0)
    assert len(limit._levels) <= 4096


def test_a_full_queue_is_told_apart_and_empties(engine: Engine) -> None:
    script = Script(["x" * 40], size=1, seconds=0.02)
    with running(ScriptedService(engine, script), max_sequences=2) as server, server.client() as client:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(client.post("/v1/completions", json=ASK).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(script.prompts) == 2)
        full = client.post("/v1/completions", json=ASK)
        assert full.status_code == 429
        assert error_of(full)["code"] == "queue_full"
        assert full.headers["retry-after"] == "1"
        for thread in threads:
            thread.join()
        assert statuses == [200, 200]
        assert client.post("/v1/completions", json={**ASK, "n": 2}).status_code == 200


def test_places_come_back_after_refusals(engine: Engine) -> None:
    with running(ScriptedService(engine, Script(["x"])), max_sequences=1) as server, server.client() as client:
        for _ in range(3):
            assert client.post("/v1/completions", json={**ASK, "prompt": ""}).status_code == 400
            assert client.post("/v1/completions", json={**ASK, "stream": True}).status_code == 200
        assert "codemill_sequences 0" in client.get("/metrics").text


def test_a_cancellation_is_never_lost() -> None:
    """Whenever it comes: also as a message is just being taken."""

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def attempt(steps: int) -> bool:
        gate = Gate(endless, ServeSettings(), Metrics())
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"host", b"localhost")]}
        task = asyncio.ensure_future(gate(scope, lambda: asyncio.sleep(60), lambda message: asyncio.sleep(0)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert all(asyncio.run(attempt(steps)) for steps in range(1, 30))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_not_written_for(engine: Engine, stream: bool) -> None:
    script = Script(["x" * 10_000], size=1, seconds=0.01)
    with running(ScriptedService(engine, script)) as server:
        body = json.dumps({**ASK, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            eventually(lambda: script.given > 3)
        eventually(lambda: script.closed == 1)
        assert script.given < 5000
        with server.client() as other:
            assert "codemill_sequences 0" in other.get("/metrics").text


def test_the_engine_is_freed_when_a_client_goes_away(served: Running) -> None:
    with served.client(timeout=5) as client:
        ask = {**ASK, "max_tokens": 4000, "stream": True, "logit_bias": {"256": -100, "258": -100}}
        with client.stream("POST", "/v1/completions", json=ask) as response:
            next(response.iter_lines())
        eventually(lambda: served.service.stats().running == 0)
        assert client.post("/v1/completions", json=ASK).status_code == 200


def test_a_client_that_never_reads_is_dropped_and_holds_nobody_up(engine: Engine) -> None:
    script = Script(["word " * 8_000_000], size=400_000)
    with running(ScriptedService(engine, script), stall_seconds=0.5) as server:
        port = int(server.url.rsplit(":", 1)[1])
        body = json.dumps({**ASK, "stream": True}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            eventually(lambda: script.given > 1)
            with server.client() as other:
                assert other.get("/health").status_code == 200
            eventually(lambda: script.closed == 1)
        assert script.given < 100  # of the 40 MB only what fits into buffers was asked for


def test_a_body_that_never_comes_ends(engine: Engine) -> None:
    with running(ScriptedService(engine, Script(["x"])), stall_seconds=0.3) as server:
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
            client.sendall(
                b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            )
            client.settimeout(10)
            assert b" 408 " in client.recv(1000)


def test_told_to_stop_it_ends_what_runs_and_takes_nothing_new(engine: Engine) -> None:
    script = Script(["x" * 30], size=1, seconds=0.05)
    with running(ScriptedService(engine, script), drain_seconds=20) as server, server.client() as client:
        whole: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: whole.append(client.post("/v1/completions", json=ASK)))
        thread.start()
        eventually(lambda: script.given > 1)
        server.server.should_exit = True
        eventually(lambda: server.server.gate.draining)
        with pytest.raises(httpx.TransportError):
            for _ in range(100):
                with server.client() as other:
                    assert other.post("/v1/completions", json=ASK).status_code == 503
                time.sleep(0.05)
        thread.join()
        assert whole[0].status_code == 200
        assert whole[0].json()["choices"][0]["text"] == "x" * 30


def test_told_to_stop_it_does_not_wait_for_ever(folder: Any) -> None:
    from codemill.engine.service import EngineService

    with running(EngineService(Engine.load(folder, dtype="fp32", device="cpu")), drain_seconds=0.2) as server:
        seen: list[Any] = []

        def listen_on() -> None:
            with server.client() as client:
                ask = {**ASK, "max_tokens": 4000, "stream": True, "logit_bias": {"256": -100, "258": -100}}
                seen.extend(events_of(client.post("/v1/completions", json=ask)))

        thread = threading.Thread(target=listen_on)
        thread.start()
        eventually(lambda: server.service.stats().completion_tokens > 3)
        started = time.monotonic()
        server.server.should_exit = True
        thread.join(15)
        assert time.monotonic() - started < 10
    assert seen[-1] == "[DONE]"
    assert seen[-2]["error"]["code"] == "draining"


def test_what_is_counted(served: Running) -> None:
    with served.client() as client:
        before = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        assert client.post("/v1/completions", json={**ASK, "logit_bias": {"90": 100}}).status_code == 200
        assert client.post("/v1/completions", json={**ASK, "n": 0}).status_code == 400
        text = client.get("/metrics").text
        after = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    names = {
        'codemill_requests_total{endpoint="/v1/completions",status="200"}': 1,
        'codemill_requests_total{endpoint="/v1/completions",status="400"}': 1,
        'codemill_first_token_seconds_count{endpoint="/v1/completions"}': 1,
        'codemill_token_seconds_count{endpoint="/v1/completions"}': 1,
        "codemill_completion_tokens_total": 4,
        "codemill_prompt_tokens_total": 1,
    }
    for name, more in names.items():
        assert float(after[name]) - float(before.get(name, 0)) == more, name
    assert float(after["codemill_kv_total_tokens"]) >= 4096
    buckets = [line for line in text.splitlines() if line.startswith("codemill_request_seconds_bucket")]
    assert any('le="+Inf"' in line for line in buckets)
    for line in text.splitlines():
        assert line.startswith("#") or len(line.rsplit(" ", 1)) == 2


def test_requests_have_names_and_their_words_are_not_logged(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), served.client() as client:
        answer = client.post("/v1/completions", json={**ASK, "prompt": "SECRET"}, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.json()["id"] == "cmpl-mine-1"
        other = client.post(
            "/v1/completions", json={"prompt": "SECRET", "temperature": "SECRET"}, headers={"x-request-id": "a b\tc"}
        )
        assert other.headers["x-request-id"].startswith("req-")
        assert client.get("/v1/SECRET").status_code == 404
    eventually(lambda: "mine-1 POST /v1/completions 200" in caplog.text)
    names = ("codemill", "uvicorn.error")  # uvicorn's own access log is off; caplog listens to it all the same
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(names)]
    assert not logging.getLogger("uvicorn.access").propagate
    assert ours
    assert not any("SECRET" in line for line in ours)
