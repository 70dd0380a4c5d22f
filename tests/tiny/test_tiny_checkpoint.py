"""The bundled checkpoint: in the real model's form, small, and as good as its card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from gptoss.converter.convert import convert
from gptoss.formats.checkpoint import Checkpoint
from gptoss.quant.audit.auditor import audit
from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.harmony.render import render_for_completion
from support.tokens import byte_tokenizer, spelled
from tiny.training import score

FOLDER = score.CHECKPOINT
MOST_BYTES = 8_000_000
WELL_FORMED, RIGHT = 0.98, 0.90
"""Shares that it reaches at least."""
WELL_FORMED_WITH_TOOLS = 0.97
LEAST_WITH_TOOLS = {"python": 0.8, "browser": 0.55}
FEW = 60
OTHER_ROUNDING = 0.01
"""How far shares may be from the card's: another processor rounds sums otherwise."""
LAYER = "model.layers.{i}."
DENSE = {
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.sinks",
    "mlp.router.weight", "mlp.router.bias", "mlp.experts.gate_up_proj_bias",
    "mlp.experts.down_proj_bias",
} | {f"self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")}  # fmt: skip
PACKED = {
    f"mlp.experts.{w}_proj_{part}" for w in ("gate_up", "down") for part in ("blocks", "scales")
}


def test_tensors_have_the_real_names_and_types() -> None:
    checkpoint = Checkpoint.open(FOLDER)
    expected = dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"), "BF16"
    )
    for i in range(checkpoint.config["num_hidden_layers"]):
        expected |= {LAYER.format(i=i) + name: "BF16" for name in DENSE}
        expected |= {LAYER.format(i=i) + name: "U8" for name in PACKED}
    assert {name: info.dtype for name, info in checkpoint.tensors.items()} == expected


def test_config_is_a_small_gpt_oss() -> None:
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["GptOssForCausalLM"]
    assert config["layer_types"][:2] == ["sliding_attention", "full_attention"]
    assert len(config["layer_types"]) == config["num_hidden_layers"] >= 4
    assert config["sliding_window"] == 128
    assert config["head_dim"] == 64
    assert config["hidden_size"] % 32 == config["intermediate_size"] % 32 == 0
    assert 2 <= config["num_experts_per_tok"] < config["num_local_experts"]
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["quantization_config"]["quant_method"] == "mxfp4"


def test_vocabulary_is_o200k_s_first_ranks_and_all_control_tokens() -> None:
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    ranks = sorted(tokenizer["model"]["vocab"].values())
    control = [token["id"] for token in tokenizer["added_tokens"]]
    assert ranks == list(range(len(ranks)))
    assert control == list(range(len(ranks), len(ranks) + 21))
    assert config["vocab_size"] == len(ranks) + 21


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES


@pytest.mark.parametrize("effort", [None, "low", "high"])
def test_chat_template_renders_as_the_runtime(effort: str | None) -> None:
    template = (FOLDER / "chat_template.jinja").read_text("utf-8")
    given = {} if effort is None else {"reasoning_effort": effort}
    found = Jinja2ChatFormatter(template, "<|return|>", "<|startoftext|>")(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "{{ 1 + 1 }}?"},
        ],
        **given,
    ).prompt
    date = re.findall(r"Current date: (.*)", found)
    conversation = [
        m.system(date=date[0], effort=Effort(effort or "medium")),
        m.developer("Be brief."),
        m.user("Hello"),
        m.final("Hi!"),
        m.user("{{ 1 + 1 }}?"),
    ]
    assert found == spelled(render_for_completion(conversation, byte_tokenizer()))


def test_chat_template_declares_no_tools() -> None:
    template = (FOLDER / "chat_template.jinja").read_text("utf-8")
    render = Jinja2ChatFormatter(template, "<|return|>", "<|startoftext|>")
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(ValueError, match="declares no tools"):
        render(messages=[], tools=[{"type": "function", "function": function}])


def test_nothing_in_it_is_worth_a_finding(gguf: Path) -> None:
    for path in (FOLDER, gguf):
        assert audit(path).findings == ()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(FOLDER, path)
    return path


def _check(answers: list[score.Answer]) -> None:
    well_formed, right = score.shares(answers)
    assert well_formed >= WELL_FORMED
    assert right >= RIGHT
    mean = {}
    for effort in Effort:
        lengths = [a.reasoning for a in answers if a.session.scene.effort is effort]
        mean[effort] = sum(lengths) / len(lengths)
    assert mean[Effort.LOW] < mean[Effort.MEDIUM] < mean[Effort.HIGH]


def test_it_talks(gguf: Path) -> None:
    _check(score.score(gguf, FEW))


@pytest.mark.slow
def test_it_talks_as_the_card_says(gguf: Path) -> None:
    answers = score.score(gguf, score.QUESTIONS)
    _check(answers)
    _check_card(answers, "Scores")


@pytest.mark.slow
def test_it_uses_tools_as_the_card_says(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    convert(score.TOOLS_CHECKPOINT, path)
    answers = score.score(path, score.QUESTIONS, tools=True)
    assert score.shares(answers)[0] >= WELL_FORMED_WITH_TOOLS
    _check_card(answers, "Scores with tools")
    for name, least in LEAST_WITH_TOOLS.items():
        of_topic = [it for it in answers if it.session.last.category == name]
        assert sum(it.right for it in of_topic) >= least * len(of_topic)


def _check_card(answers: list[score.Answer], heading: str) -> None:
    """The shares are those of the table in the card's section."""
    card = (FOLDER.parent / "README.md").read_text("utf-8")
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    for name, found in zip(("well formed", "right"), score.shares(answers), strict=True):
        ((part, whole),) = re.findall(rf"^{name} .*\((\d+) of (\d+)\)", section, re.MULTILINE)
        assert abs(int(part) / int(whole) - found) <= OTHER_ROUNDING
