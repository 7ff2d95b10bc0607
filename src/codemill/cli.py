"""The command line: one command per job. Thin; each command imports its room when it is called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from codemill import __version__
from codemill.core.errors import CodemillError

app = typer.Typer(
    name="codemill",
    help="From repositories to a code model that is adapted, measured and accounted for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
corpus_app = typer.Typer(help="Documents to learn from.", no_args_is_help=True)
tasks_app = typer.Typer(help="Verifiable tasks.", no_args_is_help=True)
sandbox_app = typer.Typer(help="Where untrusted code runs.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(tasks_app, name="tasks")
app.add_typer(sandbox_app, name="sandbox")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override: field=value, the value as YAML.")]


def main() -> None:
    """Entry point: errors that a user can act on end in one line and an exit code."""
    # Threads that wait for each other spin; where another program wants the core, that must not last. Read by the OpenMP
    # library when torch loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        app(standalone_mode=False)
    except CodemillError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on where it was", 130, label="codemill")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say, and no trace of it
        raise SystemExit(141) from None
    except MemoryError:
        _fail("out of memory; lower the batch (micro_tokens, batch) or use a smaller model", 2)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 2)
    except Exception as error:  # click's own errors know how to show themselves
        show = getattr(error, "show", None)
        if show is None or not hasattr(error, "exit_code"):
            raise
        show()
        raise SystemExit(error.exit_code) from None


def _fail(message: str, code: int, label: str = "error") -> None:
    print(f"{label}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def _emit(result: Any, as_json: bool, text: Callable[[], str]) -> None:
    """The result for a machine, or lines for a person."""
    print(json.dumps(result, indent=1, default=str) if as_json else text())


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of the registry, hf:OWNER/NAME@REVISION, or a folder.")],
    as_json: Json = False,
) -> None:
    """Bring a model into the cache as a Hugging Face checkpoint folder."""
    from codemill.core.artifact import is_finished, read_manifest
    from codemill.models.pull import pull as pull_model

    folder = pull_model(name)
    facts = read_manifest(folder)["facts"] if is_finished(folder) else {}
    _emit({"model": name, "folder": str(folder), **facts}, as_json, lambda: str(folder))


@corpus_app.command("build")
def corpus_build(
    sources: Annotated[list[str], typer.Argument(help="path:DIR, git:URL_OR_DIR[@REV] or pypi:NAME==VERSION.")],
    out: Out,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Licence tier to keep; may be repeated. Default: permissive.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn repositories into documents, with a decision and a reason for every file."""
    from codemill.cli_tables import corpus_table
    from codemill.corpus.build import build_corpus
    from codemill.recipe.schema import CorpusStage
    from codemill.recipe.stages import corpus_policy

    stage = _typed(CorpusStage, {"use": "corpus", "sources": sources, **({"keep_tiers": keep} if keep else {})})
    facts = build_corpus(stage.sources, out, policy=corpus_policy(stage))
    _emit(facts, as_json, lambda: corpus_table(facts, out))


