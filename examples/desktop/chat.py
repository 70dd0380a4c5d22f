"""A small desktop application: a conversation with streaming, stop, and load progress.

    python chat.py MODEL.gguf

The model runs in a child process (``gptoss.spawn``). A crash there ends the reply under way, and
the application goes on. Tk is used on one thread; another reads the reply and passes it on.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import tkinter as tk
from collections.abc import Iterator
from dataclasses import dataclass
from tkinter import filedialog, messagebox, ttk

import gptoss

POLL_MS = 30

log = logging.getLogger("chat")


@dataclass(frozen=True)
class Text:
    """More of the reply, to be shown in the style ``tag``."""

    text: str
    tag: str


@dataclass(frozen=True)
class Ended:
    """The reply is over; ``error`` says why, if it failed."""

    answer: str
    error: str = ""


class Reply:
    """A reply that is read on a thread of its own. ``items`` gives what has come so far."""

    def __init__(self, server: gptoss.SpawnedServer, messages: list[dict[str, str]]) -> None:
        self._server = server
        self._messages = messages
        self._stream: gptoss.ChatStream | None = None
        self._stopped = False
        self._items: queue.SimpleQueue[Text | Ended] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def stop(self) -> None:
        """End the reply; what has come stays."""
        self._stopped = True
        if self._stream is not None:
            self._stream.close()

    def items(self) -> Iterator[Text | Ended]:
        """Give what has come since the last time, without waiting."""
        while True:
            try:
                yield self._items.get_nowait()
            except queue.Empty:
                return

    def _read(self) -> None:
        answer = ""
        try:
            with self._server.stream(self._messages) as stream:
                self._stream = stream
                if self._stopped:
                    stream.close()
                for delta in stream:
                    if delta.reasoning:
                        self._items.put(Text(delta.reasoning, "reasoning"))
                    if delta.content:
                        answer += delta.content
                        self._items.put(Text(delta.content, "answer"))
            self._items.put(Ended(answer))
        except gptoss.GptossError as error:
            self._items.put(Ended(answer, str(error)))


class Application:
    """The window."""

    def __init__(self, root: tk.Tk, path: str) -> None:
        self._root = root
        self._server = gptoss.spawn(path, n_ctx=2048, wait=False)
        self._messages: list[dict[str, str]] = []
        self._reply: Reply | None = None
        self._state = ""
        self._build()
        root.protocol("WM_DELETE_WINDOW", self.close)
        self._poll()

    def _build(self) -> None:
        self._root.title("gptoss chat")
        self._root.geometry("640x480")
        self._status = ttk.Label(self._root, text="starting")
        self._progress = ttk.Progressbar(self._root, maximum=1.0)
        self._transcript = tk.Text(self._root, wrap="word", state="disabled", padx=8, pady=8)
        self._transcript.tag_configure("you", font=("TkDefaultFont", 10, "bold"))
        self._transcript.tag_configure("reasoning", foreground="#777777")
        self._transcript.tag_configure("error", foreground="#b00020")
        bottom = ttk.Frame(self._root)
        self._entry = ttk.Entry(bottom)
        self._button = ttk.Button(bottom, text="Send", command=self._press)
        self._entry.bind("<Return>", lambda _: self._send())
        self._root.bind("<Escape>", lambda _: self._stop())
        self._root.bind("<Control-q>", lambda _: self.close())
        self._status.pack(fill="x", padx=8, pady=(8, 0))
        self._progress.pack(fill="x", padx=8, pady=4)
        bottom.pack(side="bottom", fill="x", padx=8, pady=8)
        self._button.pack(side="right", padx=(8, 0))
        self._entry.pack(side="left", fill="x", expand=True)
        self._transcript.pack(fill="both", expand=True, padx=8)
        self._entry.focus_set()

    def _poll(self) -> None:
        """Show what has happened since the last time."""
        if self._reply is not None:
            for item in self._reply.items():
                if isinstance(item, Text):
                    self._write(item.text, item.tag)
                else:
                    self._end(item)
        state = self._server.state
        if state != self._state:
            self._state = state
            log.info("server: %s", state)
        self._progress["value"] = self._server.progress
        status = f"{self._server.model} {state.value}".strip()
        if self._server.error is not None:
            status = str(self._server.error)
        self._status["text"] = "answering" if self._reply is not None else status
        self._button["text"] = "Send" if self._reply is None else "Stop"
        idle = state == gptoss.ProcessState.READY or self._reply is not None
        self._button["state"] = "normal" if idle else "disabled"
        self._root.after(POLL_MS, self._poll)

    def _press(self) -> None:
        if self._reply is None:
            self._send()
        else:
            self._stop()

    def _send(self) -> None:
        text = self._entry.get().strip()
        ready = self._server.state == gptoss.ProcessState.READY
        if not text or not ready or self._reply is not None:
            return
        self._entry.delete(0, "end")
        self._write(f"{text}\n", "you")
        self._messages.append({"role": "user", "content": text})
        self._reply = Reply(self._server, list(self._messages))
        log.info("reply: begun")

    def _stop(self) -> None:
        if self._reply is not None:
            self._reply.stop()

    def _end(self, ended: Ended) -> None:
        self._reply = None
        log.info("reply: ended %s", ended.error)
        if ended.answer:
            self._messages.append({"role": "assistant", "content": ended.answer})
        else:  # a question without an answer is withdrawn
            self._messages.pop()
        self._write(f"\n{ended.error}\n\n" if ended.error else "\n\n", "error")

    def _write(self, text: str, tag: str) -> None:
        self._transcript["state"] = "normal"
        self._transcript.insert("end", text, tag)
        self._transcript["state"] = "disabled"
        self._transcript.see("end")

    def close(self) -> None:
        """End the child, then the window."""
        self._server.close()
        self._root.destroy()


def main() -> None:
    """Open the window for the model that is named, or chosen in a dialog."""
    logging.basicConfig(level=logging.INFO)
    root = tk.Tk()
    path = sys.argv[1] if len(sys.argv) > 1 else filedialog.askopenfilename(title="A gpt-oss GGUF")
    if not path:
        return
    try:
        Application(root, path)
    except gptoss.GptossError as error:
        messagebox.showerror("gptoss chat", str(error))
        return
    root.mainloop()


if __name__ == "__main__":
    main()
