"""LoRA adapters: added in full, once rounded, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.converter.convert import VerificationError, convert
from gptoss.converter.lora import merged
from gptoss.converter.lora.adapter import open_adapter
from gptoss.converter.output import TensorPlan
from gptoss.converter.write import tasks
from gptoss.errors import CheckpointError, GptossError, UnsupportedModelError
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import Checkpoint
from support import adapters, forms, safetensors_files
from support.adapters import Lora
from support.checkpoints import random_checkpoint
from support.ggufs import tensors_of, values_of

LAYER = "model.layers.1."
ATTENTION = tuple(f"{LAYER}self_attn.{x}_proj.weight" for x in "qkvo")
EXPERTS = tuple(f"{LAYER}mlp.experts.{name}" for name in adapters.EXPERTS)
ROUTER, HEAD = f"{LAYER}mlp.router.weight", "lm_head.weight"
SHAPES: dict[str, dict[str, Any]] = {
    "square": {"hidden": 64, "heads": 2},
    "oblong": {"hidden": 96, "intermediate": 64, "heads": 3, "kv_heads": 3},
}


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("base") / "base", **SHAPES[request.param])


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("square") / "base", **SHAPES["square"])


DENSE = Lora((*ATTENTION, ROUTER, HEAD))
ALL = Lora((*ATTENTION, *EXPERTS), rank=3, dtype="BF16")
SWAPPED = Lora(EXPERTS, swapped=True)
RANK_STABLE = Lora(EXPERTS, config={"use_rslora": True})


@pytest.mark.parametrize(
    ("lora", "form"),
    [
        pytest.param(DENSE, "MXFP4", id="dense"),
        pytest.param(DENSE, "F32", id="dense-f32"),
        pytest.param(ALL, "MXFP4", id="all"),
        pytest.param(ALL, "BF16", id="all-bf16"),
        pytest.param(SWAPPED, "MXFP4", id="swapped"),
        pytest.param(SWAPPED, "F32", id="swapped-f32"),
        pytest.param(RANK_STABLE, "MXFP4", id="rank-stable"),
        pytest.param(Lora(EXPERTS[:1], swapped=True), "MXFP4", id="gate_up"),
        pytest.param(Lora(EXPERTS[1:], alpha=20), "MXFP4", id="down"),
    ],
)
def test_equals_what_was_merged(base: Path, tmp_path: Path, lora: Lora, form: str) -> None:
    """Base and adapter on one side, on the other the sum, made in doubles and stored in F32."""
    adapter = adapters.write(tmp_path / "lora", base, lora)
    source = base if form == "MXFP4" else forms.to_floats(base, tmp_path / "source", form)
    whole = forms.to_floats(base, tmp_path / "whole", "F32")
    adapters.merge(whole, adapter, lora, experts=4)
    options: dict[str, Any] = {"dense": "f32", "experts": "bf16"}
    done = convert(source, tmp_path / "a.gguf", lora=tmp_path / "lora", **options)
    convert(whole, tmp_path / "b.gguf", **options)
    convert(base, tmp_path / "c.gguf", **options)
    ours, theirs = values_of(tmp_path / "a.gguf"), values_of(tmp_path / "b.gguf")
    before = values_of(tmp_path / "c.gguf")
    for name, values in ours.items():
        largest = np.abs(theirs[name]).max()
        close = 2.0**-8 if "exps.weight" in name else 2.0**-20
        assert np.abs(values - theirs[name]).max() <= close * largest, name
    changed = {name for name in ours if not np.array_equal(ours[name], before[name])}
    assert changed == {name for name in ours if not np.array_equal(theirs[name], before[name])}
    assert len(changed) == sum(2 if "gate_up" in target else 1 for target in lora.targets)
    assert f"{len(lora.targets)} tensors changed by adapter, 0 replaced" in done.notes[-1]


def test_experts_that_an_adapter_leaves_alone_keep_their_bits(base: Path, tmp_path: Path) -> None:
    """The adapter is nothing for all experts but one, of which it changes every block."""
    lora = Lora(EXPERTS, alpha=80)
    adapters.write(tmp_path / "lora", base, lora)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors_files.load(path)
    for name, entry in tensors.items():
        if "lora_A" in name:
            a = forms.numbers(entry).reshape(4, lora.rank, -1).copy()
            a[[0, 1, 3]] = 0
            tensors[name] = forms.tensor(a.reshape(4 * lora.rank, -1), "F32")
    safetensors_files.save(path, tensors)
    convert(base, tmp_path / "a.gguf", lora=tmp_path / "lora")
    convert(base, tmp_path / "b.gguf")
    ours, before = tensors_of(tmp_path / "a.gguf"), tensors_of(tmp_path / "b.gguf")
    changed = [name for name in ours if ours[name] != before[name]]
    assert changed == [f"blk.1.ffn_{x}_exps.weight" for x in ("gate", "up", "down")]
    for name in changed:
        blocks = [np.frombuffer(it[name], np.uint8).reshape(4, -1, 17) for it in (ours, before)]
        differing = (blocks[0] != blocks[1]).any(axis=-1)
        assert not differing[[0, 1, 3]].any()
        assert differing[2].mean() > 0.95  # a small change may be rounded away


@pytest.mark.parametrize("dense", ["bf16", "q8_0"])
def test_where_it_is_cut_changes_nothing(
    base: Path, tmp_path: Path, dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = Lora((*ATTENTION, *EXPERTS, HEAD))
    adapters.write(tmp_path / "lora", base, lora)
    convert(base, tmp_path / "a.gguf", lora=tmp_path / "lora", dense=dense)
    monkeypatch.setattr(tasks, "CHUNK", 1000)
    convert(base, tmp_path / "b.gguf", lora=tmp_path / "lora", dense=dense)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_whole_tensors_replace_the_bases(square: Path, tmp_path: Path) -> None:
    """What PEFT calls modules_to_save, and a biased layer's bias."""
    lora = Lora(ATTENTION)
    adapters.write(tmp_path / "lora", square, lora)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors_files.load(path)
    head = np.random.default_rng(1).standard_normal((320, 64)).astype(np.float32)
    bias = np.arange(64, dtype=np.float32)
    gate_up = np.full((4, 64, 128), 0.5, np.float32)
    tensors[adapters.PREFIX + HEAD] = forms.tensor(head, "F32")
    tensors[f"{adapters.PREFIX}{LAYER}self_attn.k_proj.base_layer.bias"] = forms.tensor(bias, "F32")
    tensors[adapters.PREFIX + EXPERTS[0]] = forms.tensor(gate_up, "F32")
    safetensors_files.save(path, tensors)
    done = convert(square, tmp_path / "a.gguf", lora=tmp_path / "lora", dense="f32")
    found = values_of(tmp_path / "a.gguf")
    assert np.array_equal(found["output.weight"], head)
    assert np.array_equal(found["blk.1.attn_k.bias"], bias)
    assert (found["blk.1.ffn_up_exps.weight"] == 0.5).all()
    assert "4 tensors changed by adapter, 3 replaced" in done.notes[-1]


