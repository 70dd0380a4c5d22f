"""``gptoss-convert``: a checkpoint folder in, a GGUF file out; or the other way round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from gptoss import console
from gptoss.converter import cli_gguf
from gptoss.converter.convert import Asked, Conversion, VerificationError, convert, look
from gptoss.converter.dense_types import Dense
from gptoss.converter.estimate import preview
from gptoss.converter.gguf import split
from gptoss.converter.source import open_input
from gptoss.converter.transforms.experts import ExpertType, Rounding
from gptoss.errors import OptionError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 90})
@click.argument("source", metavar="SOURCE")
@click.option(
    "-o", "--output", "out", type=console.PATH, metavar="OUT",
    help="The file to write. Its folder must exist. A file already there is replaced once the "
    "new one is complete. With --to hf, the folder to create.",
)  # fmt: skip
@click.option(
    "--stream", is_flag=True,
    help="Leave a repository on the Hub there, and read of its weights what is needed, as it is "
    "needed: the disk has to hold the result alone.",
)  # fmt: skip
@click.option(
    "--dense", type=click.Choice([dense.value for dense in Dense]), default=Dense.Q8_0.value,
    show_default=True,
    help="The type of the dense matrices (attention, embedding, output), which the checkpoint "
    "has in BF16: q8_0 is half as large and what the published GGUFs use; bf16 keeps every bit; "
    "f16 and f32 are for hardware without BF16; the others are smaller and lose more.",
)  # fmt: skip
@click.option(
    "--type", "types", multiple=True, metavar="GROUP=TYPE",
    help="Another type for one group of them: attention, embedding or output. May be given more "
    "than once.",
)  # fmt: skip
@click.option(
    "--split-max-size", metavar="SIZE",
    help="Cut the result into files of at most this size, such as 5G or 700M: OUT-00001-of-00003"
    ".gguf and so on. llama.cpp is given the first. Tensors are never cut. Of a GGUF as SOURCE the "
    "mended one is cut so, and written too where nothing else changes.",
)  # fmt: skip
@click.option(
    "--plan", "only_plan", is_flag=True,
    help="Write nothing; print what would be written: each tensor's type, shape, bytes, transform "
    "and source, then the disk, memory and time that it takes; of a GGUF, what would be changed. "
    "Reads headers only; OUT may be left out.",
)  # fmt: skip
@click.option(
    "--verify",
    is_flag=True,
    help="Compare the result with SOURCE, to the last bit, before it takes its place. With "
    "--stream the weights are read from the Hub a second time for it.",
)
@click.option(
    "--experts", type=click.Choice([kind.value for kind in ExpertType]),
    default=ExpertType.MXFP4.value, show_default=True,
    help="The type of the experts. Those that a fine-tune holds in floats are encoded to mxfp4, "
    "with the least error; bf16, four times as large, is for hardware without MXFP4.",
)  # fmt: skip
@click.option(
    "--base", type=console.PATH, metavar="FOLDER",
    help="The MXFP4 checkpoint that SOURCE was fine-tuned from. Blocks that the fine-tune left "
    "alone keep their codes and scales to the bit, and square matrices are compared with it to "
    "see which way they stand. Of a GGUF as SOURCE: the checkpoint whose config and tokenizer say "
    "what should be in it; weights are not needed.",
)  # fmt: skip
@click.option(
    "--lora", type=console.PATH, metavar="FOLDER",
    help="A PEFT LoRA adapter made for SOURCE: its deltas are added, experts' too, in float32, "
    "and rounded once. One that would not be taken up whole is refused.",
)  # fmt: skip
@click.option(
    "--allow-nonfinite", is_flag=True,
    help="Go on when weights are NaN or infinite, where the type has such values.",
)  # fmt: skip
@click.option(
    "--to", type=click.Choice(cli_gguf.CHOICES), default=cli_gguf.TO_GGUF, show_default=True,
    help="From a GGUF back to a Hugging Face checkpoint: hf keeps the experts in MXFP4, as "
    "published; hf-bf16 has them in BF16, as fine-tuning wants them.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=console.PATH, metavar="FOLDER",
    help="Where tokenizer.json is, when neither in SOURCE nor above its original/.",
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

    SOURCE is a checkpoint's folder as published on Hugging Face: config.json, tokenizer.json,
    tokenizer_config.json and the weights, in one model.safetensors or in the shards that
    model.safetensors.index.json names; or OpenAI's own layout of it, original/; or a fine-tune
    in BF16, F16 or F32. Experts in MXFP4 stay so, bit for bit, repacked for llama.cpp.
    Vocabulary and chat template go into the file.

    Or SOURCE is OWNER/NAME or OWNER/NAME@REVISION, a repository on the Hub; a folder of that name
    comes first. It is downloaded to huggingface_hub's cache, or with --stream never stored.
    HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they mean there. What comes is
    compared with the sha256 that the Hub publishes, and the manifest says of which files.

    Nothing is loaded whole: a model of any size takes less than half a GB of memory. Until the
    file is complete nothing stands at OUT.gguf; it grows in the hidden folder .OUT.gguf.part beside
    it. After an interrupt, or a power cut, the same command goes on from there. What was made of
    what, with a sha256 of every tensor, is written to OUT.gguf.manifest.json,
    or with --to hf to gptoss.manifest.json in the folder.

    SOURCE may be a GGUF, of several files the first. It is mended: RoPE's keys and other missing
    ones are added, control tokens and end of reply put right, Ollama's names and layout turned into
    llama.cpp's; each change is listed, and no value of a tensor changes. With --to hf it becomes a
    checkpoint again, and OUT is a folder to create. Where the GGUF's dense tensors are in BF16 the
    checkpoint has the very bytes that the GGUF was made of.

    \b
    Examples:
      gptoss-convert gpt-oss-20b -o gpt-oss-20b.gguf
      gptoss-convert openai/gpt-oss-20b -o gpt-oss-20b.gguf --stream
      gptoss-convert gpt-oss-20b --plan
      gptoss-convert gpt-oss-20b -o gpt-oss-20b-bf16.gguf --dense bf16
      gptoss-convert gpt-oss-20b -o small.gguf --type embedding=q4_0
      gptoss-convert gpt-oss-120b -o big.gguf --split-max-size 20G --verify
      gptoss-convert my-finetune --base gpt-oss-20b -o my-finetune.gguf
      gptoss-convert from-ollama.gguf -o gpt-oss-20b.gguf --base gpt-oss-20b
      gptoss-convert gpt-oss-20b.gguf -o gpt-oss-20b --to hf
      gptoss-convert gpt-oss-20b --lora my-adapter -o my-model.gguf

    \b
    Exit codes:
      0    converted
      1    --verify found a difference; nothing was left at OUT.gguf
      2    the checkpoint or the request is wrong: one line says what, and where
      130  interrupted; what is done is kept
    """
    cli_gguf.check_options(context, Path(source), to)
    limit = split.size(split_max_size) if split_max_size is not None else None
    asked = Asked(
        dense=dense,
        types=_types(types),
        experts=experts,
        base=base,
        lora=lora,
        allow_nonfinite=allow_nonfinite,
        tokenizer=tokenizer,
    )
    if only_plan and cli_gguf.is_gguf(Path(source)):
        cli_gguf.plan(Path(source), out, to, base, limit, as_json)
        return
    if only_plan:
        with open_input(source, stream=stream, headers_only=True, say=console.say) as given:
            opened, planned = look(given, **asked)
            found = preview(planned, out, limit)
        for note in opened.notes:
            console.say(f"note: {note}")
        console.answer(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))
        return
    if out is None:
        raise click.UsageError("Missing option '-o' / '--output'.", context)
    if cli_gguf.is_gguf(Path(source)):
        cli_gguf.run(Path(source), out, to, base, limit, as_json)
        return
    try:
        with (
            open_input(source, stream=stream, shown=not as_json, say=console.say) as given,
            console.meters("converting", "verifying", shown=not as_json) as meters,
        ):
            done = convert(
                given,
                out,
                split_max_size=limit,
                verify=verify,
                progress=meters[0],
                verify_progress=meters[1],
                say=console.say,
                **asked,
            )
    except VerificationError as error:
        console.say(f"error: {error}")
        context.exit(1)
    if as_json:
        console.answer(json.dumps(_summary(done)))
        return
    console.answer(_sentence(done))
    if done.roundings:
        console.answer(_rounding(done.roundings))