@tasks_app.command("build")
def tasks_build(
    corpus: Annotated[Path, typer.Argument(help="A corpus folder.")],
    out: Out,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Make verifiable tasks from the repositories of a corpus, and the training text without what is held out."""
    from codemill.cli_tables import tasks_table
    from codemill.tasks.build import TasksConfig, build_tasks

    facts = build_tasks(corpus, out, _typed(TasksConfig, _overrides(overrides)))
    _emit(facts, as_json, lambda: tasks_table(facts, out))


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A registry name or a checkpoint folder.")],
    documents: Annotated[Path, typer.Argument(help="A tasks or corpus folder, whose documents are learnt.")],
    out: Out,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Adapt a checkpoint to documents. Run again with the same settings, it goes on from its last checkpoint."""
    from codemill.core.artifact import folder_identity
    from codemill.corpus.store import read_documents
    from codemill.models.pull import pull as pull_model
    from codemill.recipe.stages import documents_file
    from codemill.training.config import TrainConfig
    from codemill.training.trainer import train as run

    config = _typed(TrainConfig, _overrides(overrides))
    text = read_documents(documents_file(documents))
    facts = run(pull_model(model), text, config, out, inputs={"documents": folder_identity(documents)})
    line = f"loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f} in {facts['steps']} steps -> {out}"
    _emit(facts, as_json, lambda: line)


@app.command()
def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] TASKS...",
            help="A registry name or a checkpoint folder (not with --model or --endpoint); then tasks folders, tasks.jsonl "
            "files, humaneval[:PATH], mbpp:PATH.",
        ),
    ],
    out: Out,
    model: Annotated[str, typer.Option(help="The model; with --endpoint its name there.")] = "",
    endpoint: Annotated[str, typer.Option(help="Ask an OpenAI-compatible server, like http://127.0.0.1:8000/v1.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the server's key.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 16,
    infill: Annotated[str, typer.Option(help="How the server infills: auto, suffix, infill or none.")] = "auto",
    price: Annotated[str, typer.Option(help="US dollars per million tokens, IN,OUT: the cost is reported.")] = "",
    split: Annotated[str, typer.Option(help="held_out, train or all: which tasks of a tasks folder.")] = "held_out",
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many tasks; 0 takes all.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Answers for each task.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampling distribution.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 192,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Longest prompt; 0 leaves it whole.", show_default="1024, with --endpoint 0"),
    ] = None,
    bits_per_byte: Annotated[
        Path | None, typer.Option(help="A tasks folder: its held-out files are predicted as well.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences generated at once.")] = 32,
    dtype: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Source of sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure a model: answers, verdicts from executed code, pass@k with intervals, bits per byte."""
    from codemill.cli_tables import suites_table
    from codemill.core.errors import ConfigError
    from codemill.recipe.stages import evaluate_at, evaluate_on, suite_named

    model, *tasks = [model, *arguments] if model or endpoint else arguments
    if not model or not tasks:
        raise ConfigError("name a model and tasks: evaluate MODEL TASKS..., or TASKS... --endpoint URL --model NAME")
    if max_prompt_tokens is None:
        max_prompt_tokens = 0 if endpoint else 1024
    settings = {
        "split": split, "limit": limit, "samples": samples, "temperature": temperature, "top_p": top_p,
        "max_tokens": max_tokens, "max_prompt_tokens": max_prompt_tokens,
    }  # fmt: skip
    suites = [suite_named(reference, settings) for reference in tasks]
    if endpoint:
        if bits_per_byte is not None or (dtype, device) != ("auto", "auto"):
            raise ConfigError(
                "--bits-per-byte, --dtype and --device are about weights, which are not here with --endpoint"
            )
        generator = _generator_at(endpoint, model, api_key_env, concurrency, infill, price)
        facts = evaluate_at(generator, suites, out, seed=seed)
    else:
        from codemill.models.pull import pull as pull_model

        facts = evaluate_on(
            pull_model(model), suites, out, held_out=bits_per_byte, batch=batch, dtype=dtype, device=device, seed=seed
        )
    _emit(facts, as_json, lambda: suites_table(facts))
    _check_valid(facts["suites"])


def _generator_at(endpoint: str, model: str, api_key_env: str, concurrency: int, infill: str, price: str) -> Any:
    """A generator behind a server, from flags."""
    from codemill.core.errors import ConfigError, nearest
    from codemill.engine.openai import OpenAIGenerator, Price

    ways = ("auto", "suffix", "infill", "none")
    if infill not in ways:
        raise ConfigError(f"--infill {infill}: {nearest(infill, ways)}")
    try:
        prompt, completion = map(float, price.split(",")) if price else (0.0, 0.0)
    except ValueError:
        raise ConfigError(f"--price {price!r}: give two numbers, like 0.15,0.6") from None
    if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
        raise ConfigError(f"--price {price!r}: a price is a number that is not negative")
    return OpenAIGenerator(
        endpoint,
        model,
        api_key_env=api_key_env,
        concurrency=concurrency,
        infill=infill,  # type: ignore[arg-type]
        price=Price(prompt=prompt, completion=completion),
    )


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A registry name or a checkpoint folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8012,
    name: Annotated[str, typer.Option(help="The model's name for clients; default: the checkpoint's.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the key clients must send.")] = "",
    open_to_all: Annotated[bool, typer.Option("--open-to-all", help="Allow other hosts without a key.")] = False,
    rate: Annotated[int, typer.Option(help="Requests a minute from one address; 0: no limit.")] = 1200,
    max_body_mb: Annotated[float, typer.Option(help="Largest request body, in megabytes.")] = 4.0,
    max_sequences: Annotated[int, typer.Option(help="Answers written or waiting at once, before 429.")] = 256,
    drain_seconds: Annotated[float, typer.Option(help="Time for running answers after SIGTERM.")] = 30.0,
    batch: Annotated[int, typer.Option(min=1, help="Sequences generated at once.")] = 32,
    kv_mb: Annotated[int, typer.Option(min=0, help="Key-value cache in megabytes; 0 chooses.")] = 0,
    speculate: Annotated[bool, typer.Option(help="Draft tokens by looking them up in the text.")] = True,
    weights: Annotated[str, typer.Option(help="bf16, int8 or int4: how weights are kept.")] = "bf16",
    dtype: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Serve a model: OpenAI's protocol for chats and completions, llama.cpp's /infill for editors."""
    from codemill.core.errors import UnavailableError

    try:
        from codemill.serving.server import listen
        from codemill.serving.server import serve as run_server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("codemill"):
            raise
        raise UnavailableError(
            f"serve needs {error.name}: install codemill with its extra, 'codemill[serve]'"
        ) from None
    from codemill.engine.engine import Engine
    from codemill.models.pull import pull as pull_model
    from codemill.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, name=name, api_key=_key_from(api_key_env), open_to_all=open_to_all, rate_per_minute=rate,
        max_body_bytes=int(max_body_mb * 1e6), max_sequences=max_sequences, drain_seconds=drain_seconds,
    )  # fmt: skip
    with listen(settings) as listener:  # before the model is loaded: a port in use is known at once
        engine = Engine.load(
            pull_model(model), dtype=dtype, device=device, weights=weights, max_batch=batch,
            kv_bytes=kv_mb << 20, speculate=speculate,
        )  # fmt: skip
        run_server(engine, settings, lambda line: print(line, file=sys.stderr, flush=True), listener)


