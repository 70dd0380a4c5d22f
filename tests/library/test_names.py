"""What a person may call a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.errors import OptionError
from gptoss.library.finder import key
from gptoss.library.names import HubModel, did_you_mean, hub_model
from gptoss.library.store import ModelFolder

OPENAI = HubModel("openai/gpt-oss-20b")
V1 = HubModel("openai/gpt-oss-20b", "v1")
UNSLOTH = "unsloth/gpt-oss-20b-GGUF"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("20b", OPENAI),
        ("120B", HubModel("openai/gpt-oss-120b")),
        ("gpt-oss-20b", OPENAI),
        ("gpt-oss:20b", OPENAI),
        ("openai/gpt-oss-20b", OPENAI),
        ("openai/gpt-oss-20b@abc", HubModel("openai/gpt-oss-20b", "abc")),
        ("https://huggingface.co/openai/gpt-oss-20b", OPENAI),
        ("https://huggingface.co/openai/gpt-oss-20b/", OPENAI),
        ("https://huggingface.co/openai/gpt-oss-20b/tree/main", OPENAI),
        ("https://huggingface.co/openai/gpt-oss-20b/tree/v1?x=1#y", V1),
        ("hf.co/openai/gpt-oss-20b", OPENAI),
        (f"hf.co/{UNSLOTH}:Q8_0", HubModel(UNSLOTH, file="Q8_0")),
        (f"{UNSLOTH}:Q8_0", HubModel(UNSLOTH, file="Q8_0")),
        (
            f"https://huggingface.co/{UNSLOTH}/blob/main/a/gpt-oss-20b-F16.gguf?download=true",
            HubModel(UNSLOTH, file="gpt-oss-20b-F16.gguf"),
        ),
        ("model.gguf", None),
        ("./a/b", None),
        ("../a", None),
        ("a/b/c", None),
        ("", None),
    ],
)  # fmt: skip
def test_names(name: str, model: HubModel | None) -> None:
    assert hub_model(name) == model


@pytest.mark.parametrize("url", ["https://example.org/a/b", "ftp://huggingface.co/a/b"])
def test_another_site(url: str) -> None:
    with pytest.raises(OptionError, match="a repository's page on"):
        hub_model(url)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai/gpt-oss-20", "openai/gpt-oss-20b"),
        ("gpt-oss20b", "openai/gpt-oss-20b"),
        ("gptoss-120b", "openai/gpt-oss-120b"),
        ("models/gpt-oss-20b.gguf", "openai/gpt-oss-20b"),
    ],
)
def test_did_you_mean(name: str, meant: str) -> None:
    assert did_you_mean(name) == f"; did you mean {meant}?"


def test_nothing_near() -> None:
    assert did_you_mean("llama.gguf").startswith("; name a GGUF")
    assert did_you_mean("20b", published=False, otherwise="none is") == "; none is"
    assert did_you_mean("my-tune", ["local/my-tune-1"]) == "; did you mean local/my-tune-1?"


WORDS = st.text(alphabet="aB0._-", min_size=1, max_size=6)
OTHERS = st.text(alphabet="a./\\~%+-\0", min_size=1, max_size=12)


@given(WORDS, WORDS, st.none() | OTHERS, st.none() | OTHERS)
def test_no_name_leads_out_of_the_folder(
    owner: str, name: str, revision: str | None, file: str | None
) -> None:
    """Also ``..`` and absolute paths in a revision or file."""
    folder = ModelFolder()
    at = "" if revision is None else f"@{revision}"
    try:
        model = hub_model(f"{owner}/{name}{at}{'' if file is None else f':{file}'}")
        path = folder.folder(key(model)) if model is not None else None
    except OptionError:  # such as a URL of another site
        return
    if path is not None:
        assert path.resolve().is_relative_to(folder.root.resolve())
        assert path.resolve() != folder.root.resolve()
