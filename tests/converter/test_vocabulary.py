"""Vocabularies: what is read from a tokenizer's files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType

from gptoss.converter.convert import convert
from gptoss.converter.gguf import vocab
from gptoss.converter.repair.repair import repair
from gptoss.errors import CheckpointError
from support.checkpoints import CONTROL_TOKENS, random_checkpoint

CONTROLS = 256
"""Where the control tokens begin after the 256 bytes."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "checkpoint")


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / name
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_tokens_and_types(folder: Path) -> None:
    found = vocab.read(folder, 320)
    end = CONTROLS + len(CONTROL_TOKENS)
    assert len(found.tokens) == len(found.types) == 320
    assert found.tokens[:3] == ["!", '"', "#"]
    assert found.tokens[CONTROLS:end] == list(CONTROL_TOKENS)
    assert found.tokens[end:] == [f"[PAD{i}]" for i in range(end, 320)]
    assert set(found.types[:CONTROLS]) == {TokenType.NORMAL}
    assert set(found.types[CONTROLS:end]) == {TokenType.CONTROL}
    assert set(found.types[end:]) == {TokenType.UNUSED}
    assert found.chat_template is None


def test_without_a_size_nothing_is_filled_up(folder: Path) -> None:
    found = vocab.read(folder)
    assert len(found.tokens) == CONTROLS + len(CONTROL_TOKENS)
    assert TokenType.UNUSED not in found.types


def test_types_of_added_tokens(folder: Path) -> None:
    """What looks like a control token is one; text to be typed has real spaces."""

    def unflag(tokenizer: dict[str, Any]) -> None:
        for token in tokenizer["added_tokens"]:
            token["special"] = False
        tokenizer["added_tokens"].append({"id": 300, "content": "two▁words", "special": False})

    edit(folder, "tokenizer.json", unflag)
    found = vocab.read(folder, 320)
    assert set(found.types[CONTROLS : CONTROLS + 16]) == {TokenType.CONTROL}
    assert (found.tokens[300], found.types[300]) == ("two words", TokenType.USER_DEFINED)