def test_alpha_by_module(square: Path, tmp_path: Path) -> None:
    lora = Lora(ATTENTION, config={"alpha_pattern": {"self_attn.v_proj": 80.0}})
    adapter = adapters.write(tmp_path / "lora", square, lora)
    convert(square, tmp_path / "a.gguf", lora=tmp_path / "lora", dense="f32")
    convert(square, tmp_path / "b.gguf", dense="f32")
    ours, before = values_of(tmp_path / "a.gguf"), values_of(tmp_path / "b.gguf")
    for target, name in (
        (ATTENTION[2], "blk.1.attn_v.weight"),
        (ATTENTION[1], "blk.1.attn_k.weight"),
    ):
        factor = 10 if target is ATTENTION[2] else 1
        expected = factor * adapters.delta(adapter, target, lora, 4)
        assert np.allclose(ours[name] - before[name], expected, atol=1e-5)


# --- what is refused --------------------------------------------------------------------------


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_tensors(edit: Callable[[safetensors_files.Contents], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = safetensors_files.load(path)
        edit(tensors)
        safetensors_files.save(path, tensors)

    return change


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def edit(tensors: safetensors_files.Contents) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return with_tensors(edit)


def added(name: str, *shape: int) -> Callable[[Path], None]:
    values = np.zeros(shape, np.float32)
    return with_tensors(lambda tensors: tensors.update({name: forms.tensor(values, "F32")}))


Q = f"{adapters.PREFIX}{LAYER}self_attn.q_proj"
X = f"{adapters.PREFIX}{LAYER}mlp.experts"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (with_config(peft_type="IA3"), UnsupportedModelError, "peft_type is 'IA3'; only 'LORA'"),
        (with_config(use_dora=True), UnsupportedModelError,
         "use_dora is set, which is more than plain"),
        (with_config(fan_in_fan_out=True), UnsupportedModelError, "fan_in_fan_out is set"),
        (with_config(init_lora_weights="pissa_niter_4"), UnsupportedModelError,
         "'pissa_niter_4': the"),
        (with_config(lora_alpha=None), CheckpointError,
         "lora_alpha is None; expected a positive number"),
        (with_config(alpha_pattern={"(a+)+$": 1}), UnsupportedModelError,
         "is a regular expression; only plain module names"),
        (renamed("layers.1.", "layers.2."), CheckpointError,
         "matches no gpt-oss matrix, or the base has fewer layers"),
        (renamed("q_proj", "w_proj"), CheckpointError,
         "'model.layers.1.self_attn.w_proj' matches no"),
        (renamed("lora_A", "lora_embedding_A"), CheckpointError,
         "lora_embedding_A.weight' matches no"),
        (added(Q + ".lora_magnitude_vector", 64), CheckpointError,
         "magnitude_vector' matches no gpt-oss tensor"),
        (added(Q + ".lora_B.bias", 64), CheckpointError, "lora_B.bias' matches no gpt-oss tensor"),
        (added(adapters.PREFIX + HEAD, 321, 64), CheckpointError,
         r"has shape \(321, 64\), the base"),
        (with_tensors(lambda t: t.pop(Q + ".lora_B.weight")), CheckpointError,
         "has lora_A but no lora_B"),
        (added(Q + ".lora_A.weight", 4, 96), CheckpointError, "the adapter is for another base"),
        (added(Q + ".lora_A.weight", 5, 64), CheckpointError, "do not make a product"),
        (added(X + ".lora_A.weight", 12, 64), CheckpointError, "do not make a product"),
        (with_config(base_model_name_or_path="openai/gpt-oss-20b"), CheckpointError,
         "'openai/gpt-oss-20b', a 20b model; the base has 2 layers of 4 experts"),
        (with_config(target_modules=["q_proj"]), CheckpointError,
         "has no weights for 'model.layers.0.self_attn.q_proj', although its config targets it"),
        (with_config(target_parameters=["mlp.experts.down_proj"]), CheckpointError,
         "has no weights for 'model.layers.0.mlp.experts.down_proj'"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), CheckpointError,
         r"adapter_model\.safetensors: missing; an adapter's weights must be in safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), CheckpointError,
         r"adapter_config\.json: missing; the folder of a PEFT adapter has it"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(
    square: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[GptossError],
    message: str,
) -> None:
    lora = Lora((ATTENTION[0], *EXPERTS))
    adapters.write(tmp_path / "lora", square, lora)
    damage(tmp_path / "lora")
    with pytest.raises(error, match=message):
        convert(square, tmp_path / "a.gguf", lora=tmp_path / "lora")


def test_an_adapter_of_a_base_with_other_experts(tmp_path: Path) -> None:
    more = random_checkpoint(tmp_path / "more", **SHAPES["square"], experts=8)
    adapters.write(tmp_path / "lora", more, Lora(EXPERTS, rank=1, alpha=1))
    convert(more, tmp_path / "a.gguf", lora=tmp_path / "lora")
    other = random_checkpoint(tmp_path / "other", **SHAPES["square"], experts=3)
    with pytest.raises(CheckpointError, match="the adapter is for another base"):
        convert(other, tmp_path / "b.gguf", lora=tmp_path / "lora")


@pytest.mark.parametrize(("version", "known"), [(None, True), ("0.18.1", True), ("0.19.0", False)])
def test_a_square_tensor_alone(
    square: Path, tmp_path: Path, version: str | None, known: bool
) -> None:
    """Nothing but PEFT's version tells which side A belongs to, and from 0.19 on not even that."""
    lora = Lora(EXPERTS[1:], config={"peft_version": version})
    adapters.write(tmp_path / "lora", square, lora)
    if known:
        convert(square, tmp_path / "a.gguf", lora=tmp_path / "lora")
        return
    with pytest.raises(
        UnsupportedModelError, match="no other tensor shows which side lora_A belongs"
    ):
        convert(square, tmp_path / "a.gguf", lora=tmp_path / "lora")


@pytest.mark.parametrize("dense", ["bf16", "q8_0", "q4_1"])
@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_the_result_is_verified_against_the_sum(
    base: Path, tmp_path: Path, dense: str, experts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = tmp_path / "lora"
    adapters.write(lora, base, ALL)
    options: dict[str, Any] = {"lora": lora, "dense": dense, "experts": experts, "verify": True}
    done = convert(base, tmp_path / "a.gguf", **options)
    assert done.verdict is not None
    assert done.verdict.proven
    keep = tasks._convert

    def damaged(tensor: TensorPlan, *rest: Any) -> Any:
        made = keep(tensor, *rest)
        if tensor.name == "blk.1.ffn_down_exps.weight":
            made[100] ^= 0x40
        return made

    monkeypatch.setattr(tasks, "_convert", damaged)
    with pytest.raises(VerificationError, match=r"blk\.1\.ffn_down_exps\.weight"):
        convert(base, tmp_path / "b.gguf", **options)


def test_files_are_closed_when_nobody_reads(square: Path, tmp_path: Path) -> None:
    adapters.write(tmp_path / "lora", square, Lora(EXPERTS))
    checkpoint = Checkpoint.open(square)
    found = merged.merged(checkpoint, open_adapter(tmp_path / "lora", checkpoint))
    source = found.checkpoint.tensors[EXPERTS[0]].file
    assert isinstance(source, merged.MergedSource)
    source.read_into(0, bytearray(100))
    files = [file for file in source.files if isinstance(file, FileSource)]
    assert [len(file._handles) for file in files] == [1, 1]
    source.close()
    assert [len(file._handles) for file in files] == [0, 0]
