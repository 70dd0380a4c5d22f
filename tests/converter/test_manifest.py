"""The manifest says what is in the file, and the digests are those of its bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter import convert as conversion
from gptoss.converter.convert import VerificationError, convert
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify.result import KeyDifference, Verdict
from support.checkpoints import random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("source") / "model", shards=2)


@pytest.mark.parametrize("limit", [None, 60_000])
def test_every_tensor(checkpoint: Path, tmp_path: Path, limit: int | None) -> None:
    done = convert(
        checkpoint, tmp_path / "m.gguf", types={"output": "bf16"}, split_max_size=limit, verify=True
    )
    assert done.manifest == tmp_path / "m.gguf.manifest.json"
    found = json.loads(done.manifest.read_text())
    assert found["tool"]["name"] == "gptoss-toolkit"
    assert found["source"]["place"] == str(checkpoint)
    assert found["dense"] == {"attention": "q8_0", "embedding": "q8_0", "output": "bf16"}
    assert [entry["name"] for entry in found["source"]["files"]] == sorted(
        path.name for path in checkpoint.glob("*.safetensors")
    )
    assert found["files"] == [{"name": p.name, "bytes": p.stat().st_size} for p in done.files]
    assert found["verify"]["proven"] is True
    assert found["verify"]["gguf"] == str(tmp_path / "m.gguf")
    tensors = GgufFile.open(done.files[0]).tensors
    assert [entry["name"] for entry in found["tensors"]] == list(tensors)
    consumed = set()
    for entry in found["tensors"]:
        tensor = tensors[entry["name"]]
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            digest = hashlib.sha256(file.read(tensor.nbytes)).hexdigest()
        assert entry["sha256"] == digest, entry["name"]
        assert (entry["file"], entry["bytes"]) == (tensor.path.name, tensor.nbytes)
        assert (entry["type"], tuple(entry["shape"])) == (tensor.type.name, tensor.shape)
        consumed.update(entry["sources"])
    assert consumed == set(Checkpoint.open(checkpoint).tensors)
    by_name = {entry["name"]: entry for entry in found["tensors"]}
    assert by_name["output.weight"]["transform"] == "copy"
    assert by_name["blk.1.ffn_up_exps.weight"]["transform"] == "MXFP4 repack, odd rows"


def test_the_same_conversion_gives_the_same_manifest(checkpoint: Path, tmp_path: Path) -> None:
    first = convert(checkpoint, tmp_path / "m.gguf").manifest.read_bytes()
    assert convert(checkpoint, tmp_path / "m.gguf").manifest.read_bytes() == first
    assert json.loads(first)["verify"] is None


def test_a_result_that_is_not_proven_is_thrown_away(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"older")

    def differs(source: Any, gguf: Any, **_: Any) -> Verdict:
        assert GgufFile.open(gguf).tensors
        difference = KeyDifference("gpt-oss.rope.freq_base", "150000.0", "nothing")
        return Verdict(str(source), str(gguf), 1, 1, 1, (difference,), ())

    monkeypatch.setattr(conversion, "verify_files", differs)
    with pytest.raises(VerificationError, match=r"rope\.freq_base: expected 150000\.0, found"):
        convert(checkpoint, out, verify=True)
    assert out.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [out]
