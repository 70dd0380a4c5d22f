"""What a saved state depends on, as one SHA-256: the model's content and how it is run.

Hashing all of a 12 GB file would take longer than the decoding that the cache saves. The key
covers the whole header (metadata, vocabulary, names, shapes and types of all tensors); of each
tensor all bytes up to 64 KiB, else 16 blocks of 4 KiB from its first bytes to its last; and of each
file its size, inode number and time of last change. So another model or fine-tune has another key,
and so has a file that was copied or written again with the same content. Not noticed is an edit
between the blocks by a program that also sets the time back. Adapters are small: all of their
bytes are covered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from gptoss.formats.byte_source import FileSource
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine.settings import Lora

BLOCK = 4096
N_BLOCKS = 16
"""Blocks of a tensor that the key covers."""

_CHUNK = 1 << 24


class _Hash(Protocol):
    def update(self, data: bytes | bytearray, /) -> None: ...


class ModelFiles:
    """The files that a model is computed from: a GGUF, whose header was read, and adapters.

    To be made before they are loaded: the key of files that were replaced since is refused.
    """

    def __init__(self, header: GgufFile, loras: Sequence[Lora] = ()) -> None:
        """Raises ``InvalidFileError`` for an adapter that cannot be read."""
        self._header = header
        self._loras = [(FileSource(it.path), it.scale) for it in loras]
        for source, _ in self._loras:
            source.close()  # reading opens it again, and notices another file

    def key(self, *settings: str) -> bytes:
        """Return the SHA-256 of the model's content, all of the adapters' content, their scales,
        and the ``settings`` of whatever runs it.

        Raises ``InvalidFileError``, ``OSError``.
        """
        digest = hashlib.sha256("\n".join(settings).encode())
        _add_model(digest, self._header)
        for source, scale in self._loras:
            digest.update(f"\nadapter {source.size} {scale!r} ".encode())
            try:
                for start in range(0, source.size, _CHUNK):
                    _add(digest, source, start, min(_CHUNK, source.size - start))
                source.check_unchanged()
            finally:
                source.close()
        return digest.digest()


def _add_model(digest: _Hash, file: GgufFile) -> None:
    """Add a GGUF's header, the stamps of its files, and samples of its tensors to the key."""
    starts: dict[FileSource, int] = {}
    for tensor in file.tensors.values():
        starts[tensor.file] = min(starts.get(tensor.file, tensor.offset), tensor.offset)
    try:
        for source, start in starts.items():
            found = source.path.stat()
            digest.update(f"\n{found.st_size} {found.st_ino} {found.st_mtime_ns} ".encode())
            _add(digest, source, 0, start)
        for tensor in file.tensors.values():
            for offset, size in _blocks(tensor.nbytes):
                _add(digest, tensor.file, tensor.offset + offset, size)
        for source in starts:
            source.check_unchanged()
    finally:
        for source in starts:
            source.close()


def _blocks(nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield offset and size of the parts of a tensor that its model's key covers."""
    if nbytes <= BLOCK * N_BLOCKS:
        yield 0, nbytes
        return
    for i in range(N_BLOCKS):
        yield (nbytes - BLOCK) * i // (N_BLOCKS - 1), BLOCK


def _add(digest: _Hash, source: FileSource, offset: int, size: int) -> None:
    raw = bytearray(size)
    source.read_into(offset, raw)
    digest.update(raw)
