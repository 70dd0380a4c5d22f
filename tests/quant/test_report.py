"""The report's page: whole, harmless, and true to the numbers of the file."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from errno import EACCES
from html.parser import HTMLParser
from math import inf
from pathlib import Path

import numpy as np
import pytest

from gptoss.formats.checkpoint import Checkpoint
from gptoss.progress import Progress
from gptoss.quant.audit.auditor import Audit, audit
from gptoss.quant.audit.statistics import Counted, count
from gptoss.quant.diff.result import Diff, ExpertChange, TensorChange
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.model.tensors import Model
from gptoss.quant.mxfp4 import Bytes
from gptoss.quant.report import svg
from gptoss.quant.report.html import page
from gptoss.quant.report.svg import Shading
from support.commands import Command
from support.planted import EXPERTS, Copying


class Reader(HTMLParser):
    """Checks that tags are closed in order; gathers tags, text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "title":
            self.titles.append(data)


@pytest.fixture(scope="module")
def audited(source: Path) -> Audit:
    return audit(source)


def raw(source: Path, name: str) -> Bytes:
    info = Checkpoint.open(source).tensors[name]
    data = np.fromfile(str(info.file), np.uint8, info.nbytes, offset=info.offset)
    return data.reshape(info.shape)


def test_the_page_is_whole_and_fetches_nothing(audited: Audit) -> None:
    text = page(audited)
    reader = Reader(text)
    assert reader.tags["html"] == reader.tags["body"] == reader.tags["h1"] == 1
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(reader.tags)
    assert not {name for name in reader.attributes if name.startswith("on")}
    assert not {"src", "href", "action"} & reader.attributes
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "▲ no errors, but 2 warnings" in "".join(
        reader.text
    )  # no template, one end of turns not named
    assert "✓" in "".join(Reader(page(replace(audited, findings=()))).text)


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [(950, "950 bytes"), (1, "1 byte"), (238_488, "0.24 MB"), (13_761_300_000, "13.76 GB")],
)
def test_a_small_model_is_not_nothing(audited: Audit, nbytes: int, said: str) -> None:
    assert said in "".join(Reader(page(replace(audited, nbytes=nbytes))).text)


def test_cells_and_bars_say_what_the_file_holds(audited: Audit, source: Path) -> None:
    titles = Reader(page(audited)).titles
    cells = [title for title in titles if re.match(r"layer \d+, expert \d+: mean scale", title)]
    assert len(cells) == 3 * 2 * EXPERTS
    scales = raw(source, "model.layers.1.mlp.experts.gate_up_proj_scales")[3].astype(float)
    gate, up = scales[0::2].mean() - 127, scales[1::2].mean() - 127
    assert f"layer 1, expert 3: mean scale 2^{gate:.2f}" in cells[: 2 * EXPERTS]
    assert f"layer 1, expert 3: mean scale 2^{up:.2f}" in cells[2 * EXPERTS : 4 * EXPERTS]
    blocks = [raw(source, f"model.layers.{i}.mlp.experts.down_proj_blocks") for i in (0, 1)]
    codes = np.stack([np.stack([it & 15, it >> 4]) for it in blocks])
    threes = np.count_nonzero(codes == 5)
    assert any(title.startswith(f"3 (code 5): {threes:,} values, ") for title in titles)
    down = np.stack([raw(source, f"model.layers.{i}.mlp.experts.down_proj_scales") for i in (0, 1)])
    byte = int(down.min())
    name = f"scale 2^{byte - 127} (byte {byte}): {np.count_nonzero(down == byte):,} blocks, "
    assert any(title.startswith(name) for title in titles)


def test_a_gguf_has_the_same_pictures(audited: Audit, converted: dict[str, Path]) -> None:
    def experts(text: str) -> str:
        return text[text.index("<h2>Block scales by") : text.index("<h2>Other tensors")]

    assert experts(page(audit(converted["bf16"]))) == experts(page(audited))


