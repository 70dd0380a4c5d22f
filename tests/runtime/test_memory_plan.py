"""The memory plan: sizes by arithmetic, contexts by llama.cpp, the bound by the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import psutil
import pytest
from click.testing import CliRunner

import gptoss
from gptoss.converter.convert import convert
from gptoss.errors import OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine import llama_cpp
from gptoss.runtime.engine.base import OutOfMemoryError
from gptoss.runtime.engine.buffer_sizes import Buffers, measure_buffers
from gptoss.runtime.engine.devices import Device, Kind
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.prefix_cache import CacheSettings, PrefixCache, open_cache
from gptoss.runtime.engine.settings import EngineOptions, EngineSettings, KvType
from gptoss.runtime.models.estimate import BITS, estimate_buffers
from gptoss.runtime.models.memory import Memory, available_memory
from gptoss.runtime.models.memory_plan import DEFAULT_CONTEXT, MemoryPlan, PlanVerdict
from gptoss.runtime.models.placement import MOST_CACHE, PROCESS, split_layers
from gptoss.runtime.models.plan import memory_plan
from gptoss.runtime.models.plan_command import plan_command
from gptoss.runtime.models.planner import Planner
from gptoss.runtime.models.sizes import LayerSize, ModelSizes, nbytes_by_default, sparse_gguf
from gptoss.runtime.sampling.sampler import greedy
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
    return ModelSizes.from_tensors(GPT_OSS_20B, nbytes_by_default(GPT_OSS_20B))


def test_a_checkpoint_is_planned_as_the_file_that_is_made_of_it(tiny: Path) -> None:
    planned, converted = ModelSizes.of(TINY), ModelSizes.of(tiny)
    assert (planned.layers, planned.output) == (converted.layers, converted.output)
    assert planned.embedding == converted.embedding > 0
    assert converted.file == sum(it.nbytes for it in GgufFile.open(tiny).tensors.values())


def test_the_published_20b_has_the_size_that_is_known(published: ModelSizes) -> None:
    """12,109,566,624 bytes are published; the header with its vocabulary is about 13 MB of them."""
    assert 12_109_566_624 - 14_000_000 < published.file < 12_109_566_624


def test_the_arithmetic_is_llama_cpps(tiny: Path) -> None:
    """Keys and values to the last digit of its log; the graph is bounded from above."""
    kv_types: tuple[KvType, ...] = get_args(KvType)
    asked = [
        EngineSettings(n_ctx, n_sequences, kv_type)
        for n_ctx in (100, 4096)
        for n_sequences in (1, 3)
        for kv_type in kv_types
    ]
    hparams = ModelSizes.of(tiny).hparams
    measured = measure_buffers(tiny, asked, hparams.vocab_size)
    for settings, found in zip(asked, measured, strict=True):
        expected = estimate_buffers(hparams, settings)
        assert found.kv_full == pytest.approx(expected.kv_full, abs=0.01 * MIB), settings
        assert found.kv_window == pytest.approx(expected.kv_window, abs=0.01 * MIB), settings
        assert found.compute["CPU"] <= expected.compute["CPU"]
        assert found.layers == expected.layers


def test_the_20b_at_its_longest_context(published: ModelSizes) -> None:
    asked = [EngineSettings(n, n_batch=batch) for n in (131072, 32768) for batch in (512, 128)]
    with sparse_gguf(published.hparams) as path:
        assert bytes_on_disk(path) < 50e6, "a hole, not data"
        found = measure_buffers(path, asked, GPT_OSS_20B.vocab_size)
    assert found[0].kv == pytest.approx(3072 * MIB + 18 * MIB, abs=MIB)
    assert found[2].kv == pytest.approx(768 * MIB + 18 * MIB, abs=MIB)
    for settings, buffers in zip(asked, found, strict=True):
        bound = estimate_buffers(GPT_OSS_20B, settings)
        assert buffers.kv == pytest.approx(bound.kv, abs=0.02 * MIB)
        assert buffers.compute["CPU"] <= bound.compute["CPU"] < 1.3 * buffers.compute["CPU"]


SIZES = ModelSizes(GPT_OSS_20B, (LayerSize(200, 100),) * 24, 1_800, 1_000)
"""9,000 bytes that stay in memory."""


def buffers_of(settings: EngineSettings) -> Buffers:
    """100 bytes for each 1,024 tokens of f16, and 100 of graph."""
    bits = BITS[settings.kv_type]
    kv = int(settings.n_ctx / 1024 * 100 * bits / 16)
    return Buffers(kv, 0, {"CPU": 100}, ("CPU",) * 25)


def chosen(available: int, **options: Any) -> MemoryPlan:
    memory = Memory(available + PROCESS, 0, "machine")
    planner = Planner("m", SIZES, memory, options=cast(EngineOptions, {"n_ctx": 8192} | options))
    return planner.plan(lambda wishes: [buffers_of(it) for it in wishes])


@pytest.mark.parametrize(
    ("available", "options", "verdict", "n_ctx", "kv_type", "short"),
    [
        (9_900, {}, "FITS", 8192, "f16", 0),
        (9_899, {}, "FITS_WITH", 8192, "q8_0", 0),
        (9_524, {}, "FITS_WITH", 8192, "q5_1", 0),
        (9_325, {}, "FITS_WITH", 8192, "q4_0", 0),
        (9_324, {}, "DOES_NOT_FIT", 8192, "q4_0", 1),
        (9_524, {"n_ctx": None}, "FITS_WITH", 4096, "f16", 0),
        (9_499, {"n_ctx": None}, "FITS_WITH", 4096, "q8_0", 0),
        (9_311, {"n_ctx": None}, "DOES_NOT_FIT", 4096, "q8_0", 1),
        (9_899, {"kv_type": "f16"}, "DOES_NOT_FIT", 8192, "f16", 1),
        (9_899, {"flash_attention": "off"}, "DOES_NOT_FIT", 8192, "f16", 1),
    ],
)
def test_the_first_wish_that_fits(
    available: int, options: Any, verdict: str, n_ctx: int, kv_type: str, short: int
) -> None:
    """What was asked for is kept; of the rest, the best that fits."""
    plan = chosen(available, **options)
    assert plan.verdict is PlanVerdict[verdict]
    assert (plan.settings.n_ctx, plan.settings.kv_type, plan.short) == (n_ctx, kv_type, short)
    [host] = plan.devices
    assert host.needed == host.weights + host.kv + host.compute + host.process
    assert plan.fits == bool(plan) == (short == 0)


@pytest.mark.parametrize(
    ("available", "cache"),
    [
        (9_000, 0),  # too little
        (9_900, 0),  # just enough: nothing is left
        (9_900 + 8_000, 1_000),
        (9_900 + 100 * MOST_CACHE, MOST_CACHE),
    ],
)
def test_saved_prompts_get_a_part_of_what_is_left(available: int, cache: int) -> None:
    """They never keep a model from fitting, and are within the available memory."""
    plan = chosen(available, kv_type="f16")
    [host] = plan.devices
    assert host.cache == cache
    assert not plan.fits or host.needed + host.cache <= host.available


def test_the_engines_cache_has_what_the_plan_says(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[CacheSettings] = []

    def spied(*arguments: Any) -> PrefixCache:
        settings.append(arguments[0])
        return open_cache(*arguments)

    monkeypatch.setattr("gptoss.runtime.engine.llama_cpp.open_cache", spied)
    monkeypatch.setattr(
        "gptoss.runtime.models.memory.available_memory", lambda: Memory(2 * 10**9, 3, "machine")
    )
    with gptoss.open(tiny, parallel=1, n_ctx=256, disk_cache=False) as model:
        assert model.plan is not None
        assert settings[0].memory == model.plan.devices[0].cache > 10**8


def test_a_model_that_does_not_fit_is_one_line_of_what_helps() -> None:
    with pytest.raises(OutOfMemoryError) as raised:
        chosen(9_000, n_ctx=None).require()
    said = str(raised.value)
    assert said.startswith("m does not fit: short by 0.0 GB; 4,096 tokens of context take 0.8 GB")
    assert "close other programs" in said
    assert "\n" not in said
    chosen(10_000).require()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 0}, "context is 0 tokens; tiny.gguf allows 1 to"),
        ({"n_ctx": 10**9}, "allows 1 to"),
        ({"n_ctx": "512"}, "context is '512'; expected a whole number"),
        ({"chats": 0}, "n_sequences is 0"),
        ({"kv_type": "f32"}, "kv_type is 'f32'; it must be one of f16, bf16, q8_0"),
        ({"kv_type": "q8_0", "flash_attention": "off"}, "q8_0 needs flash attention"),
        ({"gpus": ("CUDA7",)}, "no GPU named CUDA7; this build of llama.cpp has: none"),
        ({"n_gpu_layers": 3}, "n_gpu_layers is 3 but there is no GPU"),
        ({"n_cpu_experts": 2}, "n_cpu_experts is 2 but there is no GPU"),
        ({"n_cpu_experts": 99}, "n_cpu_experts is 99; tiny.gguf has 4 layers"),
        ({"gpus": (), "n_gpu_layers": 2}, "n_gpu_layers is 2 but gpus names none"),
    ],
)
def test_what_cannot_be_wished_for(
    tiny: Path, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before anything is loaded."""
    monkeypatch.setattr(llama_cpp, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(OptionError, match=message) as planned:
        memory_plan(tiny, **options)
    assert "\n" not in str(planned.value)
    if "chats" in options:
        options = {"parallel": options["chats"]}
    with pytest.raises(OptionError) as opened:
        gptoss.open(tiny, **options)
    assert str(opened.value) == str(planned.value)


def test_a_misspelt_option(tiny: Path) -> None:
    with pytest.raises(TypeError, match="n_context"):
        memory_plan(tiny, n_context=512)  # type: ignore[call-arg]


GIB = 2**30


def gpu(name: str, free: float, *, kind: Kind = Kind.GPU) -> Device:
    return Device(name, "a card", kind, int(free * GIB), int(free * GIB))


def on_gpus(sizes: ModelSizes, gpus: Sequence[Device], ram: float, **options: Any) -> MemoryPlan:
    """Plan with layers split as llama.cpp splits them: the last ones, evenly."""

    def measure(wishes: Sequence[EngineSettings]) -> list[Buffers]:
        return [measured(it) for it in wishes]

    def measured(settings: EngineSettings) -> Buffers:
        n = len(sizes.layers) + 1
        offloaded = n if settings.n_gpu_layers < 0 else min(n, settings.n_gpu_layers)
        names = ["CPU"] * (n - offloaded)
        if settings.rpc:
            names = list(split_layers(n - 1, offloaded, gpus))
        else:
            names += [gpus[i * len(gpus) // max(1, offloaded)].name for i in range(offloaded)]
        estimated = estimate_buffers(sizes.hparams, settings)
        compute = dict.fromkeys({*names, "CPU"}, estimated.compute["CPU"])
        return replace(estimated, compute=compute, layers=tuple(names))

    memory = Memory(int(ram * GIB), 0, "machine")
    planner = Planner("m", sizes, memory, gpus, options=cast(EngineOptions, options))
    return planner.plan(measure)


def test_all_layers_on_a_gpu_that_holds_them(published: ModelSizes) -> None:
    plan = on_gpus(published, [gpu("CUDA0", 16)], ram=4)
    host, card = plan.devices
    assert plan.verdict is PlanVerdict.FITS
    assert (plan.settings.n_gpu_layers, plan.settings.n_cpu_experts) == (-1, 0)
    assert card.weights == published.resident
    assert host.weights == host.kv == 0
    assert card.kv == pytest.approx(786 * MIB, abs=MIB)
    assert plan.notes == ()


def test_a_small_gpu_gets_all_but_some_experts(published: ModelSizes) -> None:
    plan = on_gpus(published, [gpu("CUDA0", 8)], ram=16)
    host, card = plan.devices
    n = plan.settings.n_cpu_experts
    assert plan.verdict is PlanVerdict.FITS_WITH
    assert plan.changes == (f"the experts of {n} of 24 layers on the CPU",)
    assert 5 < n < 24
    assert host.weights == sum(it.experts for it in published.layers[:n])
    assert card.weights == published.resident - host.weights
    assert card.available - published.layers[0].experts < card.needed <= card.available


def test_a_gpu_that_holds_nothing_useful_is_left_out(published: ModelSizes) -> None:
    plan = on_gpus(published, [gpu("CUDA0", 1)], ram=16)
    assert plan.verdict is PlanVerdict.FITS_WITH
    assert plan.changes == ("all layers on the CPU",)
    assert [it.name for it in plan.devices] == ["CPU"]


def test_what_was_asked_of_a_gpu_is_kept(published: ModelSizes) -> None:
    plan = on_gpus(published, [gpu("CUDA0", 8)], ram=16, n_gpu_layers=25, n_cpu_experts=0)
    assert plan.verdict is PlanVerdict.DOES_NOT_FIT
    assert "short by" in str(plan)
    assert "on CUDA0" in str(plan)
    assert "fewer layers on the GPU" in str(plan)


def test_some_layers_on_a_gpu_are_said(published: ModelSizes) -> None:
    plan = on_gpus(published, [gpu("CUDA0", 8)], ram=16, n_gpu_layers=9)
    assert plan.verdict is PlanVerdict.FITS
    assert plan.notes == ("16 of 24 layers are computed on the CPU",)


def test_several_gpus_share_the_layers(published: ModelSizes) -> None:
    plan = on_gpus(published, [gpu("CUDA0", 8), gpu("CUDA1", 8)], ram=4)
    _, first, second = plan.devices
    assert plan.verdict is PlanVerdict.FITS
    assert first.weights + second.weights == published.resident
    assert min(first.weights, second.weights) > 0.4 * published.resident


def machine(name: str, free: float) -> Device:
    return Device(name, "RPC server", Kind.GPU, int(free * GIB), int(free * GIB), name)


def test_layers_that_rpc_servers_do_not_hold_stay_here(published: ModelSizes) -> None:
    """Whole layers, not their experts; and the servers are used where this machine could do
    without.
    """
    servers = [machine("127.0.0.1:1", 6), machine("127.0.0.1:2", 3)]
    asked = tuple(it.name for it in servers)
    plan = on_gpus(published, servers, ram=16, rpc=asked)
    host, first, second = plan.devices
    n = 25 - plan.settings.n_gpu_layers
    assert plan.verdict is PlanVerdict.FITS_WITH
    assert plan.changes == (f"{n} of 24 layers on this machine's CPU",)
    assert plan.notes == (f"{n} of 24 layers are computed on the CPU",)
    assert 5 < n < 24
    assert plan.settings.n_cpu_experts == 0
    assert host.weights == sum(it.nbytes for it in published.layers[:n])
    assert first.weights > 1.5 * second.weights
    assert "GB on 127.0.0.1:1" in str(plan)
    assert not on_gpus(published, servers, ram=3, rpc=asked)


def test_layers_are_split_as_llama_cpp_splits_them() -> None:
    """By the position of each layer among those offloaded and the share of memory before."""
    gpus = [gpu("A", 1), gpu("B", 3)]
    assert split_layers(7, 8, gpus) == (*"AA", *"BBBBBB")
    assert split_layers(7, 4, gpus) == (*("CPU",) * 4, *"ABBB")
    assert split_layers(7, 3, gpus) == (*("CPU",) * 5, *"ABB")


def test_unified_memory_counts_twice(published: ModelSizes) -> None:
    """Apple's working set must hold the layers, and so must the machine's memory."""
    plan = on_gpus(published, [gpu("MTL0", 16)], ram=16)
    host, card = plan.devices
    assert plan.verdict is PlanVerdict.FITS
    assert host.weights == card.weights == published.resident
    assert host.kv == card.kv > 0
    assert not on_gpus(published, [gpu("MTL0", 16)], ram=8)


def test_the_experts_are_repacked_where_both_orders_fit(published: ModelSizes) -> None:
    def plan(ram: float, **options: Any) -> MemoryPlan:
        memory = Memory(int(ram * GIB), 0, "machine")
        planner = Planner(
            "m", published, memory, can_repack=True, options=cast(EngineOptions, options)
        )
        return planner.plan(lambda wishes: [estimate_buffers(GPT_OSS_20B, it) for it in wishes])

    assert plan(16).settings.repack == "no"
    roomy = plan(28)
    assert roomy.settings.repack == "later"
    assert roomy.devices[0].weights == published.resident + published.experts
    assert roomy.verdict is PlanVerdict.FITS
    assert plan(28, repack="no").settings.repack == "no"
    assert plan(16, repack="now").fits


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
    assert (told["verdict"], told["settings"]["n_ctx"], told["short"]) == ("fits", 1024, 0)
    assert told["devices"][0]["needed"] == told["needed"] > PROCESS
    said = CliRunner().invoke(plan_command, [str(tiny), "--ctx", "1024"]).output
    assert "fits: 1,024 tokens" in said
    assert "llama.cpp found no GPU" in said
    assert re.search(r"saved prompts +\d+\.\d\d GB more, at most", said)


def test_the_command_says_no(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gptoss.runtime.models.memory.available_memory", lambda: Memory(1, 2, "machine")
    )
    done = CliRunner().invoke(plan_command, [str(tiny)])
    assert done.exit_code == 1
    assert "does not fit: short by 0." in done.output


def test_a_model_that_does_not_fit_is_not_loaded(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``force`` loads it nevertheless."""
    monkeypatch.setattr(
        "gptoss.runtime.models.memory.available_memory", lambda: Memory(1, 2, "machine")
    )
    with pytest.raises(OutOfMemoryError, match=r"tiny\.gguf does not fit: short by"):
        gptoss.open(tiny, n_ctx=512)
    with gptoss.open(tiny, n_ctx=512, force=True) as model:
        assert model.plan is not None
        assert not model.plan.fits


def test_the_plans_settings_are_the_engines(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory: the plan changes the type of keys and values, and the engine has it."""
    sizes = ModelSizes.of(tiny)
    wish = EngineSettings(n_ctx=sizes.hparams.max_position_embeddings)
    [found] = measure_buffers(tiny, [wish], sizes.hparams.vocab_size)
    enough = sizes.resident + PROCESS + found.compute["CPU"] + int(found.kv * 0.6)
    monkeypatch.setattr(
        "gptoss.runtime.models.memory.available_memory", lambda: Memory(enough, 2, "machine")
    )
    with gptoss.open(tiny, parallel=1, n_ctx=wish.n_ctx) as model:
        assert model.plan is not None
        assert model.plan.changes == ("q8_0 keys and values",)
        engine = model.engine
        assert isinstance(engine, LlamaEngine)
        assert engine.settings == model.plan.settings
        assert list(engine.generate([1, 2, 3], greedy, stop=set(), max_tokens=2))


def test_without_a_wish_the_context_is_the_plans_default(tiny: Path) -> None:
    most = ModelSizes.of(tiny).hparams.max_position_embeddings
    with gptoss.load(tiny) as chat:
        assert chat.n_ctx == min(DEFAULT_CONTEXT, most)
