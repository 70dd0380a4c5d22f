"""``gptoss-run cache``: the states of prompts on disk, listed and removed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from gptoss import console
from gptoss.errors import InvalidFileError, OutputError
from gptoss.runtime.engine.cache_folder import CacheFolder, FileStat, default_folder
from gptoss.text import plural, printable

_SETTINGS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True, slots=True)
class _Listed:
    """One file as the command shows it; ``problem`` says why it is not used."""

    file: str
    bytes: int
    used: str
    model: str | None = None
    tokens: int | None = None
    problem: str | None = None


@click.group("cache", context_settings=_SETTINGS)
def cache_command() -> None:
    """The cache of prompts on disk.

    It holds the states of long prompts and conversations, so that later runs of the same model
    decode only what is new. The files contain the text of conversations as token ids; only you can
    read them.
    """


@cache_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """List the states, the most recently used first.

    \b
    Exit codes:
      0  done
      2  the cache folder cannot be read
    """
    folder = _open(default_folder())
    listed = [] if folder is None else [_describe(folder, it) for it in reversed(folder.files())]
    total = sum(it.bytes for it in listed)
    if as_json:
        files = [asdict(it) for it in listed]
        click.echo(json.dumps({"folder": str(default_folder()), "bytes": total, "files": files}))
        return
    for it in listed:
        what = it.problem or f"{it.tokens:,} tokens of {it.model}"
        click.echo(f"{it.used}  {it.bytes / 1e6:9,.1f} MB  {console.one_line(what)}")
    where = console.one_line(str(default_folder()))
    click.echo(f"{plural(len(listed), 'file')}, {total / 1e6:,.1f} MB in {where}")


@cache_command.command("clear")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clear_command(as_json: bool) -> None:
    """Remove all states. Loaded models and other files in the folder are not affected.

    \b
    Exit codes:
      0  done
      1  a file could not be removed
      2  the cache folder cannot be read
    """
    folder = _open(default_folder())
    files = [] if folder is None else folder.files()
    removed = [it for it in files if folder is not None and folder.remove(it.name)]
    n_parts = 0 if folder is None else folder.remove_stale()
    freed = sum(it.size for it in removed)
    left = 0 if folder is None else len(folder.files())
    if as_json:
        done = {"removed": len(removed) + n_parts, "bytes": freed, "left": left}
        click.echo(json.dumps(done))
    else:
        click.echo(f"removed {plural(len(removed), 'file')}, {freed / 1e6:,.1f} MB")
    if left:
        console.say(f"{plural(left, 'file')} could not be removed")
        click.get_current_context().exit(console.ExitCode.NO)


def _open(path: Path) -> CacheFolder | None:
    """Open the folder of the cache; None where there is none yet. Raises OutputError."""
    try:
        return CacheFolder(path) if path.exists() else None
    except (InvalidFileError, OSError) as error:
        raise OutputError(f"{path}: {error}") from error


def _describe(folder: CacheFolder, it: FileStat) -> _Listed:
    used = datetime.fromtimestamp(it.used, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    try:
        header = folder.open_header(it.name).header
    except (InvalidFileError, OSError) as error:
        return _Listed(it.name, it.size, used, problem=f"not used: {printable(str(error))}")
    return _Listed(it.name, it.size, used, printable(header.name), len(header.tokens))
