"""The report in a real browser: light, dark, narrow, and on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.quant.audit.auditor import audit
from gptoss.quant.report.html import page
from support.png import pixels

pytestmark = pytest.mark.oracle

MODEL = Path(__file__).parent.parent / "tiny" / "checkpoint"
STYLE = Path(__file__).parent.parent.parent / "quant" / "report" / "style.css"
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome",
    "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
WIDE, NARROW = (1000, 1400), (500, 5000)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    out.write_text(page(audit(MODEL)), "utf-8")
    return out


def browse(html: Path, *options: str, size: tuple[int, int] = WIDE) -> str:
    """Open the page in a browser without a window; returns what it prints."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, "no Chromium is here to open the page with: apt-get install chromium"
    done = subprocess.run(
        [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--force-device-scale-factor=1", f"--user-data-dir={html.parent / 'profile'}",
         f"--window-size={size[0]},{size[1]}", *options, html.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return done.stdout.decode("utf-8")


def screenshot(html: Path, *options: str, size: tuple[int, int] = WIDE) -> NDArray[np.uint8]:
    out = html.parent / "page.png"
    browse(html, f"--screenshot={out}", *options, size=size)
    return pixels(out)


def colours(scheme: int) -> dict[str, tuple[int, ...]]:
    """The style sheet's colours: 0 light, 1 dark."""
    rules = re.findall(r":root \{(.*?)\}", STYLE.read_text("utf-8"), re.DOTALL)[scheme]
    found = re.findall(r"--(\w+): #(\w{6})", rules)
    return {name: tuple(bytes.fromhex(digits)) for name, digits in found}


def count(picture: NDArray[np.uint8], colour: tuple[int, ...]) -> int:
    return int((picture == np.array(colour, np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize(("scheme", "setting"), [(0, 1), (1, 0)], ids=["light", "dark"])
def test_it_follows_the_reader_s_setting(html: Path, scheme: int, setting: int) -> None:
    picture = screenshot(html, f"--blink-settings=preferredColorScheme={setting}")
    wanted, other = colours(scheme), colours(1 - scheme)
    assert tuple(picture[2, 2]) == wanted["page"]
    assert (
        count(picture, wanted["page"]) + count(picture, wanted["card"]) > picture[..., 0].size / 2
    )
    assert count(picture, other["page"]) == 0
    shades = [count(picture, wanted[f"q{i}"]) for i in range(9)]
    assert min(shades) > 100, "each colour of the heat maps is to be seen"


def test_it_fits_a_narrow_window(html: Path) -> None:
    """Nothing of the whole page reaches the right edge, where one too wide would be cut."""
    picture = screenshot(html, "--blink-settings=preferredColorScheme=1", size=NARROW)
    assert picture.shape == (*reversed(NARROW), 3)
    blank = np.array(colours(0)["page"], np.uint8)
    assert (picture[:, -8:] == blank).all()
    assert (picture[-100:] == blank).all(), "the page's end is to be seen"


def test_the_browser_reads_what_was_written(html: Path) -> None:
    dom = browse(html, "--dump-dom")
    text = html.read_text("utf-8")
    for tag in ("<svg", "<rect", "<title>", "<figure", "<tr"):
        assert dom.count(tag) == text.count(tag) > 0


def test_it_prints(html: Path) -> None:
    out = html.parent / "page.pdf"
    browse(html, f"--print-to-pdf={out}", "--no-pdf-header-footer")
    raw = out.read_bytes()
    assert raw.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type /Page\b(?!s)", raw)) <= 6
