"""Reads keys while a reply is shown: the keyboard is not asked for a line then.

Ctrl-C stays a signal. What is typed ahead is kept for the next prompt.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len

if sys.platform == "win32":
    import msvcrt
else:
    import select
    import termios

POLL_SECONDS = 0.1
_ESCAPE = "\x1b"
_ERASING = "\x7f\b"


class KeyListener:
    """Keys pressed during a reply. ``on_key`` maps a character to what it does, on a thread of the
    listener.
    """

    def __init__(self, on_key: dict[str, Callable[[], None]]) -> None:
        self._on_key = on_key
        self._typed: list[str] = []
        self._asked: queue.SimpleQueue[str] | None = None
        self._gone = False

    @property
    def typed_ahead(self) -> str:
        """Return what was typed for the next prompt, on one line."""
        text = "".join(self._typed)
        return "".join(it for it in text.partition("\n")[0] if it.isprintable())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen until the block is left; only where standard input is a terminal."""
        if not sys.stdin.isatty():
            yield
            return
        ended, over = threading.Event(), threading.Event()

        def listen() -> None:
            try:
                self._listen(ended)
            finally:
                over.set()

        with _unbuffered():
            thread = threading.Thread(target=listen, name="keys", daemon=True)
            try:
                thread.start()  # Ctrl-C may come before it returns
                yield
            finally:
                ended.set()
                _wait_through_interrupts(over)

    def ask(self, allowed: str) -> str:
        """Wait for one of the ``allowed`` keys, and return it; Ctrl-C interrupts.

        Raises EOFError where the keyboard has gone.
        """
        with self._asking() as next_key:
            while (key := next_key().casefold()) not in allowed:
                pass
            return key

    def ask_line(self, echo: Callable[[str], None]) -> str:
        """Wait for a line that ends with Enter, and return it; Ctrl-C interrupts. What is typed is
        shown by ``echo``.

        Raises EOFError where the keyboard has gone.
        """
        typed: list[str] = []
        with self._asking() as next_key:
            while (key := next_key()) not in "\r\n":
                if key in _ERASING and typed:
                    echo("\b \b" * cell_len(typed.pop()))
                elif key.isprintable():
                    typed.append(key)
                    echo(key)
        return "".join(typed)

    @contextmanager
    def _asking(self) -> Iterator[Callable[[], str]]:
        """Keep the keys pressed from now on; the function waits for the next one."""
        keys = self._asked = queue.SimpleQueue()

        def next_key() -> str:
            while True:
                try:
                    return keys.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    if self._gone:
                        raise EOFError from None

        try:
            yield next_key
        finally:
            self._asked = None

    def _listen(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                keys = _read_keys()
            except (OSError, ValueError):  # the terminal was closed
                self._gone = True
                return
            for key in keys:
                if self._asked is not None:
                    self._asked.put(key)
                elif key in self._on_key:
                    self._on_key[key]()
                elif key in _ERASING:
                    del self._typed[-1:]
                else:
                    self._typed.append("\n" if key == "\r" else key)


def _wait_through_interrupts(over: threading.Event) -> None:
    """Wait until no key is read here any more: the next prompt would not get it. Ctrl-C meanwhile
    is raised afterwards.
    """
    interrupted: KeyboardInterrupt | None = None
    end = time.monotonic() + 10 * POLL_SECONDS  # a thread that could not be started is not over
    while not over.is_set() and (left := end - time.monotonic()) > 0:
        try:
            over.wait(left)
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


if sys.platform == "win32":

    @contextmanager
    def _unbuffered() -> Iterator[None]:
        yield

    def _read_keys() -> str:
        threading.Event().wait(POLL_SECONDS)
        keys = ""
        while msvcrt.kbhit():
            keys += msvcrt.getwch()
        return keys

else:

    @contextmanager
    def _unbuffered() -> Iterator[None]:
        """Give each key at once and print none; signals stay, and Ctrl-C drops nothing that was
        typed before it and is not read yet.
        """
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        changed = termios.tcgetattr(descriptor)
        changed[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        changed[3] |= termios.NOFLSH
        changed[0] &= ~termios.ICRNL
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, changed)
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    def _read_keys() -> str:
        """Return the keys pressed, after a short wait; those that are not a character are left
        out.
        """
        descriptor = sys.stdin.fileno()
        ready, _, _ = select.select([descriptor], [], [], POLL_SECONDS)
        if not ready:
            return ""
        raw = os.read(descriptor, 4096)
        if not raw:
            raise OSError("the terminal was closed")
        text = raw.decode("utf-8", "ignore")
        return "" if text.startswith(_ESCAPE) and len(text) > 1 else text
