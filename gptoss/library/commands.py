"""The commands for the user's models: ``gptoss-run models``, ``pull``, ``rm`` and ``verify``."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gptoss import console, progress_bars
from gptoss.errors import GptossError, OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.library.finder import LibraryFinder
from gptoss.library.store import ModelFolder, Stored
from gptoss.runtime.models.preflight import check_computable

if TYPE_CHECKING:
    from gptoss.library.elsewhere import Found


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def models_command(as_json: bool) -> None:
    """List the models that are on this machine.

    First your own, which `pull` and `chat` fetched; then gpt-oss models that the Hugging Face
    cache, LM Studio and Ollama have. The folder of your own is set by GPTOSS_MODELS.

    \b
    Exit codes:
      0    listed
    """
    from gptoss.library.elsewhere import find_elsewhere

    folder = ModelFolder()
    own, others = list(folder.all()), list(find_elsewhere())
    if as_json:
        listed = {
            "folder": str(folder.root),
            "models": [_stored_json(it) for it in own],
            "elsewhere": [_found_json(it) for it in others],
        }
        console.answer(json.dumps(listed))
        return
    console.answer_lines([f"in {folder.root}:" if own else f"none in {folder.root}"])
    for it in own:
        console.answer_lines([_row(it.nbytes, it.last_used, it.name, it.record.verdict)])
    if others:
        console.answer_lines(["elsewhere on this machine:"])
        for found in others:
            name = f"{found.name} ({found.place})"
            row = _row(found.nbytes, found.last_used, name, found.verdict)
            console.answer_lines([row, f"            {found.path}"])
    if not own and not others:
        console.say("gptoss-run pull 20b downloads gpt-oss-20b (14 GB)")


@click.command("pull")
@click.argument("model")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def pull_command(finder: LibraryFinder, model: str, yes: bool) -> None:
    """Download MODEL, convert it if needed, and check it.

    MODEL is 20b, 120b, OWNER/NAME on the Hub, or its URL. An interrupted pull is resumed by the
    next one. A model that is complete is not downloaded again.

    \b
    Examples:
      gptoss-run pull 20b
      gptoss-run pull ggml-org/gpt-oss-20b-GGUF
      gptoss-run pull unsloth/gpt-oss-20b-GGUF:Q8_0 --yes

    \b
    Exit codes:
      0    the model is there
      2    it cannot be fetched, or the request is invalid
      130  interrupted; what is done is kept
    """
    stored = finder.stored(model)
    if stored is None:
        stored = finder.pull(finder.wanted(model), yes=yes, must_run=False)
    console.answer_lines([f"{stored.name}: {stored.gguf}, {stored.record.verdict}"])


@click.command("rm")
@click.argument("model")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm_command(model: str, yes: bool) -> None:
    """Remove MODEL, as `models` lists it, from your models.

    \b
    Exit codes:
      0    removed
      2    there is no such model
    """
    folder = ModelFolder()
    stored = _own(folder, model)
    if not yes:
        if not sys.stdin.isatty():
            raise OptionError(f"{stored.name}: add --yes to remove it without being asked")
        size = f"{stored.nbytes / 1e9:.1f} GB"
        if not console.confirm(f"Remove {stored.name} ({size})?", default=False):
            raise OptionError(f"{stored.name}: was not removed")
    folder.remove(stored)
    console.answer_lines([f"removed {stored.name}"])


@click.command("verify")
@click.argument("model")
@click.pass_context
def verify_command(context: click.Context, model: str) -> None:
    """Check that MODEL has not changed since it was fetched.

    MODEL is one of your own, as `models` lists it. Its files are compared with their SHA-256, and
    its header is checked. To compare a GGUF with a checkpoint, use gptoss-quant verify.

    \b
    Exit codes:
      0    unchanged
      1    damaged
      2    there is no such model
    """
    stored = _own(ModelFolder(), model)
    problems = [*_changed_files(stored)]
    if not problems:
        try:
            check_computable(GgufFile.open(stored.gguf))
        except GptossError as error:
            problems.append(str(error))
    for problem in problems:
        console.answer_lines([problem])
    if problems:
        name = stored.name
        console.say(f"remove it and fetch it again: gptoss-run rm {name} && gptoss-run pull {name}")
        context.exit(console.ExitCode.NO)
    console.answer_lines([f"{stored.name}: unchanged, {stored.record.verdict}"])


def _own(folder: ModelFolder, model: str) -> Stored:
    return LibraryFinder(folder).stored(model) or folder.require(model)


def _changed_files(stored: Stored) -> list[str]:
    """Return what is wrong with a stored model's files, a line for each file that changed."""
    from gptoss.library.download import sha256_of

    problems = []
    with progress_bars.progress_bar("verifying", stored.nbytes) as advance:
        for name in stored.record.files:
            path = stored.folder / name
            found = sha256_of(path, advance)
            if found != stored.record.sha256.get(name):
                problems.append(f"{path}: damaged: its SHA-256 is {found}")
    return problems


def _row(nbytes: int, used: datetime.datetime | None, name: str, verdict: str) -> str:
    day = used.astimezone().strftime("%Y-%m-%d") if used else "never"
    return f"  {nbytes / 1e9:6.1f} GB  {day:>10}  {name}  {verdict}"


def _stored_json(it: Stored) -> dict[str, Any]:
    return {
        "name": it.name,
        "path": str(it.gguf),
        "bytes": it.nbytes,
        "verdict": it.record.verdict,
        "source": it.record.source,
        "revision": it.record.revision,
        "last_used": _iso(it.last_used),
    }


def _found_json(it: Found) -> dict[str, Any]:
    found = asdict(it) | {"path": str(it.path), "last_used": _iso(it.last_used)}
    found["bytes"] = found.pop("nbytes")
    return found


def _iso(time: datetime.datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")
