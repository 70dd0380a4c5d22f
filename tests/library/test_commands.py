"""``models``, ``rm`` and ``verify``, and the models of other programs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from gptoss.errors import GptossError
from gptoss.library.store import read_record
from support import ollama
from support.commands import Command
from support.ggufs import edited
from support.hub_server import HubServer

from .conftest import CHECKPOINT, GGUF


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both models of the Hub are kept, once they have been pulled."""
    return tmp_path_factory.mktemp("stock") / "models"


@pytest.fixture
def pulled(run: Command, hub: HubServer, models: Path, stock: Path) -> None:  # noqa: ARG001
    """Both models of the Hub are here."""
    if not stock.exists():
        for name in (CHECKPOINT, GGUF):
            assert run("pull", name, "--yes").code == 0
        shutil.copytree(models, stock)
    else:
        shutil.copytree(stock, models)


@pytest.mark.usefixtures("hub")
def test_nothing_there(run: Command, models: Path) -> None:
    done = run("models")
    assert (done.code, done.out) == (0, f"none in {models}\n")
    assert "gptoss-run pull 20b" in done.err
    assert json.loads(run("models", "--json").out) == {
        "folder": str(models), "models": [], "elsewhere": [],
    }  # fmt: skip


@pytest.mark.usefixtures("pulled")
def test_models_with_size_verdict_and_last_use(run: Command, models: Path) -> None:
    options = ("-p", "hi", "--max-tokens", "1", "--json")
    assert run("chat", CHECKPOINT, *options).code == 1, "cut after a token"
    out = run("models").out
    assert f"in {models}:" in out
    rows = {line.split()[3]: line for line in out.splitlines()[1:]}
    assert rows[CHECKPOINT].endswith("proven equal to its source")
    assert "never" not in rows[CHECKPOINT]
    assert rows[GGUF].endswith("SHA-256 as published")
    assert " never " in rows[GGUF]
    found = {it["name"]: it for it in json.loads(run("models", "--json").out)["models"]}
    assert found[CHECKPOINT]["bytes"] == Path(found[CHECKPOINT]["path"]).stat().st_size
    assert found[CHECKPOINT]["last_used"].startswith("20")
    assert found[GGUF]["last_used"] is None


@pytest.mark.usefixtures("pulled")
def test_a_name_without_its_owner(run: Command) -> None:
    done = run("chat", "gpt-oss-20b-GGUF", "-p", "hi", "--max-tokens", "1", "--json")
    assert done.code == 1, done.err
    assert run("verify", "gpt-oss-20b-GGUF").code == 0


@pytest.mark.usefixtures("pulled")
def test_removing(run: Command, models: Path) -> None:
    refused = run("rm", CHECKPOINT)
    assert (refused.code, refused.out) == (2, "")
    assert "add --yes" in refused.err
    assert run("rm", "20b", "--yes").out == f"removed {CHECKPOINT}\n"
    assert not (models / CHECKPOINT).exists()
    assert (models / GGUF).exists()
    again = run("rm", "20b", "--yes")
    assert again.code == 2
    assert again.err.endswith(f"no such model in {models}; gptoss-run models lists them\n")
    assert "did you mean ggml-org/gpt-oss-20b-GGUF?" in run("rm", CHECKPOINT).err


@pytest.mark.usefixtures("hub")
def test_pulling_what_is_on_this_machine(run: Command, gguf: Path) -> None:
    said = run("pull", gguf).err
    assert said == f"error: {gguf}: is on this machine; gptoss-run chat {gguf} uses it from here\n"
    said = run("pull", "nothing.gguf").err
    assert said.endswith("is not on the Hub; name 20b, 120b, or OWNER/NAME on the Hub\n")


@pytest.mark.usefixtures("pulled")
def test_verifying(run: Command, models: Path) -> None:
    assert run("verify", CHECKPOINT).out == f"{CHECKPOINT}: unchanged, proven equal to its source\n"
    gguf = models / GGUF / "gpt-oss-20b-mxfp4.gguf"
    raw = bytearray(gguf.read_bytes())
    raw[-50] ^= 1
    gguf.write_bytes(raw)
    done = run("verify", GGUF)
    assert done.code == 1
    assert f"{gguf}: damaged: its SHA-256 is {hashlib.sha256(raw).hexdigest()}" in done.out
    assert f"gptoss-run rm {GGUF} && gptoss-run pull {GGUF}" in done.err


@pytest.mark.usefixtures("pulled")
def test_a_record_that_is_damaged_is_no_model(run: Command, models: Path) -> None:
    for text in (
        "", "[]", "{", '{"format": 1, "files": {"../x.gguf": 1}}', '{"format": 1, "files": 3}',
        '{"format": 99, "files": {}}', "[" * 100_000,
    ):  # fmt: skip
        (models / GGUF / "model.json").write_text(text)
        assert read_record(models / GGUF) is None
        listed = json.loads(run("models", "--json").out)["models"]
        assert [it["name"] for it in listed] == [CHECKPOINT]
    assert run("pull", GGUF, "--yes").code == 0, "fetched again"
    assert run("verify", GGUF).code == 0


@pytest.mark.usefixtures("pulled")
def test_a_file_that_is_gone_is_fetched_again(run: Command, models: Path) -> None:
    (models / CHECKPOINT / "gpt-oss-20b.gguf").unlink()
    assert run("pull", CHECKPOINT, "--yes").code == 0
    assert run("verify", CHECKPOINT).code == 0


