"""Markdown of the page: the same however it streams, and harmless whatever it says."""

from __future__ import annotations

import random
from html.parser import HTMLParser

import pytest

pytest.importorskip("markdown_it")

from gptoss.runtime.server.page.markdown import Block, MarkdownStream, render
from gptoss.runtime.server.page.math import math_html

PIECES = (
    "A paragraph\nof two lines.\n\n", "# Heading\n", "text\n===\n", "- one\n- two\n\n  more\n",
    "1. a\n", "```python\nx = 1\n\ny = 2\n```\n", "```\nunclosed\n", "``` inline ``` code\n",
    "> quoted\nlazy\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n",
    "| a | b | c |\n|:--|--:|:-:|\n| 1 | 2 | 3 |\n\n",
    "    indented code\n", "---\n", "-", "*", "\n", "\n\n",
    "$x^2$ and \\(y\\) cost $5 and $6\n", "$$\n\\frac{a}{b}\n$$\n", "\\[\n\\sum_i i\n\\]\n",
    "\\[ z \\]\n",
    "**bold** _it_ ~~gone~~ `code`\n", "[link](https://a.example/x)\n", "<b>html</b>\n",
    "&amp; &lt;\n",
    "![alt](http://p.example/x.png)\n", "日本語 עברית\n", "\t", "#", "=", "`", "\\", "$", "[",
    "](", "]: ",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(150))
def test_streaming_gives_the_same(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices(PIECES, k=rng.randint(1, 14)))
    stream = MarkdownStream()
    shown: list[str] = []
    at = n_final = 0
    while at < len(text):
        step = rng.randint(1, 12)
        stream.push(text[at : at + step])
        at += step
        if rng.random() < 0.7:
            n_final = replace(shown, stream.take(), n_final)
    assert replace(shown, stream.finish(), n_final) == len(shown)
    assert "".join(shown) == render(text), text


def replace(shown: list[str], blocks: list[Block], n_final: int) -> int:
    """What the page does with blocks; returns how many of those shown are complete."""
    if blocks:
        assert blocks[0].index == n_final, "a complete block changed"
        shown[n_final:] = [block.html for block in blocks]
    return n_final + sum(block.final for block in blocks)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def tags_of(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>",
    "[a](javascript:alert(1))", "[a](JaVaScRiPt:alert(1))", "[a](java\nscript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)", "[a](vbscript:x)", "[a](//evil.example)",
    "[a](&#106;avascript:alert(1))", "[a](\x01javascript:alert(1))", "<javascript:alert(1)>",
    "![x](javascript:alert(1))", "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "![x\" onerror=\"alert(1)](http://a/b\"onerror=\"alert(1))", "[a](http://b 'c\" onclick=\"d')",
    "[a]: javascript:alert(1)\n\n[a]", "```\"><script>alert(1)</script>\nx\n```",
    "```html\n<script>alert(1)</script>\n```",
    "```js onload=x\n</code></pre><script>x</script>\n```",
    "    <script>alert(1)</script>", "`<script>alert(1)</script>`",
    "| <script> |\n|---|\n| <img src=x> |",
    "$\\text{<script>alert(1)</script>}$", "$\\href{javascript:alert(1)}{x}$", "\\(<img src=x>\\)",
    "$$\\text{<img src=x onerror=alert(1)>}$$", "\\[\\style{x}{<b>}\\]",
    "$\\class{a\" onclick=\"b}{c}$",
    "$\\unicode{x3c}script$", "\\(\\mathrm{</math><script>alert(1)</script>}\\)",
    "# <script>x</script>",
    "<a href='http://x'>x</a>", "<!-- --><script>", "<![CDATA[<script>]]>",
    "&lt;script&gt;alert(1)",
)  # fmt: skip

ALLOWED = frozenset(
    ("p", "h1", "h2", "a", "code", "pre", "figure", "figcaption", "span", "table", "thead", "tbody",
     "tr", "th", "td", "button", "math", "mrow", "mi", "mo", "mn", "mtext", "mspace")
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_harmless(text: str) -> None:
    found = tags_of(render(text))
    assert found.tags <= ALLOWED
    assert all(link.startswith(("http://", "https://")) for link in found.links)
    assert not any(name.startswith("on") or name in ("src", "style") for name in found.attributes)


@pytest.mark.parametrize("seed", range(60))
def test_hostile_mixtures(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices((*HOSTILE, *PIECES), k=12))
    found = tags_of(render(text))
    assert not found.tags & {"script", "img", "svg", "iframe", "b", "object", "style", "form"}
    assert all(link.startswith(("http://", "https://")) for link in found.links), text
    assert not any(name.startswith("on") or name in ("src", "style") for name in found.attributes)


def test_formulas() -> None:
    html = render("$\\frac{a}{b}$")
    assert html.startswith("<p><math")
    assert "<mfrac>" in html
    assert render("\\[\\sqrt{2}\\]").startswith("<math")
    assert 'display="block"' in render("\\[\\sqrt{2}\\]")
    assert "<math" not in render("it costs $5 and $6, or $7")
    assert "<math" in render("so \\(x < y\\)")
    assert math_html("{" * 1_500, "inline") == f'<code class="formula">{"{" * 1_500}</code>'
    assert "<b>" not in math_html("\\undefined{<b>", "inline")


def test_code_is_coloured_when_it_is_complete() -> None:
    stream = MarkdownStream()
    stream.push("```python\nx = 'a'\n")
    [block] = stream.take()
    assert "hl-" not in block.html
    stream.push("```\nafter\n")
    first, _ = stream.take()
    assert first.final
    assert 'class="hl-' in first.html
    assert '<span class="language">python</span>' in first.html


def test_long_texts_are_rendered_block_by_block() -> None:
    stream = MarkdownStream()
    for i in range(3_000):
        stream.push(f"Paragraph {i} with **words**.\n\n")
        assert len(stream.take()) <= 2
        assert len(stream._tail) < 100


def test_columns_are_aligned_without_styles() -> None:
    """The page's Content-Security-Policy refuses styles in elements."""
    html = render("| a | b | c | d |\n|:--|--:|:-:|---|\n| 1 | 2 | 3 | 4 |\n")
    cells = ['class="left">1', 'class="right">2', 'class="center">3', "<td>4"]
    assert [it for it in cells if it not in html] == []
    assert html.count('class="right"') == 2
    assert "style" not in html