def test_hostile_text_is_shown_and_not_obeyed(audited: Audit, copy: Copying) -> None:
    it = copy()
    it.replace(b"blk.0.attn_norm.weight", b"<script src=//x.y></s>")
    reader = Reader(page(replace(audit(it.path), path="<b onclick=x>&.gguf")))
    assert "script" not in reader.tags
    assert reader.tags["b"] == Reader(page(audited)).tags["b"]
    assert not {"src", "onclick"} & reader.attributes
    shown = "".join(reader.text)
    assert "<script src=//x.y></s>" in shown
    assert "<b onclick=x>&.gguf" in shown


def test_findings_stand_with_what_to_do(copy: Copying) -> None:
    it = copy()
    it.replace(b"blk.1.ffn_up_exps.weight", b"blk.1.ffn_up_expz.weight")
    found = audit(it.path)
    shown = "".join(Reader(page(found)).text)
    assert found.findings
    for finding in found.findings:
        assert finding.message in shown
        assert finding.kind.remedy in shown
    assert "✕ unsound: 2 errors" in shown


def changed(
    tensor: str, layer: int | None, relative: float, *experts: ExpertChange
) -> TensorChange:
    n = EXPERTS if experts else 0
    return TensorChange(tensor, layer, 8, 1, relative, 1.0, ("BF16", "Q8_0"), n, experts)


def test_differences_from_a_base(audited: Audit) -> None:
    changes = (
        changed("blk.1.ffn_down_exps.weight", 1, 0.25, ExpertChange(2, 8, 0.5, 1.0)),
        changed("blk.0.attn_q.weight", 0, 0.0625),
        changed("blk.1.attn_q.weight", 1, inf),
        changed("output.weight", None, 0.125),
    )
    diff = Diff("<base>", "b", 1, 4, 1, changes, (), (), ())
    reader = Reader(page(audited, diff))
    assert "<base>" in "".join(reader.text)
    assert diff.headline in "".join(reader.text)
    assert "layer 0: 0.0625" in reader.titles
    assert "layer 1: infinite: the base is zero there" in reader.titles
    assert "0.125" in reader.titles
    assert [it for it in reader.titles if re.fullmatch(r"layer \d, expert \d: [\d.]+", it)] == [
        f"layer {i}, expert {e}: {0.5 if (i, e) == (1, 2) else 0:.3g}"
        for i in range(2)
        for e in range(EXPERTS)
    ]
    same = Diff("a", "b", 1, 8, 3, (), (), (), ())
    assert same.headline in "".join(Reader(page(audited, same)).text)


# --- charts -----------------------------------------------------------------------------------


def test_shades_are_equal_steps_and_what_lies_beyond_is_marked() -> None:
    shading = Shading(0.0, 9.0)
    names = [shading.name(value) for value in (0.0, 0.99, 1.0, 8.99, 9.0, 11.0, 11.1, -2.1, np.nan)]
    assert names == ["q0", "q0", "q1", "q8", "q8", "q8", "q8 beyond", "q0 beyond", "none"]


def test_one_outlier_does_not_take_all_the_colours() -> None:
    values = np.linspace(-6, -5, 1000)
    values[500] = 60
    shading = Shading.of(values, 0.5)
    assert shading.high < -4.9
    assert shading.name(60) == "q8 beyond"
    assert len({shading.name(value) for value in values[values < 0]}) == 9


def test_equal_values_have_a_colour() -> None:
    shading = Shading.of(np.full((2, 2), 0.5), 0.1)
    assert (shading.name(0.5), shading.name(0.6)) == ("q4", "q8 beyond")
    assert Shading.of(np.full(3, np.nan), 0.1).name(np.nan) == "none"


@pytest.mark.parametrize(
    ("values", "least", "low", "high"),
    [
        ([-8.51, -8.49], 1.0, -9.0, -8.0),  # exponents: the colours span an octave
        ([-8.0, -4.0], 1.0, -8.0, -4.0),
        ([0.0, 0.001], 0.01, 0.0, 0.01),  # shares are not below 0
        ([0.5, 0.502], 0.01, 0.496, 0.506),
    ],
)
def test_colours_do_not_make_structure_of_nothing(
    values: list[float], least: float, low: float, high: float
) -> None:
    shading = Shading.of(np.repeat(values, 500), least)
    assert [shading.low, shading.high] == pytest.approx([low, high])


