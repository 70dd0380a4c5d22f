"""The command ``gptoss-run serve``: options, the listening socket, and what is printed."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gptoss import console
from gptoss.errors import OptionError, require_packages
from gptoss.runtime.chat.model import DEFAULT_PARALLEL
from gptoss.runtime.chat.settings import MAX_SECONDS
from gptoss.runtime.engine.settings import EngineOptions
from gptoss.runtime.models.engine_options import (
    engine_options,
    flags_of,
    pop_engine_options,
)
from gptoss.runtime.models.finder import model_finder
from gptoss.runtime.server.client_configs import CONFIGS, ServerSettings, print_config
from gptoss.runtime.tools.builtin_groups import BuiltinTools, builtin_groups
from gptoss.runtime.tools.groups import ToolGroup
from gptoss.runtime.tools.tool_options import pop_tool_options, tool_options

if TYPE_CHECKING:
    from gptoss.runtime.store.store import Store
    from gptoss.runtime.tools.tool_host import ToolHost

_LOADING = ("chats", "sleep_after", "no_disk_cache")
"""Options of a model that is loaded here, beside the engine's."""


@click.command("serve")
@click.argument("model", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a model is downloaded.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--open/--no-open",
    "open_page",
    default=None,
    help="Open the page in the browser; the default if a person starts it on a desktop.",
)
@click.option("--no-auth", is_flag=True, help="Require no key; on a loopback address only.")
@click.option("--tls-cert", type=console.PATH, metavar="FILE", help="Certificate chain (PEM).")
@click.option("--tls-key", type=console.PATH, metavar="FILE", help="Private key (PEM).")
@click.option(
    "--insecure",
    is_flag=True,
    help="Let other machines connect without TLS: keys and texts are readable on the way.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="A host name by which clients reach this server. Repeatable.",
)
@click.option(
    "--sleep-after",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Unload the model after this time without requests; the next one loads it again.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True, max=MAX_SECONDS),
    metavar="SECONDS",
    help="Maximum time per reply, waiting included; it then ends with the text so far.",
)
@click.option(
    "--key-file",
    type=console.PATH,
    metavar="FILE",
    help="File with the server's key; made if there is none.",
)
@click.option(
    "--chats",
    type=click.IntRange(1, 64),
    default=DEFAULT_PARALLEL,
    show_default=True,
    metavar="N",
    help="Maximum replies at the same time; further ones wait.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="Another name for the first MODEL. Repeatable.",
)
@engine_options
@tool_options
@click.option(
    "--base-url",
    metavar="URL",
    help="Let the llama-server, vLLM or gptoss-run serve at URL run the model. Only the tokenizer "
    "is read from MODEL. See `gptoss-run remote key` for its key.",
)
@click.option(
    "--no-disk-cache", is_flag=True, help="Keep no states of prompts on disk, and use none."
)
@click.option("--store", type=console.PATH, metavar="FILE", help="File to keep conversations in.")
@click.option("--no-store", is_flag=True, help="Keep conversations in memory only.")
@click.option(
    "--reset-store", is_flag=True, help="Move a damaged store aside, and begin a new one."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one line of JSON on stdout when the server listens.",
)
@click.option(
    "--print-config",
    "client",
    type=click.Choice(sorted(CONFIGS)),
    help="Print the configuration of a client for this server, and exit.",
)
def serve_command(
    model: tuple[str, ...],
    yes: bool,
    host: str,
    port: int,
    open_page: bool | None,
    no_auth: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    names: tuple[str, ...],
    sleep_after: float | None,
    time_limit: float | None,
    key_file: Path | None,
    chats: int,
    aliases: tuple[str, ...],
    base_url: str | None,
    no_disk_cache: bool,
    store: Path | None,
    no_store: bool,
    reset_store: bool,
    as_json: bool,
    client: str | None,
    **options: Any,
) -> None:
    """Serve MODEL: a page for the browser, and APIs for programs.

    The APIs are OpenAI's and Anthropic's. MODEL is a GGUF, or a name as for `chat`, such as 20b.
    The first one is loaded at once, a further one when a request names it. With --base-url another
    server runs it, and nothing is loaded here.

    The page is at the server's address. It is opened in the browser, and a link that logs in once
    is printed. With --python, --browser and --mcp the server runs these tools for the page, and for
    clients that ask for them with /v1/responses.

    \b
    Examples:
      gptoss-run serve 20b
      gptoss-run serve 20b --python --browser none --ask-all
      gptoss-run serve model.gguf --port 0 --json
      gptoss-run serve 20b --print-config codex

    \b
    Exit codes:
      2    the input or the request is invalid
      130  ended by Ctrl-C          143  terminated
    """
    require_packages("run", "llama_cpp", "llguidance", "tiktoken")
    require_packages("serve", "starlette", "uvicorn")
    from gptoss.runtime.server.api_key import default_key_path, key_in
    from gptoss.runtime.server.app import create_app
    from gptoss.runtime.server.gguf_models import remote_model, served_model
    from gptoss.runtime.server.listening import (
        is_loopback,
        listen,
        read_tls,
        require_safe,
        url_of,
    )
    from gptoss.runtime.server.model_host import ModelHost, require_own_names
    from gptoss.runtime.server.page.login import LoginLinks
    from gptoss.runtime.server.page.open_browser import has_desktop, opened_in_browser
    from gptoss.runtime.server.security import Access
    from gptoss.runtime.server.uvicorn_server import HttpServer
    from gptoss.runtime.store.store import default_path

    if no_store and (store is not None or reset_store):
        raise OptionError("--no-store and --store or --reset-store are mutually exclusive")
    loopback = is_loopback(host)
    require_safe(host, loopback, no_auth=no_auth, with_tls=tls_cert is not None, insecure=insecure)
    tls = read_tls(tls_cert, tls_key)
    builtin, mcp = pop_tool_options(options)
    finder = model_finder(click.get_current_context())
    engine = pop_engine_options(options)
    if base_url is not None:
        require_packages("remote", "httpcore")
        _require_remote_options(model, engine)
        with finder.vocabulary(model[0]) as path:
            served = [remote_model(base_url, path, aliases)]
    else:
        served = [
            served_model(
                path,
                aliases if i == 0 else (),
                parallel=chats,
                options=engine,
                disk_cache=not no_disk_cache,
                is_first=i == 0,
            )
            for i, path in enumerate(finder.find(name, yes=yes) for name in model)
        ]
    require_own_names(served)
    if client is not None:
        if not served[0].n_ctx:
            raise OptionError("the context is not known until the server at --base-url answers")
        settings = ServerSettings(
            url_of(host, port, with_tls=tls is not None), served[0].id, served[0].n_ctx
        )
        click.echo(
            print_config(client, settings, None if no_auth else key_file or default_key_path())
        )
        return
    kept_in = None if no_store else store or default_path()
    with (
        listen(host, port) as listener,
        open_store(kept_in, reset=reset_store) as kept,
        open_tool_host(builtin, mcp) as tools,
    ):
        key_path = key_file or default_key_path()
        key = None if no_auth else key_in(key_path)
        url = url_of(host, listener.getsockname()[1], with_tls=tls is not None)
        console.say(f"listening on {url}")
        if key is not None:
            console.say(f"key in {key_path}")
        links = LoginLinks()

        def page_url() -> str:
            return f"{url}/" if key is None else f"{url}/#login={links.create()}"

        once = "" if key is None else ", with a link that works once"
        console.say(f"page{once}: {page_url()}")
        if as_json:
            sys.stdout.write(json.dumps({"event": "listening", "url": url}) + "\n")
            sys.stdout.flush()
        access = Access(key, loopback, frozenset(name.lower() for name in (host, *names)))

        async def serve() -> None:
            models = ModelHost(served, sleep_after, time_limit)
            app = create_app(models, access, kept, links, tool_host=tools)
            await HttpServer(app, models, tls).serve([listener])

        if open_page is None:
            open_page = loopback and not as_json and _has_person() and has_desktop()
        with opened_in_browser(page_url()) if open_page else nullcontext():
            asyncio.run(serve())