@pytest.mark.usefixtures("pulled")
def test_serving_by_name(run: Command, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Path] = []

    def stop(path: Path, *_: object, **__: object) -> None:
        served.append(path)
        raise GptossError("far enough")

    monkeypatch.setattr("gptoss.runtime.server.gguf_models.served_model", stop)
    assert run("serve", "20b", "--port", "0").err == "error: far enough\n"
    assert served == [models / CHECKPOINT / "gpt-oss-20b.gguf"]
    assert "did you mean openai/gpt-oss-20b?" in run("serve", "gpt-oss-20", "--port", "0").err


# --- models of other programs -------------------------------------------------------------------


@pytest.fixture
def home(models: Path, tmp_path: Path) -> Path:  # noqa: ARG001
    home = tmp_path / "home"
    home.mkdir()
    return home


def elsewhere(run: Command) -> list[dict[str, object]]:
    done = run("models", "--json")
    assert done.code == 0, done.err
    found: list[dict[str, object]] = json.loads(done.out)["elsewhere"]
    return found


@pytest.mark.usefixtures("hub")
def test_hugging_faces_cache(run: Command, published: Path, gguf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(published, cache / "models--a--one" / "snapshots" / "x1")
    shutil.copytree(published, cache / "models--a--cut" / "snapshots" / "x2")
    next((cache / "models--a--cut" / "snapshots" / "x2").glob("*.safetensors")).unlink()
    folder = cache / "models--b--two-GGUF" / "snapshots" / "x3" / "Q8"
    folder.mkdir(parents=True)
    shutil.copy(gguf, folder / "m.gguf")
    other = cache / "models--c--bert" / "snapshots" / "x4"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "bert"}')
    found = {it["name"]: it["verdict"] for it in elsewhere(run)}
    assert found.pop("a/cut").startswith("incomplete: ")  # type: ignore[attr-defined]
    assert found == {"a/one": "checkpoint, can be converted", "b/two-GGUF": "can run"}


@pytest.mark.usefixtures("hub")
def test_lm_studio(run: Command, home: Path, gguf: Path) -> None:
    folder = home / ".lmstudio" / "models" / "ggml-org" / "gpt-oss-20b-GGUF"
    folder.mkdir(parents=True)
    shutil.copy(gguf, folder / "a.gguf")
    shutil.copy(gguf, folder / "broken.gguf")
    edited(folder / "broken.gguf", lambda model: model.keys.pop("gpt-oss.rope.scaling.type"))
    (folder / "other.gguf").write_bytes(b"GGUF" + bytes(100))
    verdicts = sorted(str(it["verdict"]) for it in elsewhere(run))
    assert verdicts[0] == "can run"
    assert verdicts[1].startswith("cannot run: broken.gguf: llama.cpp cannot compute this")
    assert len(verdicts) == 2
    assert "(LM Studio)" in run("models").out


@pytest.mark.usefixtures("hub")
def test_ollama(run: Command, home: Path, gguf: Path) -> None:
    models = home / ".ollama" / "models"
    manifests = models / "manifests" / "registry.ollama.ai" / "library" / "gpt-oss"
    (models / "blobs").mkdir(parents=True)
    manifests.mkdir(parents=True)
    edited(gguf, ollama.keys)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    shutil.copy(gguf, models / "blobs" / f"sha256-{digest}")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    evil = {**layer, "digest": "sha256:../../../../etc/passwd"}
    (manifests / "20b").write_text(json.dumps({"layers": [{"mediaType": "x"}, layer]}))
    (manifests / "evil").write_text(json.dumps({"layers": [evil, 3, None]}))
    (manifests / "cut").write_text('{"layers": [')
    [found] = elsewhere(run)
    assert found["name"] == "gpt-oss:20b"
    assert found["place"] == "Ollama"
    assert found["verdict"] == "Ollama's form, gptoss-convert repairs it"


@pytest.mark.usefixtures("hub")
def test_names_from_files_are_made_printable(run: Command, home: Path, gguf: Path) -> None:
    folder = home / ".lmstudio" / "models" / "a\x1b[2J" / "b\nc"
    folder.mkdir(parents=True)
    shutil.copy(gguf, folder / "x.gguf")
    out = run("models").out
    assert "\x1b" not in out
    assert "a\\x1b[2J/b\\nc (LM Studio)" in out


def test_a_folder_without_a_model(run: Command, tmp_path: Path, published: Path) -> None:
    def refused(folder: Path) -> str:
        done = run("chat", str(folder), "-p", "hi")
        assert (done.code, done.out) == (2, "")
        assert done.err.count("\n") == 1
        assert "gptoss-convert" not in done.err
        return done.err

    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: is a folder without a model" in refused(empty)
    for lost in ("tokenizer.json", next(published.glob("*.safetensors")).name):
        cut = Path(shutil.copytree(published, tmp_path / f"without-{lost}"))
        (cut / lost).unlink()
        assert lost in refused(cut)


@pytest.mark.usefixtures("pulled")
def test_an_unknown_name_lists_what_is_here(run: Command) -> None:
    done = run("chat", "zebra", "-p", "hi")
    assert done.code == 2
    assert "zebra: no such file, folder or model; on this machine: " in done.err
    assert CHECKPOINT in done.err
    assert GGUF in done.err
    assert "or name a GGUF" in done.err
