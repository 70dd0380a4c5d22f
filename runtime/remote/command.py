"""The command ``gptoss-run remote``: keys of other servers."""

from __future__ import annotations

import sys

import click

from gptoss import console
from gptoss.errors import OptionError
from gptoss.runtime.remote.address import origin_of
from gptoss.runtime.remote.keys import remove_key, store_key

MAX_KEY_CHARACTERS = 4_096


@click.group("remote")
def remote_command() -> None:
    """Keep the keys of other servers (--base-url)."""


@remote_command.group("key")
def key_command() -> None:
    """Keep keys in the system's keyring.

    A key is sent to the scheme, host and port that it was set for, and to no other. The environment
    variable GPTOSS_REMOTE_KEY comes before the keyring.
    """


@key_command.command("set")
@click.argument("url")
def set_command(url: str) -> None:
    """Set the key for the server at URL.

    The key is asked for, or read from standard input where that is a pipe.
    """
    origin_of(url)  # a wrong address is reported before a key is asked for
    if sys.stdin.isatty():
        key = click.prompt("Key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline(MAX_KEY_CHARACTERS + 1)
    key = key.strip()
    if not key or len(key) > MAX_KEY_CHARACTERS:
        raise OptionError(f"the key is empty or longer than {MAX_KEY_CHARACTERS} characters")
    console.say(f"key for {store_key(url, key)} set in the keyring")


@key_command.command("rm")
@click.argument("url")
@click.pass_context
def rm_command(context: click.Context, url: str) -> None:
    """Remove the key for the server at URL.

    \b
    Exit codes:
      0  removed       1  there was none
      2  no keyring
    """
    origin, found = remove_key(url)
    console.say(f"key for {origin} removed" if found else f"there is no key for {origin}")
    context.exit(console.ExitCode.DONE if found else console.ExitCode.NO)
