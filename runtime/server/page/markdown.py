"""Markdown as HTML for the page, block by block while it streams.

The text is untrusted. HTML in it is shown as text, links lead to http, https and mail addresses
only, pictures are links, since loading one would tell another host what is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from gptoss.runtime.server.page.math import math_plugin

MAX_HIGHLIGHTED = 50_000
"""Characters of a block of code that is coloured; longer ones stay plain."""

_SCHEMES = ("http", "https", "mailto")

_FORMATTER = HtmlFormatter(nowrap=True, classprefix="hl-")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of an answer: its place, its HTML, and whether it can still change."""

    index: int
    html: str
    final: bool


class MarkdownStream:
    """Renders a growing text. Blocks that are complete are rendered once.

    A block is complete when the first line of the next one is. What is returned replaces the blocks
    from the first index on: those beyond the last are gone. Rendering the whole text at once gives
    the same HTML, but for a link whose definition follows in a later block.
    """

    def __init__(self) -> None:
        self._md = parser()
        self._references: dict[str, Any] = {}
        self._tail = ""
        self._index = 0
        self._changed = False

    def push(self, text: str) -> None:
        """Add text to the answer's Markdown."""
        self._tail += text
        self._changed = self._changed or bool(text)

    def take(self) -> list[Block]:
        """Return the blocks of the answer's Markdown that have changed since the last call."""
        if not self._changed:
            return []
        self._changed = False
        return self._render(whole=False)

    def finish(self) -> list[Block]:
        """Return the remaining blocks of the answer's Markdown, all complete."""
        return self._render(whole=True)

    def _render(self, *, whole: bool) -> list[Block]:
        groups = top_level_blocks(self._md.parse(self._tail, self._references))
        lines = self._tail.splitlines(keepends=True)
        ends_line = self._tail.endswith("\n")
        n_final = len(groups) if whole else 0
        for i, (first, _) in enumerate(groups[1:], 1):
            if not whole and (first < len(lines) - 1 or ends_line):
                n_final = i
        blocks = []
        for i, (_, tokens) in enumerate(groups):
            final = i < n_final
            html = self._html(tokens, final=final)
            blocks.append(Block(self._index + i, html, final))
        if n_final and n_final < len(groups):
            self._tail = "".join(lines[groups[n_final][0] :])
        elif n_final:
            self._tail = ""
        self._index += n_final
        return blocks

    def _html(self, tokens: Sequence[Token], *, final: bool) -> str:
        """Render the tokens of one block of Markdown; code is coloured when it is complete."""
        env = self._references | {"plain": not final}
        return str(self._md.renderer.render(tokens, self._md.options, env))


def render(text: str) -> str:
    """Render a whole text of Markdown as HTML for the page."""
    return str(parser().render(text))


def top_level_blocks(tokens: Sequence[Token]) -> list[tuple[int, list[Token]]]:
    """Group the tokens of Markdown by the outermost block: its first line and its tokens."""
    groups: list[tuple[int, list[Token]]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            groups.append((token.map[0] if token.map else 0, []))
        groups[-1][1].append(token)
        depth += token.nesting
    return groups


def parser() -> MarkdownIt:
    """Make a parser for the page's Markdown."""
    md = MarkdownIt("commonmark", {"html": False})
    md.enable(["table", "strikethrough"])
    math_plugin(md)
    md.validateLink = is_safe_link  # type: ignore[method-assign]
    for name in ("fence", "code_block", "image", "link_open", "th_open", "td_open"):
        md.add_render_rule(name, globals()[f"_{name}"])
    return md


def is_safe_link(url: str) -> bool:
    """Report whether a link in Markdown may be followed from the page."""
    try:
        return urlsplit(url.strip()).scheme.lower() in _SCHEMES
    except ValueError:
        return False


def _fence(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:  # noqa: ARG001
    token = tokens[index]
    language = token.info.split()[0] if token.info.strip() else ""
    return _code(token.content, language, plain=env.get("plain", False))


def _code_block(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:  # noqa: ARG001
    return _code(tokens[index].content, "", plain=True)


def _code(code: str, language: str, *, plain: bool) -> str:
    html = escape(code) if plain or len(code) > MAX_HIGHLIGHTED else highlighted(code, language)
    label = f'<span class="language">{escape(language[:30])}</span>'
    return (
        f'<figure class="code"><figcaption>{label}'
        '<button type="button" class="quiet copy-code" aria-label="Copy code">Copy</button>'
        "</figcaption>"
        f'<pre tabindex="0"><code>{html}</code></pre></figure>\n'
    )


def highlighted(code: str, language: str) -> str:
    """Colour code for the page by elements with classes; unknown languages stay plain."""
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return str(highlight(code, lexer, _FORMATTER))


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    text = self.renderInlineAsText(token.children or [], options, env) or "picture"
    url = str(token.attrs.get("src", ""))
    if not is_safe_link(url):
        return escape(text)
    return f'<a href="{escape(url)}" {_REL}>{escape(text)}</a>'


def _cell(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:  # noqa: ARG001
    """Begin a cell of a table. Its alignment is a class: the page refuses styles in elements."""
    token = tokens[index]
    side = _ALIGNED.get(str(token.attrs.get("style", "")))
    return f"<{token.tag}>" if side is None else f'<{token.tag} class="{side}">'


_th_open = _td_open = _cell

_ALIGNED = {f"text-align:{side}": side for side in ("left", "center", "right")}

_REL = 'rel="noopener noreferrer nofollow" target="_blank"'


def _link_open(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:  # noqa: ARG001
    url = str(tokens[index].attrs.get("href", ""))
    title = str(tokens[index].attrs.get("title", "") or "")
    titled = f' title="{escape(title)}"' if title else ""
    return f'<a href="{escape(url)}"{titled} {_REL}>'
