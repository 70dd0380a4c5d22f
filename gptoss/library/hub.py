"""What a repository on the Hub offers: a checkpoint to convert, or GGUF files that are finished."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gptoss.converter.gguf import vocab
from gptoss.converter.hub.client import Client, HubError
from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.converter.hub.repository import (
    CONFIG_FILES,
    TOKENIZER_FILES,
    HubId,
    Listing,
    Stream,
    resolve_revision,
)
from gptoss.errors import GgufError
from gptoss.formats.checkpoint import CONFIG, read_config
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_cursor import HEADER_LIMIT
from gptoss.formats.hparams import HParams
from gptoss.library.names import HubModel, did_you_mean
from gptoss.runtime.models.sizes import TokenTable, sparse_gguf

FIRST_READ = 2**24
"""Bytes of a GGUF that are fetched for its header first; the published ones have 13 MB."""
PREFERRED = "mxfp4"
"""In the name of the GGUF that is taken where a repository has several: it is not rounded again."""
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


class Kind(Enum):
    """What is downloaded."""

    CHECKPOINT = "checkpoint"
    GGUF = "GGUF"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a repository has of a model. ``weights`` are to be downloaded, in order; ``small`` has
    the other files with the greatest size of each in bytes.
    """

    wanted: HubModel
    kind: Kind
    listing: Listing
    weights: tuple[HubFile, ...]
    small: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Return how many bytes of weights are offered."""
        return sum(file.size for file in self.weights)


def look_up(wanted: HubModel, client: Client) -> Offer:
    """Ask the Hub what a repository has, at the commit that its revision is now.

    Raises HubError.
    """
    try:
        listing = resolve_revision(client, HubId(wanted.repository, wanted.revision))
    except HubError as error:
        if "no such repository" in str(error) and "mean" in (near := did_you_mean(str(wanted))):
            raise HubError(f"{error}{near}") from error
        raise
    shards = [
        file
        for name, file in sorted(listing.files.items())
        if name.endswith(".safetensors") and "/" not in name
    ]
    if wanted.file is None and CONFIG in listing.files and shards:
        small = {**CONFIG_FILES, **TOKENIZER_FILES}
        return Offer(wanted, Kind.CHECKPOINT, listing, tuple(_hashed(shards)), small)
    return Offer(wanted, Kind.GGUF, listing, tuple(_hashed(choose_gguf(wanted, listing))), {})


def choose_gguf(wanted: HubModel, listing: Listing) -> Sequence[HubFile]:
    """Choose the GGUF that was asked for, of a split one all parts; raises HubError unless exactly
    one is meant.
    """
    models = split_models(listing)
    if not models:
        raise HubError(f"{wanted}: has neither a checkpoint with {CONFIG} nor a GGUF")
    if wanted.file is not None:
        part = wanted.file.casefold()
        named = [it for it in models if it.casefold().rpartition("/")[2] == part]
        named = named or [it for it in models if part in it.casefold()]
    else:
        named = list(models)
        if len(named) > 1:
            named = [it for it in models if PREFERRED in it.casefold()]
    if len(named) == 1:
        return models[named[0]]
    shown = ", ".join(sorted(models)[:8]) + (", …" if len(models) > 8 else "")
    raise HubError(f"{wanted}: name one of its GGUFs, {wanted.repository}:FILE: {shown}")


def split_models(listing: Listing) -> dict[str, list[HubFile]]:
    """Group the GGUF files of a repository into models, by the name of each one's first file.

    Parts that are not all there are left out.
    """
    models: dict[str, list[HubFile]] = {}
    for name, file in listing.files.items():
        if not name.endswith(".gguf") or "mmproj" in name:
            continue
        found = _PART.fullmatch(name)
        if found is None:
            models[name] = [file]
        elif int(found["part"]) == 1:
            parts = [
                listing.files.get(f"{found['stem']}-{i + 1:05}-of-{found['parts']}.gguf")
                for i in range(min(int(found["parts"]), len(listing.files)))
            ]
            whole = [part for part in parts if part is not None]
            if len(whole) == int(found["parts"]):
                models[name] = whole
    return models


def _hashed(files: Sequence[HubFile]) -> Iterator[HubFile]:
    for file in files:
        if file.sha256 is None:
            raise HubError(f"{file}: the Hub publishes no SHA-256 of it")
        yield file


@contextmanager
def headers(offer: Offer, client: Client, *, vocabulary: bool = False) -> Iterator[Path]:
    """Fetch what comes before the weights, and return a GGUF whose data is a hole in the file: the
    offered one, or what would be made of the checkpoint, with its ``vocabulary`` if that is wanted.

    Raises HubError, CheckpointError, and GgufError for a GGUF without a whole header.
    """
    name = offer.listing.repository.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="gptoss-plan-") as temporary:
        folder = Path(temporary)
        if offer.kind is Kind.CHECKPOINT:
            stream = Stream(client, offer.listing, folder)
            stream.fetch(CONFIG_FILES)
            if vocabulary:
                stream.fetch(TOKENIZER_FILES)
            with checkpoint_header(folder, vocabulary=vocabulary) as made:
                yield made.rename(made.with_name(name))
            return
        first = folder / basename(offer.weights[0])
        for limit in (FIRST_READ, HEADER_LIMIT):
            for file in offer.weights:
                _write_beginning(Ranges(client, file), folder / basename(file), limit)
            try:
                GgufFile.open(first)
                break
            except GgufError as error:
                if limit == HEADER_LIMIT:
                    message = str(error).replace(f"{folder}{os.sep}", f"{offer.wanted}: ")
                    raise GgufError(message) from error
        yield first


def checkpoint_header(folder: Path, *, vocabulary: bool) -> AbstractContextManager[Path]:
    """Write the GGUF that would be made of a checkpoint, with a hole for its weights. Raises
    CheckpointError.
    """
    hparams = HParams.from_config(read_config(folder))  # sizes follow from the shape
    if not vocabulary:
        return sparse_gguf(hparams)
    found = vocab.read(folder, hparams.vocab_size)
    return sparse_gguf(hparams, TokenTable(found.tokens, found.types, found.merges))


def _write_beginning(ranges: Ranges, path: Path, limit: int) -> None:
    """Write a file of the remote file's size that has its first ``limit`` bytes."""
    size = ranges.file.size
    data = bytearray(min(limit, size))
    ranges.read_into(0, memoryview(data))
    with path.open("wb") as out:
        out.write(data)
        out.truncate(size)


def basename(file: HubFile) -> str:
    """Return a repository file's name without its folders."""
    return file.name.rpartition("/")[2]
