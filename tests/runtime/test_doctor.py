"""``gptoss-run doctor``: llama.cpp tested in a child process, and what is around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gptoss.runtime.models import doctor
from gptoss.runtime.models.doctor import (
    BACKENDS,
    Diagnosis,
    backends_here,
    diagnose,
    reinstall_command,
)
from gptoss.runtime.models.doctor_command import doctor_command


def test_this_machine_is_well() -> None:
    done = CliRunner().invoke(doctor_command, ["--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["healthy"]
    assert [it["decode"] for it in told["found"]["devices"]] == ["ok"] * len(
        told["found"]["devices"]
    )
    assert any(it["kind"] == "cpu" and it["total"] > 1e8 for it in told["found"]["devices"])
    assert Path(told["found"]["folder"]).is_dir()
    assert set(told["reinstall"]) == set(backends_here())


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_every_library_is_loaded_once() -> None:
    """The installed libraries are there several times, under names with and without versions."""
    loaded = [Path(it).name for it in diagnose().found["loaded"]]
    stems = [name.partition(".so")[0] for name in loaded]
    assert {"libggml", "libggml-base", "libllama"} <= set(stems)
    assert len(stems) == len(set(stems)), loaded


def test_for_people() -> None:
    said = CliRunner().invoke(doctor_command, []).output
    assert "decodes: ok" in said
    assert "RPC: not in this build" in said
    assert "-DGGML_RPC=on" in said
    lines = [it.split()[1].rstrip(":") for it in said.splitlines() if it.startswith("for ")]
    assert lines == [*backends_here()]


@pytest.mark.parametrize(
    ("system", "names"),
    [
        ("linux", ("CUDA", "Vulkan", "RPC")),
        ("win32", ("CUDA", "Vulkan", "RPC")),
        ("darwin", ("Metal", "RPC")),
    ],
)
def test_only_commands_that_can_work(
    system: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert backends_here() == names


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_to_reinstall(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    said = reinstall_command(backend, "0.3.36")
    assert said.startswith(f'CMAKE_ARGS="-DGGML_{backend.upper()}=on" ')
    assert said.endswith("llama-cpp-python==0.3.36")
    monkeypatch.setattr(sys, "platform", "win32")
    assert reinstall_command(backend, "0.3.36").startswith("$env:CMAKE_ARGS=")


def of_child(monkeypatch: pytest.MonkeyPatch, code: str) -> Diagnosis:
    """Diagnose with a test process that runs ``code`` instead."""
    run = doctor.subprocess.run  # type: ignore[attr-defined]
    monkeypatch.setattr(
        doctor.subprocess,  # type: ignore[attr-defined]
        "run",
        lambda *_, **options: run([sys.executable, "-c", code], **options),
    )
    return diagnose()


def test_a_process_that_crashes_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """print('{"testing": "CUDA0"}', flush=True)
import os, sys
print("driver \\x1b[2J too old", file=sys.stderr, flush=True)
os._exit(3)"""
    found = of_child(monkeypatch, code)
    assert not found.healthy
    [problem] = found.problems
    assert problem == (
        "llama.cpp's process ended with 3 when it tested CUDA0: driver \\x1b[2J too old"
    )


def test_a_device_that_does_not_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    device = {"name": "CUDA0", "description": "x", "kind": "gpu", "free": 1, "total": 2}
    answer = {"folder": "/", "loaded": [], "devices": [device | {"decode": "no memory left"}]}
    found = of_child(monkeypatch, f"print({json.dumps(answer)!r})")
    assert found.problems == ("CUDA0: no memory left",)
    assert found.hints == ()


def test_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 0.1)
    found = of_child(monkeypatch, "import time; time.sleep(20)")
    assert "did not answer" in found.problems[0]


def test_another_copy_on_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libggml-base.so").write_text("")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:{tmp_path / 'missing'}")
    elsewhere = tmp_path / "other" / "libllama.so"
    answer = {"folder": "/", "loaded": [str(elsewhere)], "devices": []}
    found = of_child(monkeypatch, f"print({json.dumps(answer)!r})")
    assert len(found.problems) == 2
    assert f"{elsewhere} is loaded instead of the one in /" in found.problems
    assert any(it.startswith(f"LD_LIBRARY_PATH names {tmp_path}, ") for it in found.problems)


def test_two_installations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "llama_cpp_python-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: llama_cpp_python\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = of_child(monkeypatch, """print('{"folder": "/", "loaded": [], "devices": []}')""")
    [problem] = found.problems
    assert problem.startswith(f"several llama-cpp-python are installed: 0.1.0 in {tmp_path} and ")


def test_a_library_path_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/nowhere")
    done = CliRunner().invoke(doctor_command, [])
    assert done.exit_code == 1
    assert "problem: LLAMA_CPP_LIB_PATH names /nowhere, which is not a folder" in done.output