@pytest.mark.parametrize(
    "merges", [[["a", "b"], ["ab", "c"]], ["a b", "ab c"], ["a b", ["ab", "c"]]]
)
def test_merges_of_both_spellings(folder: Path, merges: list[Any]) -> None:
    def merge(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"].update(ab=300, abc=301)
        tokenizer["model"].update(merges=merges)

    edit(folder, "tokenizer.json", merge)
    assert vocab.read(folder).merges == ["a b", "ab c"]


def test_roles_by_text_then_by_config_then_by_harmony(folder: Path) -> None:
    ids = {token: CONTROLS + i for i, token in enumerate(CONTROL_TOKENS)}

    def roles() -> tuple[int, int, int]:
        found = vocab.read(folder)
        return found.bos, found.eos, found.pad

    usual = (ids["<|startoftext|>"], ids["<|return|>"], ids["<|endoftext|>"])
    assert roles() == usual
    edit(folder, "tokenizer_config.json", lambda s: s.update(eos_token={"content": "<|call|>"}))
    assert roles() == (usual[0], ids["<|call|>"], usual[2])
    (folder / "tokenizer_config.json").unlink()
    edit(folder, "config.json", lambda c: c.update(pad_token_id=7, eos_token_id=[1, 2]))
    assert roles() == (usual[0], usual[1], 7)
    (folder / "config.json").unlink()
    assert roles() == usual


def test_chat_template_of_the_settings_or_beside_them(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from the file")
    assert vocab.read(folder).chat_template == "from the file"
    edit(folder, "tokenizer_config.json", lambda s: s.update(chat_template="from the settings"))
    assert vocab.read(folder).chat_template == "from the settings"
    named = [{"name": "other", "template": "no"}, {"name": "default", "template": "yes"}]
    edit(folder, "tokenizer_config.json", lambda s: s.update(chat_template=named))
    assert vocab.read(folder).chat_template == "yes"


def add(tokenizer: dict[str, Any], text: str, i: int = 300) -> None:
    tokenizer["added_tokens"].append({"id": i, "content": text, "special": False})


def twice_with_spaces(tokenizer: dict[str, Any]) -> None:
    add(tokenizer, "a▁b")
    add(tokenizer, "a b", 301)


def steps(tokenizer: dict[str, Any]) -> list[Any]:
    found: list[Any] = tokenizer["pre_tokenizer"]["pretokenizers"]
    return found


def split_otherwise(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="Unigram"), "no BPE model"),
        (lambda t: t.pop("model"), "no BPE model"),
        (lambda t: t["model"].pop("vocab"), "model.vocab is missing or empty"),
        (lambda t: t["model"]["vocab"].update({"!": 1}), "both have the id 1"),
        (lambda t: t["model"]["vocab"].update({"!": "1"}), "an id that is not an integer"),
        (lambda t: t["model"]["vocab"].update({"new": -1}), "token ids from -1 to"),
        (lambda t: t["model"]["vocab"].update({"new": 10**9}), "to 1000000000"),
        (lambda t: t["added_tokens"][2].update(content="\ud800"), "half of a surrogate pair"),
        (lambda t: t["model"]["vocab"].update({"\ud800": 300}), r"'\\ud800', which is not in byte"),
        (lambda t: t["model"]["vocab"].update({"a b": 300}), "'a b', which is not in byte"),
        (lambda t: t["added_tokens"][0].update(id=1), "both have the id 1"),
        (lambda t: t["added_tokens"][0].update(id=257), "two added tokens have the id 257"),
        (lambda t: t["added_tokens"][0].pop("content"), "not a list of tokens with id and content"),
        (lambda t: t.update(added_tokens=5), "not a list of tokens with id and content"),
        (lambda t: t["model"].pop("merges"), "model.merges is missing"),
        (lambda t: t["model"].update(merges=[["a"]]), r"model.merges\[0\] is \['a'\]; two"),
        (lambda t: t["model"].update(merges=[["a", "b c"]]), r"merges\[0\] is .*; two"),
        (lambda t: t["model"].update(merges=[["a", ""]]), r"merges\[0\] is .*; two"),
        (lambda t: t["model"].update(merges=["ab"]), r"merges\[0\] is 'ab'; two"),
        (lambda t: t["model"].update(merges=["a b c"]), r"merges\[0\] is 'a b c'; two"),
        (lambda t: t["model"].update(merges=[7]), r"merges\[0\] is 7; two"),
        (lambda t: t["model"].update(merges=["a b"]), r"merges\[0\] is 'a b'; two tokens"),
        (lambda t: t["model"]["vocab"].pop("Ġ"), "has no 'Ġ', the token of byte 0x20"),
        (
            lambda t: add(t, "<|call|>"),
            r"tokens\[300\] is .*, expected another text than token 270",
        ),
        (lambda t: add(t, "!"), "another text than token 0 has"),
        (lambda t: add(t, "[PAD319]"), r"tokens\[319\] is '\[PAD319\]', expected another text"),
        (twice_with_spaces, "another text than token 300 has"),
        (lambda t: add(t, ""), r"tokens\[300\] is '', expected a text"),
        (lambda t: add(t, "a\0b"), "holds a text with NUL"),
        (lambda t: t["model"]["vocab"].update({"": 300}), r"tokens\[300\] is ''"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "has a normalizer"),
        (split_otherwise, "does not split text as o200k does: pre_tokenizer's Split has pattern"),
        (lambda t: t.update(pre_tokenizer=None), "is not a sequence of Split and ByteLevel"),
        (lambda t: steps(t)[0].update(behavior="Removed"), "behavior 'Removed'; expected 'Isol"),
        (lambda t: steps(t)[0].update(invert=True), "invert True; expected False"),
        (lambda t: steps(t).insert(1, {"type": "Digits"}), "steps .*'Digits'"),
        (lambda t: steps(t).append(steps(t)[1]), "steps .*'ByteLevel', 'ByteLevel'"),
        (lambda t: steps(t).reverse(), r"steps \['ByteLevel', 'Split'\]; expected"),
        (lambda t: steps(t)[1].update(add_prefix_space=True), "add_prefix_space True"),
        (lambda t: steps(t)[1].pop("use_regex"), "use_regex None; expected False"),
        (lambda t: steps(t).append(5), "steps .*None"),
        (lambda t: t["pre_tokenizer"].update(type="Other"), "has the steps"),
        (lambda t: t["model"].update(dropout=0.1), "model.dropout is 0.1; gpt-oss has none"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
    ],
)
def test_tokenizers_that_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, "tokenizer.json", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        vocab.read(folder, 320)
    assert str(folder / "tokenizer.json") in str(caught.value)


def test_more_tokens_than_rows(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match="token ids from 0 to 271; the embedding has 271 rows"
    ):
        vocab.read(folder, 271)
    assert len(vocab.read(folder, 272).tokens) == 272


def test_no_end_of_turn_anywhere(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    edit(folder, "tokenizer.json", lambda t: t.update(added_tokens=[]))
    with pytest.raises(CheckpointError, match="has no bos token"):
        vocab.read(folder)


def test_a_template_that_is_no_text(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", lambda s: s.update(chat_template=5))
    with pytest.raises(CheckpointError, match="chat_template is not text"):
        vocab.read(folder)
    odd = [{"name": ["default"], "template": "no"}, 5]
    edit(folder, "tokenizer_config.json", lambda s: s.update(chat_template=odd))
    assert vocab.read(folder).chat_template is None
    edit(folder, "tokenizer_config.json", lambda s: s.pop("chat_template"))
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8"):
        vocab.read(folder)


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|call|>", "<|end|>"])
def test_an_end_that_is_not_harmonys_is_noted(folder: Path, tmp_path: Path, end: str) -> None:
    said: list[str] = []
    assert convert(folder, tmp_path / "good.gguf", say=said.append).notes == ()
    assert not said
    edit(folder, "tokenizer_config.json", lambda s: s.update(eos_token=end))
    done = convert(folder, tmp_path / "out.gguf", say=said.append)
    [note] = done.notes
    assert note.startswith(f"eos_token is {end!r}, but a reply of gpt-oss ends with <|return|>")
    assert said == [f"note: {note}"]
    repaired = repair(done.out, tmp_path / "repaired.gguf")
    assert "eos_token_id" in repaired.changes[0]
