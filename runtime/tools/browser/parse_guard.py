"""Reads costly HTML in a child process that can be killed.

lxml compares each attribute of a tag with all others of it: 20,000 take a second, a million hours,
and nothing interrupts it. A page without that many separators of attributes is read here; any other
in a process of its own (0.2 s), as only the parser knows where a tag ends.
"""

from __future__ import annotations

import json
import re
import subprocess

from gptoss.runtime.child_process import can_run_modules, child_environment, module_command
from gptoss.runtime.tools.browser.fetch import FetchError
from gptoss.runtime.tools.browser.page import Page, page_from_html

MAX_SECONDS = 10.0
"""Time limit of the process; a page of 4 MB takes a second."""

MAX_SEPARATORS = 10_000
"""What can begin an attribute in pages that are read without a process: 0.4 s if all are of one
tag."""

_SEPARATOR = re.compile(r"[\s/\"']")


def page_from_any_html(html: str, url: str) -> Page:
    """Make a page from HTML that may take hours to parse; raises FetchError."""
    separators = sum(1 for _ in _SEPARATOR.finditer(html))
    if separators <= MAX_SEPARATORS or not can_run_modules():
        return page_from_html(html, url)
    try:
        done = subprocess.run(
            module_command("gptoss.runtime.tools.browser.parse_worker"),
            input=json.dumps([html, url]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            encoding="ascii",
            check=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{url[:300]} takes more than {MAX_SECONDS:g} s to read") from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise FetchError(f"{url[:300]} cannot be read: {type(error).__name__}") from None
    title, text, links = json.loads(done.stdout)
    return Page(url, title, text, tuple(links))