def _has_person() -> bool:
    """Report whether a person started the server at a terminal, and reads what it prints."""
    return all(it.isatty() for it in (sys.stdin, sys.stdout, sys.stderr))


def open_tool_host(builtin: BuiltinTools, mcp: Path | None) -> ToolHost:
    """Prepare the tools that the operator turns on. MCP servers start meanwhile; what of them
    cannot be used is reported. Raises OptionError, ToolError, MissingPackageError, PythonToolError,
    FetchError.
    """
    from gptoss.runtime.tools.tool_host import ToolHost

    def make() -> list[ToolGroup]:
        return builtin_groups(builtin)

    if mcp is None:
        return ToolHost(make)
    from gptoss.runtime.tools.mcp.servers import McpServers

    servers = McpServers(mcp, wait=False)

    def report() -> None:
        for problem in servers.problems:
            console.say(problem)

    servers.when_started(report)
    try:
        return ToolHost(make, servers)
    except BaseException:
        servers.close()
        raise


def _require_remote_options(model: tuple[str, ...], engine: EngineOptions) -> None:
    """Refuse what is the other server's to decide; raises OptionError."""
    source = click.get_current_context().get_parameter_source
    given = [
        *(it for it, value in engine.items() if value),
        *(it for it in _LOADING if source(it) != ParameterSource.DEFAULT),
    ]
    if given:
        named = ", ".join(flags_of(given))
        raise OptionError(f"the server at --base-url decides this; omit {named}")
    if len(model) > 1:
        raise OptionError("--base-url takes one MODEL; start a server for each")


def open_store(path: Path | None, *, reset: bool) -> Store:
    """Open the store; None keeps it in memory. ``reset`` moves a damaged one aside, which is
    reported. Raises StoreError.
    """
    from gptoss.runtime.store.database import move_aside
    from gptoss.runtime.store.errors import CorruptStoreError
    from gptoss.runtime.store.store import Store

    try:
        return Store(path)
    except CorruptStoreError:
        if not reset or path is None:
            raise
    moved = move_aside(path)
    console.say(f"the damaged store was moved to {moved}")
    return Store(path)
