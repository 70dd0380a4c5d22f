"""Download a checkpoint to huggingface_hub's cache, and check it there.

huggingface_hub downloads what a conversion needs, once. In its cache, files of git-lfs are named by
the sha256 that the Hub publishes; it is compared with their content here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gptoss.converter.hub.client import Client, HubError, RetryPolicy, importing
from gptoss.converter.hub.remote_file import HashMismatchError
from gptoss.converter.hub.repository import (
    CONFIG_FILES,
    TOKENIZER_FILES,
    HubId,
    resolve_revision,
)
from gptoss.errors import CheckpointError
from gptoss.formats.byte_source import FileSource
from gptoss.progress import Say

CHUNK = 2**22
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(wanted: HubId, *, shown: bool = False, say: Say | None = None) -> Path:
    """Download the checkpoint files that a conversion needs to huggingface_hub's cache; returns
    their folder in the cache.

    Files already there are not downloaded again, and without a network they are used as they are.
    The folder's name is the commit. ``shown`` draws huggingface_hub's progress bars if stderr is a
    terminal. Raises ``HubError``.
    """
    with importing():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            # tqdm has no types.
            super().__init__(*args, **settings | {"disable": True})  # type: ignore[no-untyped-call]

    # Errors are reported here, in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    client = Client(say)

    def snapshot(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                wanted.repository,
                revision=wanted.revision,
                allow_patterns=[*CONFIG_FILES, *TOKENIZER_FILES, "*.safetensors"],
                ignore_patterns=["*/*"],
                local_files_only=local,
                tqdm_class=tqdm if shown and sys.stderr.isatty() else Silent,
            )
        )

    if not constants.HF_HUB_OFFLINE:
        try:  # huggingface_hub waits for any response, and reads a listing of any size
            resolve_revision(client, wanted)
        except HubError as error:
            if client.reached:
                raise
            try:
                return snapshot(local=True)
            except Exception:
                raise error from None
    retry = RetryPolicy(client, str(wanted))
    while True:
        try:
            return snapshot(local=False)
        except Exception as error:
            retry.wait(client.as_transient(error, wanted.repository, str(wanted)))


def check(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, str]:
    """Compare the weights in a folder of huggingface_hub's cache with their published hashes.

    ``progress`` is called with the bytes hashed so far and the bytes in all. Returns the SHA-256 of
    each file that has one published; raises ``HashMismatchError``.
    """
    published = {path: path.resolve().name for path in sorted(folder.glob("*.safetensors"))}
    published = {path: name for path, name in published.items() if _SHA256.fullmatch(name)}
    total = sum(path.stat().st_size for path in published)
    done = 0
    lock = threading.Lock()

    def hashed(path: Path) -> str:
        nonlocal done
        digest, buffer = hashlib.sha256(), bytearray(CHUNK)
        with FileSource(path, CheckpointError) as source:
            for at in range(0, source.size, CHUNK):
                data = memoryview(buffer)[: source.size - at]
                source.read_into(at, data)
                digest.update(data)
                with lock:
                    done += len(data)
                    progress(done, total)
        return digest.hexdigest()

    with ThreadPoolExecutor() as pool:
        found = dict(zip(published, pool.map(hashed, published), strict=True))
    for path, sha256 in found.items():
        if sha256 != published[path]:
            raise HashMismatchError(
                f"{path}: has the sha256 {sha256}, and {published[path]} is published; remove "
                f"{path.resolve()} and run the command again"
            )
    return {path.name: sha256 for path, sha256 in found.items()}
