"""The script of the child process that ``parse_guard`` starts: reads a JSON array from stdin, a
page's HTML and URL; writes another one to stdout, the page's title, text and links.
"""

from __future__ import annotations

import json
import sys

from gptoss.runtime.tools.browser.page import page_from_html

if __name__ == "__main__":
    page = page_from_html(*json.load(sys.stdin))
    json.dump([page.title, page.text, page.links], sys.stdout)
