"""From a task to a request for a generator, and from its completion to an answer."""

from __future__ import annotations

from typing import Literal

from codemill.core.contracts import Answer, Completion, Generator, Request, Sampling, Task
from codemill.core.errors import InputError
from codemill.evaluation.cut import block_stops, cut_to_gap, is_line_gap

Style = Literal["infill", "prefix", "chat"]

# The truncation of the HumanEval paper: code after the function is not part of the answer.
PYTHON_STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(")
# An answer that is a whole program may hold several functions; it ends where the model begins to test it.
PROGRAM_STOPS = ("\nassert ", '\n"""', "\nprint(", "\nif __name__", "\n# Test")


def style_of(task: Task, generator: Generator) -> Style:
    """How the task is put to this generator. A model that cannot infill is shown the prefix alone."""
    if task.messages:
        return "chat"
    return "infill" if task.suffix is not None and generator.infills else "prefix"


def request_for(
    task: Task, generator: Generator, sampling: Sampling, *, sample: int, max_prompt_tokens: int
) -> Request:
    """The request for one sample of a task; its id names both."""
    style = style_of(task, generator)
    stops: tuple[str, ...] = ()
    if style == "infill" and is_line_gap(task):
        stops = block_stops(task.prefix)
    elif style == "prefix" and task.metadata.get("language", "python") == "python":
        stops = PROGRAM_STOPS if task.metadata.get("kind") == "program" else PYTHON_STOPS
    how = Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop=sampling.stop + stops,
        seed=sampling.seed,
    )
    return Request(
        id=f"{task.id}#{sample}",
        prompt=task.prefix,
        suffix=task.suffix if style == "infill" else None,
        messages=task.messages,
        context=task.context if style == "infill" else (),
        max_prompt_tokens=max_prompt_tokens,
        sampling=how,
    )


def answer_from(completion: Completion, task: Task, sample: int) -> Answer:
    """The answer of a completion. A request that the generator refused is the caller's error: `InputError`."""
    if completion.finish_reason == "error":
        raise InputError(f"task {task.id}: {completion.error}")
    text = completion.text
    if is_line_gap(task):
        text = cut_to_gap(text, task.prefix, task.suffix or "")
    return Answer(
        task_id=task.id,
        completion=text,
        sample=sample,
        metadata={
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "tokens": len(completion.token_ids) or completion.completion_tokens,
            "uncut": completion.text if text != completion.text else None,
            # of what was sampled; unknown where a server does not say
            "mean_logprob": sum(completion.logprobs) / len(completion.logprobs) if completion.logprobs else None,
            **({"cost": completion.cost} if completion.cost else {}),
        },
    )