def _key_from(variable: str) -> str:
    """The key in an environment variable; "" where none is named."""
    from codemill.core.errors import ConfigError

    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ConfigError(f"--api-key-env {variable}: the variable is not set, or empty")
    return key


@app.command()
def grade(
    tasks: Annotated[str, typer.Argument(help="A tasks folder, a tasks.jsonl, humaneval[:PATH], mbpp:PATH.")],
    answers: Annotated[Path, typer.Argument(help='JSON lines of {"task_id", "completion"}.')],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where verdicts go; default beside the answers.")
    ] = None,
    split: Annotated[str, typer.Option(help="held_out, train or all: which tasks of a tasks folder.")] = "all",
    k: Annotated[list[int] | None, typer.Option("--k", help="pass@k to report; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Turn given answers into verdicts, without any model."""
    from codemill.cli_tables import suites_table
    from codemill.core.errors import InputError
    from codemill.evaluation.evaluate import grade as grade_answers
    from codemill.evaluation.summary import summarise
    from codemill.sandbox import Sandbox
    from codemill.tasks.answers import read_answers
    from codemill.tasks.benchmarks import load_tasks

    known, folder = load_tasks(tasks)
    wanted = [task for task in known if split == "all" or task.metadata.get("split") == split]
    given = list(read_answers(answers, [task.id for task in wanted]))
    if not given:
        raise InputError(f"{answers}: holds no answers")
    target = out or answers.with_name(answers.name.removesuffix(".gz").removesuffix(".jsonl") + ".verdicts.jsonl")
    target.unlink(missing_ok=True)  # verdicts of other answers may lie there
    verdicts = grade_answers(wanted, given, folder, Sandbox(), target)
    answered = {answer.task_id for answer in given}
    summary = summarise([task for task in wanted if task.id in answered], verdicts, k or (1, 10, 100))
    summary["not_answered"] = len(wanted) - len(answered)
    suites = {tasks: summary}
    _emit({"verdicts": str(target), "suites": suites}, as_json, lambda: suites_table({"suites": suites}))
    _check_valid(suites)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where runs are kept.")] = Path("runs"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override: stage.field=value, as YAML.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its costs; do nothing.")
    ] = False,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "",
    as_json: Json = False,
) -> None:
    """Run a recipe: finished stages are found again, a stopped one goes on."""
    from codemill.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        from codemill.cli_tables import plan_table
        from codemill.recipe.plan import plan

        rows = plan(loaded)
        _emit({"recipe": loaded.model_dump(mode="json"), "plan": rows}, as_json, lambda: plan_table(loaded, rows))
        return
    from codemill.cli_tables import run_table
    from codemill.recipe.run import run_recipe

    done = run_recipe(loaded, out, until=until, say=lambda line: print(line, file=sys.stderr, flush=True))
    facts = {
        name: {"use": r.use, "folder": str(r.folder), "seconds": r.seconds, "cached": r.cached}
        for name, r in done.items()
    }
    _emit(facts, as_json, lambda: run_table(loaded, done, out))


@sandbox_app.command("check")
def sandbox_check(as_json: Json = False) -> None:
    """Say which isolation this machine gives, axis by axis, and what enforces it."""
    from codemill.cli_tables import sandbox_table
    from codemill.sandbox import Policy, Sandbox

    rows = Sandbox(Policy(require=frozenset())).report()
    _emit(rows, as_json, lambda: sandbox_table(rows))
    if not all(row["witnessed"] for row in rows):
        raise SystemExit(2)


def _typed(model: Any, data: dict[str, Any]) -> Any:
    """A configuration from flags. Raises `ConfigError` that names the field and the nearest valid one."""
    from pydantic import ValidationError

    from codemill.core.errors import ConfigError, nearest

    try:
        return model.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise ConfigError(f"{name}: unknown setting; {nearest(name, model.model_fields)}") from None
        raise ConfigError(f"{name}: {problem['msg']} (it is {problem.get('input')!r})") from None


def _overrides(given: list[str] | None) -> dict[str, Any]:
    """`--set a.b=value` flags as nested data."""
    from codemill.core.errors import ConfigError
    from codemill.recipe.load import parse_setting

    data: dict[str, Any] = {}
    for item in given or []:
        (*groups, last), value = parse_setting(item, "field=value")
        target = data
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {item}: {group} was set to a value before, it is not a group of fields")
        target[last] = value
    return data


def _check_valid(suites: dict[str, Any]) -> None:
    from codemill.core.errors import InvalidRunError

    for name, summary in suites.items():
        if not summary["valid"]:
            raise InvalidRunError(
                f"{name}: not a result: {summary['statuses'].get('harness_error', 0)} of {summary['answers']} answers could "
                f"not be scored, {summary['missing']} tasks have none; bounds {summary['bounds']}"
            )
