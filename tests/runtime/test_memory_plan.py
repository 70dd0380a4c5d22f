"""The memory plan: sizes by arithmetic, contexts by llama.cpp, the bound by the machine."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from gptoss.converter.convert import convert
from gptoss.errors import OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine.buffer_sizes import Buffers, Settings, measure_buffers
from gptoss.runtime.models.memory import Memory, available_memory
from gptoss.runtime.models.memory_plan import MemoryPlan, Verdict, choose, plan_memory
from gptoss.runtime.models.plan_command import plan_command
from gptoss.runtime.models.sizes import ModelSizes, nbytes_by_default, sparse_gguf
from support.checkpoints import GPT_OSS_20B
from support.posix import bytes_on_disk

TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"
MIB = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "tiny.gguf"
    convert(TINY, path)
    return path


@pytest.fixture(scope="module")
def published() -> ModelSizes:
    sizes = nbytes_by_default(GPT_OSS_20B)
    return ModelSizes(GPT_OSS_20B, sum(sizes.values()), sum(sizes.values()) - 615_329_280)


def test_a_checkpoint_is_planned_as_the_file_that_is_made_of_it(tiny: Path) -> None:
    planned, converted = ModelSizes.of(TINY), ModelSizes.of(tiny)
    assert (planned.file, planned.resident) == (converted.file, converted.resident)
    assert converted.file == sum(it.nbytes for it in GgufFile.open(tiny).tensors.values())


def test_the_published_20b_has_the_size_that_is_known(published: ModelSizes) -> None:
    """12,109,566,624 bytes are published; the header with its vocabulary is about 13 MB of them."""
    assert 12_109_566_624 - 14_000_000 < published.file < 12_109_566_624


@pytest.mark.parametrize("n_sequences", [1, 3])
@pytest.mark.parametrize(("kv_type", "bytes_of_32"), [("f16", 64), ("q8_0", 34)])
def test_keys_and_values_are_those_of_the_arithmetic(
    tiny: Path, n_sequences: int, kv_type: str, bytes_of_32: int
) -> None:
    hparams = ModelSizes.of(tiny).hparams
    [found] = measure_buffers(tiny, [Settings(4096, n_sequences, kv_type)])
    per_cell = 2 * hparams.num_key_value_heads * hparams.head_dim * bytes_of_32 // 32
    window_cells = 768  # 128 + a batch of 512, in steps of 256
    layers = hparams.num_hidden_layers // 2
    expected = layers * n_sequences * (4096 + window_cells) * per_cell
    assert found.kv == pytest.approx(expected, abs=0.05 * MIB)


def test_the_20b_at_its_longest_context(published: ModelSizes) -> None:
    with sparse_gguf(published) as path:
        assert bytes_on_disk(path) < 50e6, "a hole, not data"
        found = measure_buffers(path, [Settings(131072), Settings(32768)])
    assert found[0].kv == pytest.approx(3072 * MIB + 18 * MIB, abs=MIB)
    assert found[1].kv == pytest.approx(768 * MIB + 18 * MIB, abs=MIB)
    assert 50 * MIB < found[1].compute < found[0].compute < 400 * MIB


WISHES = [Settings(n, 1, t) for n in (8192, 4096) for t in ("f16", "q8_0")]
BUFFERS = [Buffers(kv, 100) for kv in (800, 425, 400, 212)]


def chosen(available: int) -> MemoryPlan:
    sizes = ModelSizes(GPT_OSS_20B, 10_000, 9_000)
    memory = Memory(available + 350_000_000, 0, "machine")
    return choose("m", sizes, WISHES, BUFFERS, memory)


@pytest.mark.parametrize(
    ("available", "verdict", "n_ctx", "kv_type", "short"),
    [
        (9_900, Verdict.FITS, 8192, "f16", 0),
        (9_899, Verdict.FITS_WITH, 8192, "q8_0", 0),
        (9_524, Verdict.FITS_WITH, 4096, "f16", 0),
        (9_499, Verdict.FITS_WITH, 4096, "q8_0", 0),
        (9_311, Verdict.DOES_NOT_FIT, 4096, "q8_0", 1),
    ],
)
def test_the_first_wish_that_fits(
    available: int, verdict: Verdict, n_ctx: int, kv_type: str, short: int
) -> None:
    plan = chosen(available)
    assert (plan.verdict, plan.n_ctx, plan.kv_type, plan.short) == (verdict, n_ctx, kv_type, short)
    assert plan.needed == plan.weights + plan.kv + plan.compute + plan.process
    assert ("short by" in str(plan)) == (verdict is Verdict.DOES_NOT_FIT)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"context": 0}, "context is 0"),
        ({"context": 10**9}, "allows 1 to"),
        ({"chats": 0}, "chats is 0"),
    ],
)
def test_what_cannot_be_wished_for(tiny: Path, wish: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_memory(tiny, **wish)  # type: ignore[arg-type]


def test_a_context_that_was_asked_for_is_not_shortened(tiny: Path) -> None:
    memory = Memory(1, 2, "machine")
    assert plan_memory(tiny, context=2048, memory=memory).n_ctx == 2048


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path / "proc"


def test_a_control_group_of_version_2(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/user/chat\n")
    groups = tmp_path / "groups"
    write_group(groups / "user" / "chat", memory__max="max\n", memory__current="5\n")
    write_group(
        groups / "user",
        memory__max=f"{400 * MIB}\n",
        memory__current=f"{300 * MIB}\n",
        memory__stat=f"anon 1\nfile {250 * MIB}\n",
    )
    found = available_memory(proc, groups)
    assert found == Memory(350 * MIB, 400 * MIB, str(groups / "user"))


def test_a_control_group_of_version_1(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("4:memory:/a\n3:cpu,cpuacct:/b\n")
    groups = tmp_path / "groups"
    write_group(
        groups / "memory",  # as a container sees it: the path of the host does not exist
        memory__limit_in_bytes=f"{300 * MIB}\n",
        memory__usage_in_bytes=f"{200 * MIB}\n",
        memory__stat=f"total_cache {50 * MIB}\n",
    )
    assert available_memory(proc, groups).available == 150 * MIB


@pytest.mark.parametrize("text", ["", "nonsense", "0::/../../etc\n", "4:memory:/a\n"])
def test_no_control_group(proc: Path, tmp_path: Path, text: str) -> None:
    (proc / "self" / "cgroup").write_text(text)
    found = available_memory(proc, tmp_path / "groups")
    assert found.source == "machine"
    assert found.total == psutil.virtual_memory().total


def test_the_command(tiny: Path) -> None:
    done = CliRunner().invoke(plan_command, [str(tiny), "--json", "--context", "1024"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["verdict"], told["n_ctx"], told["short"]) == ("fits", 1024, 0)
    assert (
        "fits: 1,024 tokens"
        in CliRunner().invoke(plan_command, [str(tiny), "--context", "1024"]).output
    )


def test_the_command_says_no(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gptoss.runtime.models.memory_plan.available_memory", lambda: Memory(1, 2, "machine")
    )
    done = CliRunner().invoke(plan_command, [str(tiny)])
    assert done.exit_code == 1
    assert "does not fit: short by 0." in done.output
