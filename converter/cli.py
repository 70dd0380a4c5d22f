"""``gptoss-convert``: a checkpoint to a GGUF, or the other way round."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from gptoss import console, progress_bars
from gptoss.console import ExitCode
from gptoss.converter import cli_gguf
from gptoss.converter.convert import (
    Conversion,
    VerificationError,
    Watch,
    convert_input,
    plan_conversion,
)
from gptoss.converter.dense_types import Dense
from gptoss.converter.estimate import Estimate, estimate
from gptoss.converter.gguf.split import parse_size
from gptoss.converter.options import ConvertOptions
from gptoss.converter.source import open_input
from gptoss.converter.transforms.float_experts import ExpertType, Rounding
from gptoss.errors import OptionError
from gptoss.quant.verify.result import Outcome


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 90})
@click.argument("source", metavar="SOURCE")
@click.option(
    "-o", "--output", "out", type=console.PATH, metavar="OUT",
    help="The file to write. Its folder must exist. An existing file is replaced once the new one "
    "is complete. With --to hf, the folder to create.",
)  # fmt: skip
@click.option(
    "--stream", is_flag=True,
    help="Stream weights from the Hub instead of downloading them first. Only the output needs "
    "disk space.",
)  # fmt: skip
@click.option(
    "--dense", type=click.Choice([dense.value for dense in Dense]), default=Dense.Q8_0.value,
    show_default=True,
    help="The type of the dense matrices (attention, embedding, output), which are BF16 in the "
    "checkpoint. q8_0 is half as large and is used by the published GGUFs; bf16 is exact; f16 and "
    "f32 are for hardware without BF16; the others are smaller and less accurate.",
)  # fmt: skip
@click.option(
    "--type", "types", multiple=True, metavar="GROUP=TYPE",
    help="Another type for one group of dense matrices: attention, embedding or output. May be "
    "given more than once.",
)  # fmt: skip
@click.option(
    "--split-max-size", metavar="SIZE",
    help="Split the result into files of at most this size, such as 5G or 700M: OUT-00001-of-00003"
    ".gguf and so on. Pass the first file to llama.cpp. No tensor is split across files. Also "
    "splits a GGUF given as SOURCE; without this option, a split GGUF is joined into one file.",
)  # fmt: skip
@click.option(
    "--plan", "only_plan", is_flag=True,
    help="A dry run: write nothing, print the size of the result and the disk space and memory "
    "needed; for a GGUF, what would be changed. Reads headers only. --output may be omitted.",
)  # fmt: skip
@click.option(
    "--verbose", is_flag=True,
    help="With --plan, also list every tensor: type, shape, bytes, transform and source.",
)  # fmt: skip
@click.option(
    "--verify",
    is_flag=True,
    help="Compare the result with SOURCE, bit by bit, before it is moved to OUT. With --stream, "
    "the weights are read from the Hub a second time.",
)
@click.option(
    "--experts", type=click.Choice([kind.value for kind in ExpertType]),
    default=ExpertType.MXFP4.value, show_default=True,
    help="The type of the experts. Experts that a fine-tune stores as floats are encoded to mxfp4 "
    "with the least error. bf16, four times as large, is for hardware without MXFP4.",
)  # fmt: skip
@click.option(
    "--base", type=console.PATH, metavar="FOLDER",
    help="The MXFP4 checkpoint that SOURCE was fine-tuned from. Blocks that the fine-tune did not "
    "change keep their exact codes and scales, and square matrices are compared with it to see "
    "whether they are transposed. For a GGUF as SOURCE: the checkpoint whose config and tokenizer "
    "it should have; weights are not needed.",
)  # fmt: skip
@click.option(
    "--lora", type=console.PATH, metavar="FOLDER",
    help="A PEFT LoRA adapter for SOURCE. Its deltas are added in float32, to experts too, and "
    "rounded once. An adapter with weights that match no tensor of the model is rejected.",
)  # fmt: skip
@click.option(
    "--allow-nonfinite", is_flag=True,
    help="Convert weights that are NaN or infinite, where the type can hold them.",
)  # fmt: skip
@click.option(
    "--to", type=click.Choice(cli_gguf.CHOICES), default=cli_gguf.TO_GGUF, show_default=True,
    help="Convert a GGUF back to a Hugging Face checkpoint. hf keeps the experts in MXFP4, as "
    "published; hf-bf16 has them in BF16, for fine-tuning.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=console.PATH, metavar="FOLDER",
    help="The folder of tokenizer.json, if it is neither in SOURCE nor above its original/.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON, for programs.")
@console.VERSION
@click.pass_context
def command(
    context: click.Context,
    source: str,
    out: Path | None,
    stream: bool,
    dense: str,
    types: tuple[str, ...],
    split_max_size: str | None,
    only_plan: bool,
    verbose: bool,
    verify: bool,
    experts: str,
    base: Path | None,
    lora: Path | None,
    allow_nonfinite: bool,
    to: str,
    tokenizer: Path | None,
    as_json: bool,
) -> None:
    """Convert a gpt-oss checkpoint to a GGUF file that llama.cpp runs.

    SOURCE is a checkpoint folder as published on Hugging Face: config.json, tokenizer.json,
    tokenizer_config.json, and the weights in model.safetensors or in the shards listed in
    model.safetensors.index.json. It can also be OpenAI's own layout, original/, or a fine-tune in
    BF16, F16 or F32. MXFP4 experts keep every bit; they are only rearranged for llama.cpp. The
    vocabulary and the chat template are included.

    Or SOURCE is OWNER/NAME or OWNER/NAME@REVISION, a repository on the Hub, unless a local folder
    has that name. It is downloaded to huggingface_hub's cache, or, with --stream, not stored at
    all. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as in huggingface_hub. Downloads are
    compared with the SHA-256 that the Hub publishes, and the manifest lists the files compared.

    Memory use stays below 0.5 GB for any model size. The output is written to a hidden folder,
    .OUT.gguf.part, and moved to OUT.gguf only when complete. After an interrupt or a power failure
    the same command resumes. A manifest with the source and SHA-256 of every tensor is written to
    OUT.gguf.manifest.json, or with --to hf to gptoss.manifest.json in the folder.

    SOURCE may also be a GGUF (for a split model, its first file). It is repaired: missing RoPE and
    other metadata is added, control and end-of-turn tokens are corrected, and Ollama's names and
    layout are converted to llama.cpp's. Every change is listed, and no tensor value changes. With
    --to hf it becomes a checkpoint again, in a new folder OUT. If the GGUF's dense tensors are
    BF16, every tensor is byte-identical to the original checkpoint's.

    \b
    Examples:
      gptoss-convert openai/gpt-oss-20b -o gpt-oss-20b.gguf
      gptoss-convert openai/gpt-oss-20b -o gpt-oss-20b.gguf --stream
      gptoss-convert gpt-oss-20b -o gpt-oss-20b.gguf
      gptoss-convert gpt-oss-20b --plan
      gptoss-convert gpt-oss-20b -o gpt-oss-20b-bf16.gguf --dense bf16
      gptoss-convert gpt-oss-20b -o small.gguf --type embedding=q4_0
      gptoss-convert gpt-oss-120b -o big.gguf --split-max-size 20G --verify
      gptoss-convert my-finetune --base gpt-oss-20b -o my-finetune.gguf
      gptoss-convert from-ollama.gguf -o gpt-oss-20b.gguf --base gpt-oss-20b
      gptoss-convert big-00001-of-00004.gguf -o joined.gguf
      gptoss-convert gpt-oss-20b.gguf -o gpt-oss-20b --to hf
      gptoss-convert gpt-oss-20b --lora my-adapter -o my-model.gguf

    \b
    Exit codes:
      0    converted
      1    --verify found a difference, and the output was discarded;
           or --plan found too little disk space
      2    the checkpoint or the request is invalid; one line says what is wrong
      3    --verify could not prove the output, and it was discarded
      130  interrupted; what is done is kept
    """
    cli_gguf.check_options(context, Path(source), to)
    limit = parse_size(split_max_size) if split_max_size is not None else None
    if cli_gguf.is_gguf(Path(source)):
        if only_plan:
            fits = cli_gguf.plan(Path(source), out, to, base, limit, as_json, verbose)
            context.exit(ExitCode.DONE if fits else ExitCode.NO)
        cli_gguf.run(Path(source), _required(context, out), to, base, limit, as_json)
        return
    options = ConvertOptions(
        dense=dense,
        types=parse_type_overrides(types),
        experts=experts,
        base=base,
        lora=lora,
        allow_nonfinite=allow_nonfinite,
        tokenizer=tokenizer,
    )
    if only_plan:
        with open_input(source, stream=stream, headers_only=True, say=console.say) as given:
            opened, planned = plan_conversion(given, options)
            found = estimate(planned, out, limit)
        _print_plan(found, opened.notes, as_json=as_json, verbose=verbose)
        context.exit(ExitCode.DONE if found.fits else ExitCode.NO)
    out = _required(context, out)
    try:
        with (
            open_input(source, stream=stream, shown=not as_json, say=console.say) as given,
            progress_bars.meters("converting", "verifying", shown=not as_json) as meters,
        ):
            watch = Watch(progress=meters[0], verify_progress=meters[1], say=console.say)
            done = convert_input(
                given, out, options, split_max_size=limit, verify=verify, watch=watch
            )
    except VerificationError as error:
        console.say(f"error: {error}")
        undecided = error.verdict.outcome is Outcome.NOT_JUDGED
        context.exit(ExitCode.NOT_JUDGED if undecided else ExitCode.NO)
    if as_json:
        console.answer(json.dumps(_summary(done)))
        return
    console.answer_lines(_sentences(done))


def parse_type_overrides(given: tuple[str, ...]) -> dict[str, str]:
    """Parse the command line's ``--type GROUP=TYPE`` options to the dense type of each group.
    Raises ``OptionError``.
    """
    types: dict[str, str] = {}
    for option in given:
        group, sign, name = option.partition("=")
        if not sign:
            raise OptionError(f"--type {option!r}: expected GROUP=TYPE, such as embedding=q4_0")
        if group in types:
            raise OptionError(f"--type {option!r}: {group} already has the type {types[group]}")
        types[group] = name
    return types


def _print_plan(found: Estimate, notes: Sequence[str], *, as_json: bool, verbose: bool) -> None:
    for note in notes:
        console.say(f"note: {note}")
    if as_json:
        console.answer(json.dumps(found.to_json()))
    else:
        console.answer_lines(found.lines(verbose=verbose))


def _required(context: click.Context, out: Path | None) -> Path:
    if out is None:
        raise click.UsageError("Missing option '-o' / '--output'.", context)
    return out


def _summary(done: Conversion) -> dict[str, object]:
    return {
        "source": done.source,
        "revision": done.revision,
        "checked_sha256": dict(done.checked),
        "files": [str(path) for path in done.files],
        "manifest": str(done.manifest),
        "dense": done.dense.to_json(),
        "experts": done.experts.value,
        "rounding": {name: asdict(rounding) for name, rounding in done.roundings.items()},
        "notes": list(done.notes),
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "resumed": done.resumed,
        "verified": done.verdict.proven if done.verdict else None,
        "seconds": round(done.seconds, 3),
    }


def _sentences(done: Conversion) -> Iterator[str]:
    rate = (done.nbytes - done.resumed) / done.seconds / 1e6
    first, n = done.files[0], len(done.files)
    yield (
        f"{first}{f' and {n - 1} more' if n > 1 else ''}: {done.tensors} tensors, "
        f"{done.nbytes:,} bytes, dense {done.dense}, in {done.seconds:.1f} s ({rate:.0f} MB/s)"
        f"{'; proven equal to the source' if done.verdict else ''}"
    )
    if done.revision:
        yield _provenance(done)
    if done.roundings:
        yield _rounding(done.roundings)


def _rounding(roundings: Mapping[str, Rounding]) -> str:
    blocks = sum(rounding.blocks for rounding in roundings.values())
    exact = sum(rounding.exact for rounding in roundings.values())
    exactly = f"experts encoded to MXFP4: {exact:,} of {blocks:,} blocks exactly"
    if exact == blocks:
        return exactly
    name, worst = max(roundings.items(), key=lambda item: item[1].relative_error)
    return f"{exactly}; largest relative error of a tensor: {worst.relative_error:.2g}, {name}"


def _provenance(done: Conversion) -> str:
    files = "1 file" if len(done.checked) == 1 else f"{len(done.checked)} files"
    return f"{done.source} at commit {done.revision}; sha256 of {files} equal to the published ones"


def main() -> None:
    """Run the command ``gptoss-convert`` and exit with its exit code."""
    console.run(command)
