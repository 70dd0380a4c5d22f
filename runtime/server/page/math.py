"""Formulas: LaTeX between ``$…$``, ``$$…$$``, ``\\(…\\)`` and ``\\[…\\]`` as MathML.

latex2mathml copies some text unescaped, so its result is read as XML, held to the elements and
attributes of presentation MathML, and written again. A formula that does not pass is shown as it
was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

MAX_FORMULA_CHARACTERS = 2_000

_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
_ELEMENTS = frozenset(
    "math menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts "
    "mroot mrow ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover "
    "none".split()
)
_ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence "
    "form frame height largeop linethickness lspace mathvariant maxsize minsize movablelimits "
    "notation rowalign rowlines rowspacing rspace scriptlevel separator stretchy symmetric voffset "
    "width".split()
)


def math_plugin(md: MarkdownIt) -> None:
    """Add formulas to a Markdown parser."""
    md.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False,
           allow_blank_lines=False, double_inline=True)  # fmt: skip
    md.inline.ruler.before("escape", "math_parentheses", _parentheses)
    md.block.ruler.before(
        "paragraph", "math_brackets", _brackets, {"alt": ["paragraph", "reference", "blockquote"]}
    )
    md.add_render_rule("math_inline", _render_inline)
    md.add_render_rule("math_inline_double", _render_block)
    md.add_render_rule("math_block", _render_block)


def _parentheses(state: StateInline, silent: bool) -> bool:
    """Read ``\\(…\\)`` within a line of Markdown, and ``\\[…\\]`` too, which models also write."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in ("\\(", "\\["):
        return False
    closing = "\\)" if opening == "\\(" else "\\]"
    end = state.src.find(closing, state.pos + 2)
    if end < 0:
        return False
    if not silent:
        kind = "math_inline" if opening == "\\(" else "math_inline_double"
        token = state.push(kind, "math", 0)
        token.content = state.src[state.pos + 2 : end]
    state.pos = end + 2
    return True


def _brackets(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Read ``\\[…\\]`` as a block of Markdown, over one line or several."""
    if state.is_code_block(start) or not _line(state, start).startswith("\\["):
        return False
    last = start
    while last < end and not _line(state, last).endswith("\\]"):
        if not _line(state, last):
            return False
        last += 1
    if last == end or (last == start and len(_line(state, start)) < 4):
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        content = state.getLines(start, last + 1, state.tShift[start], False).strip()
        token.content, token.block, token.map = content[2:-2], True, [start, last + 1]
    state.line = last + 1
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].strip()


def _render_inline(_self: object, tokens: Sequence[Token], index: int, *_: object) -> str:
    return math_html(tokens[index].content, "inline")


def _render_block(_self: object, tokens: Sequence[Token], index: int, *_: object) -> str:
    return math_html(tokens[index].content, "block")


def math_html(latex: str, display: str) -> str:
    """Render a formula of LaTeX as MathML for the page, or as it was written."""
    if len(latex) <= MAX_FORMULA_CHARACTERS:
        try:
            root = ElementTree.fromstring(convert(latex, display=display))  # noqa: S314 no entities
            return _written(root)
        except Exception:  # noqa: S110 latex2mathml raises many kinds, RecursionError too
            pass
    return f'<code class="formula">{escape(latex.strip())}</code>'


def _written(element: ElementTree.Element) -> str:
    """Write an element of MathML for the page; raises ValueError for what is not in the lists."""
    name = element.tag.removeprefix(_NAMESPACE)
    if name not in _ELEMENTS:
        raise ValueError(f"not MathML: {name}")
    attributes = "".join(
        f' {key}="{escape(value)}"' for key, value in element.attrib.items() if key in _ATTRIBUTES
    )
    inside = escape(element.text or "")
    for child in element:
        inside += _written(child) + escape(child.tail or "")
    return f"<{name}{attributes}>{inside}</{name}>"
