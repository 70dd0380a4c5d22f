"""Bad input through the command: one line, exit code 2, nothing at the output path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import safetensors_files
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.posix import make_pipe

WEIGHTS = "model.safetensors"
DOWN = "model.layers.1.mlp.experts.down_proj"
NO_FOLDER = "and there is no local folder models/gpt-oss"
NAME_IT = "name the file to write"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "source")


@pytest.fixture
def refused(run: Command) -> Callable[..., str]:
    """Run the command; checks that it fails properly, returns its one line."""

    def refused(source: Path | str, out: Path, *more: str | Path) -> str:
        code, said, errors = run(source, "-o", out, *more)
        assert (code, said, errors.count("\n")) == (2, "", 1)
        assert errors.startswith("error: ")
        assert not out.is_file()
        if out.parent.is_dir():
            assert not list(out.parent.glob(".*.part"))
        return errors

    return refused


def edit_weights(folder: Path, edit: Callable[[safetensors_files.Contents], object]) -> None:
    contents = safetensors_files.load(folder / WEIGHTS)
    edit(contents)
    safetensors_files.save(folder / WEIGHTS, contents)


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    safetensors_files.write(folder / WEIGHTS, header, raw[8 + length :])


def edit_json(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((folder / name).read_text())
    edit(found)
    (folder / name).write_text(json.dumps(found))


def cut(folder: Path, size: int) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(size)


def truncated_header(folder: Path) -> None:
    cut(folder, 500)


def truncated_data(folder: Path) -> None:
    cut(folder, (folder / WEIGHTS).stat().st_size - 1)


def overlap(folder: Path) -> None:
    def shift(header: dict[str, Any]) -> None:
        offsets = header["model.norm.weight"]["data_offsets"]
        offsets[:] = [offset - 128 for offset in offsets]

    edit_header(folder, shift)


def missing_shard(folder: Path) -> None:
    random_checkpoint(folder, shards=2)
    (folder / WEIGHTS).unlink()
    (folder / "model-00001-of-00001.safetensors").unlink()


def missing_partner(folder: Path) -> None:
    edit_weights(folder, lambda contents: contents.pop(DOWN + "_scales"))


def unknown_tensor(folder: Path) -> None:
    edit_weights(folder, lambda c: c.update({"model.layers.2.foo": ("BF16", [1], b"\0\0")}))


def wrong_dtype(folder: Path) -> None:
    edit_header(folder, lambda header: header["lm_head.weight"].update(dtype="I16"))


def wrong_shape(folder: Path) -> None:
    edit_header(folder, lambda header: header["lm_head.weight"].update(shape=[64, 320]))


def width_no_multiple(folder: Path) -> None:
    edit_json(folder, "config.json", lambda config: config.update(hidden_size=72))


def another_architecture(folder: Path) -> None:
    edit_json(folder, "config.json", lambda config: config.update(model_type="llama"))


def too_many_tokens(folder: Path) -> None:
    edit_json(folder, "tokenizer.json", lambda t: t["model"]["vocab"].update({"more": 320}))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def git_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13761264768\n"
    (folder / WEIGHTS).write_text(pointer)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (truncated_header, "exceeds the file size, 500; the file is truncated"),
        (truncated_data, "bytes of data; the file is truncated"),
        (overlap, "tensor 'model.norm.weight' overlaps"),
        (missing_shard, "model-00001-of-00001.safetensors: missing shard"),
        (missing_partner, f"missing tensor '{DOWN}_scales', the partner of '{DOWN}_blocks'"),
        (unknown_tensor, "unknown tensor 'model.layers.2.foo'"),
        (wrong_dtype, "'lm_head.weight' is I16; expected BF16"),
        (wrong_shape, "'lm_head.weight' has shape (64, 320); config.json implies (320, 64)"),
        (width_no_multiple, "hidden_size is 72; expected a multiple of 32"),
        (another_architecture, "model_type is 'llama'; expected 'gpt_oss'"),
        (too_many_tokens, "holds token ids from 0 to 320; the embedding has 320 rows"),
        (no_tokenizer, "tokenizer.json: missing; --tokenizer names another"),
        (no_json, "config.json: not valid JSON"),
        (no_config, "has no config.json; give a checkpoint's folder"),
        (
            git_lfs_pointer,
            f"{WEIGHTS}: is a git-lfs pointer, not the file itself; run `git lfs pull`",
        ),
        (no_folder, "does not exist; expected a checkpoint folder"),
    ],
)
def test_bad_checkpoints(
    source: Path, refused: Callable[..., str], damage: Callable[[Path], None], found: str
) -> None:
    damage(source)
    line = refused(source, source.parent / "out.gguf")
    assert found in line
    assert str(source) in line


def test_a_value_that_the_type_cannot_hold(source: Path, refused: Callable[..., str]) -> None:
    def enlarge(contents: safetensors_files.Contents) -> None:
        dtype, shape, data = contents["lm_head.weight"]
        contents["lm_head.weight"] = (dtype, shape, data[:-2] + b"\x80\x47")  # 65536 in BF16

    edit_weights(source, enlarge)
    line = refused(source, source.parent / "out.gguf", "--dense", "f16")
    assert "tensor 'lm_head.weight' holds 65536, beyond the range of F16" in line


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("embedding", "expected GROUP=TYPE, such as embedding=q4_0"),
        ("embedding=q4", "no dense type is called 'q4'; there are q8_0, bf16, "),
        ("experts=q8_0", "no group of tensors is called 'experts'; attention, embedding, output"),
        ("output=q8_0", "output already has the type f16"),
    ],
)
def test_types_that_do_not_exist(
    source: Path, refused: Callable[..., str], option: str, found: str
) -> None:
    line = refused(source, source.parent / "out.gguf", "--type", "output=f16", "--type", option)
    assert found in line


def test_sources_that_mean_something_else(source: Path, refused: Callable[..., str]) -> None:
    out = source.parent / "out.gguf"
    for more in ((), ("--dense", "bf16"), ("--plan",)):
        line = refused(source / WEIGHTS, out, *more)
        assert f"{source / WEIGHTS}: is one file of a checkpoint; name its folder" in line
    url = "https://example.com/openai/gpt-oss-20b"
    line = refused(url, out)
    assert f"{url}: expected OWNER/NAME, or a repository's URL" in line
    assert "SOURCE is empty" in refused("", out)


@pytest.mark.parametrize("more", [(), ("--plan",)])
def test_a_tokenizer_that_is_no_folder(
    source: Path, refused: Callable[..., str], more: tuple[str, ...]
) -> None:
    for path in (source / "tokenizer.json", source / "gone"):
        line = refused(source, source.parent / "out.gguf", "--tokenizer", path, *more)
        assert (
            f"{path}: no such folder; --tokenizer names the one that holds tokenizer.json" in line
        )


def test_an_output_folder_that_is_missing(source: Path, refused: Callable[..., str]) -> None:
    line = refused(source, source.parent / "gone" / "out.gguf")
    assert "gone: no such folder; create it first" in line


@pytest.mark.parametrize("size", ["abc", "0", "-1", "1.5G", ""])
def test_sizes_that_are_none(source: Path, refused: Callable[..., str], size: str) -> None:
    line = refused(source, source.parent / "out.gguf", "--split-max-size", size)
    assert f"--split-max-size {size!r}: expected a number of bytes, or a size such as 700M" in line


def test_a_file_where_the_result_should_grow(source: Path, run: Command) -> None:
    blocking = source.parent / ".out.gguf.part"
    blocking.write_text("mine")
    code, said, errors = run(source, "-o", source.parent / "out.gguf")
    assert (code, said, blocking.read_text()) == (2, "", "mine")
    assert errors == f"error: {blocking}: is not a folder; remove it\n"


def test_a_folder_of_somebody_else_where_the_result_should_grow(source: Path, run: Command) -> None:
    mine = source.parent / ".out.gguf.part" / "mine"
    mine.parent.mkdir()
    mine.write_text("keep me")
    code, said, errors = run(source, "-o", source.parent / "out.gguf")
    assert (code, said, mine.read_text()) == (2, "", "keep me")
    assert errors == f"error: {mine.parent}: is not a staging folder; move its files elsewhere\n"


def test_an_output_that_is_a_folder(source: Path, refused: Callable[..., str]) -> None:
    assert "is a folder; name the file to write" in refused(source, source.parent)


@pytest.mark.parametrize("out", ["", ".", "/"])
def test_an_output_without_a_name(
    source: Path, run: Command, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """A variable that is not set, or the folder that one is in."""
    folder = source.parent / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run(source, "-o", out) == (2, "", f"error: {Path(out)}: is a folder; {NAME_IT}\n")
    gguf = source.parent / "good.gguf"
    assert run(source, "-o", gguf).code == 0
    assert run(gguf, "-o", out, "--base", source) == (
        2,
        "",
        f"error: {Path(out)}: is a folder; {NAME_IT}\n",
    )
    code, said, errors = run(gguf, "-o", out, "--to", "hf")
    assert (code, said) == (2, "")
    assert errors == f"error: {Path(out)}: exists already; choose a new folder\n"
    assert not list(folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on Windows")
def test_an_output_that_is_no_regular_file(source: Path, refused: Callable[..., str]) -> None:
    """``-o /dev/null``, by root, must not put a file in its place."""
    out = source.parent / "null"
    make_pipe(out)
    assert "null: is not a regular file" in refused(source, out)
    assert out.is_fifo()


def test_an_output_folder_that_is_full(
    source: Path, run: Command, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = source.parent / "model.gguf"
    assert run(source, "-o", gguf).code == 0
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 4096, 4096))
    line = refused(source, source.parent / "out.gguf")
    assert f"error: {source.parent}: " in line
    assert "bytes are needed and 4,096 are free" in line
    line = refused(gguf, source.parent / "back", "--to", "hf")
    assert f"error: {source.parent}: " in line
    assert "bytes are needed and 4,096 are free" in line


@pytest.mark.parametrize("setting", ["HF_ENDPOINT=http://[", "HF_HUB_DOWNLOAD_TIMEOUT=soon"])
@pytest.mark.parametrize("more", [["-o", "out.gguf"], ["--plan"]])
def test_settings_of_the_hub_that_cannot_be(tmp_path: Path, setting: str, more: list[str]) -> None:
    """huggingface_hub reads them when it is imported, and prints of its trouble on stdout."""
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [Path(sys.executable).with_name("gptoss-convert"), "nobody/nothing", *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", name: value},
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: huggingface_hub cannot be used: ")
    assert "check HF_ENDPOINT and the other settings of the Hub" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "more", "found"),
    [
        ("HF_HUB_OFFLINE=1", ["-o", "out.gguf"], f"to download; {NO_FOLDER}"),
        ("HF_HUB_OFFLINE=1", ["--plan"], "omit --stream or --plan to use what is in the cache"),
        ("HF_ENDPOINT=http://127.0.0.1:1", ["-o", "out.gguf"], f"(HTTPS_PROXY); {NO_FOLDER}"),
    ],
)
def test_a_folder_that_is_not_there_and_no_hub(
    tmp_path: Path, setting: str, more: list[str], found: str
) -> None:
    """``models/gpt-oss`` misspelt is a repository's name; who meant a folder should see it."""
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [Path(sys.executable).with_name("gptoss-convert"), "models/gpt-oss", *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", name: value},
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert found in done.stderr


def test_the_command_itself(source: Path) -> None:
    """Once as a user runs it: what the tests above do in this process, and a good run."""
    command = Path(sys.executable).with_name("gptoss-convert")
    out = source.parent / "out.gguf"
    good = subprocess.run(
        [command, source, "-o", out, "--json", "--type", "embedding=q4_0"],
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(good.stdout)
    assert good.stderr == ""
    assert summary["bytes"] == out.stat().st_size
    assert summary["dense"] == {"attention": "q8_0", "embedding": "q4_0", "output": "q8_0"}
    assert summary["files"] == [str(out)]
    out.unlink()
    Path(summary["manifest"]).unlink()
    another_architecture(source)
    bad = subprocess.run([command, source, "-o", out], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1
    assert list(source.parent.iterdir()) == [source]