def _types(given: tuple[str, ...]) -> dict[str, str]:
    """``GROUP=TYPE`` options by group."""
    types: dict[str, str] = {}
    for option in given:
        group, sign, name = option.partition("=")
        if not sign:
            raise OptionError(f"--type {option!r}: GROUP=TYPE is expected, such as embedding=q4_0")
        if group in types:
            raise OptionError(f"--type {option!r}: the {group} has the type {types[group]} already")
        types[group] = name
    return types


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


def _sentence(done: Conversion) -> str:
    rate = (done.nbytes - done.resumed) / done.seconds / 1e6
    first, n = done.files[0], len(done.files)
    return (
        f"{first}{f' and {n - 1} more' if n > 1 else ''}: {done.tensors} tensors, "
        f"{done.nbytes:,} bytes, dense {done.dense}, in {done.seconds:.1f} s ({rate:.0f} MB/s)"
        f"{'; proven: it holds what the source holds' if done.verdict else ''}"
        f"{_provenance(done) if done.revision else ''}"
    )


def _rounding(roundings: Mapping[str, Rounding]) -> str:
    blocks = sum(rounding.blocks for rounding in roundings.values())
    exact = sum(rounding.exact for rounding in roundings.values())
    said = f"experts encoded to MXFP4: {exact:,} of {blocks:,} blocks without a difference"
    if exact == blocks:
        return said
    name, worst = max(roundings.items(), key=lambda item: item[1].relative_error)
    return f"{said}; the largest relative error of a tensor: {worst.relative_error:.2g}, {name}"


def _provenance(done: Conversion) -> str:
    files = "1 file has" if len(done.checked) == 1 else f"{len(done.checked)} files have"
    return f"\n{done.source} at commit {done.revision}; {files} the sha256 published there"


def main() -> None:
    """The command's entry point."""
    console.run(command)