def test_a_share_that_is_not_nothing_does_not_look_like_nothing() -> None:
    assert [svg.percent(share) for share in (0, 1e-9, 0.5, 1 / 3)] == [
        "0%", "<0.0001%", "50%", "33.3%",
    ]  # fmt: skip
    heights = re.findall(r'height="([\d.]+)" class="bar"', svg.bars([1, 1e-9, 0], "abc", "abc"))
    assert float(heights[1]) > 0.5
    assert float(heights[2]) == 0


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_a_page(
    source: Path,
    tmp_path: Path,
    run: Command,
) -> None:
    out = tmp_path / "page.html"
    for _ in range(2):  # the second replaces the first
        done = run("report", source, "-o", out)
        assert done.code == 0
        assert done.out.startswith(str(out))
    assert out.read_text("utf-8") == page(audit(source))
    assert list(tmp_path.iterdir()) == [out]
    done = run("report", source, "--json")
    assert done.code == 0
    assert json.loads(done.out) == json.loads(json.dumps(audit(source).to_json()))


def test_the_command_compares_with_a_base(
    source: Path,
    converted: dict[str, Path],
    tmp_path: Path,
    run: Command,
) -> None:
    out, gguf = tmp_path / "page.html", converted["q8_0"]
    assert f"against {source}: " in run("report", gguf, "--base", source, "-o", out).out
    assert "attn_q.weight" in out.read_text("utf-8")
    found = json.loads(run("report", gguf, "--base", source, "--json").out)["diff"]
    assert found["changes"]
    assert all(0 < change["relative"] < 0.02 for change in found["changes"])
    assert not any("exps.weight" in change["tensor"] for change in found["changes"])


def test_an_error_among_the_findings_is_exit_code_1(
    copy: Copying, tmp_path: Path, run: Command
) -> None:
    it, out = copy(), tmp_path / "page.html"
    it.replace(b"blk.1.ffn_up_exps.weight", b"blk.1.ffn_up_expz.weight")
    assert run("report", it.path, "-o", out).code == 1
    assert out.exists()


def test_what_is_no_page_is_never_replaced(copy: Copying, run: Command) -> None:
    it = copy()
    before = it.path.read_bytes()
    done = run("report", it.path, "-o", it.path)
    assert done.code == 2
    assert it.path.read_bytes() == before
    assert "not an HTML page" in done.err
    assert run("report", it.path, "-o", it.path.parent).code == 2
    assert run("report", it.path, "-o", it.path.parent / "no" / "page").code == 2


def test_a_folder_that_takes_no_page_is_seen_before_the_model_is_read(
    copy: Copying, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = copy()
    it.path.write_bytes(b"no model: would be named if it were looked at first")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    done = run("report", it.path, "-o", tmp_path / "page.html")
    assert done.code == 2
    assert done.err == f"error: {tmp_path}: cannot create a file there: Permission denied\n"


def test_no_page_of_a_file_that_is_cut_or_changes(
    copy: Copying, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, out = copy(), tmp_path / "page.html"

    def and_touched(model: Model, files: TensorReader, progress: Progress | None) -> Counted:
        it.xor(it.offset("output.weight"), 1)
        return count(model, files, progress)

    monkeypatch.setattr("gptoss.quant.audit.statistics.count", and_touched)
    done = run("report", it.path, "-o", out)
    assert done.code == 2
    assert "was modified while being read" in done.err
    monkeypatch.undo()
    it.path.write_bytes(it.path.read_bytes()[:-1000])
    assert run("report", it.path, "-o", out).code == 2
    assert run("report", tmp_path / "nothing", "-o", out).code == 2
    assert not out.exists()
