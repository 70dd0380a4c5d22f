"""A run of the writer, with what there is to tell of it: how it begins, and how it may end."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss.converter.gguf.split import Part
from gptoss.converter.write import writer
from gptoss.converter.write.staging import FINAL, Staging
from gptoss.converter.write.tasks import jobs, written
from gptoss.converter.write.writer import Feed
from gptoss.progress import Progress, Say, silent


def run(
    files: Sequence[Part],
    staging: Staging,
    progress: Progress | None,
    say: Say | None,
    feed: Feed | None = None,
) -> tuple[int, dict[str, str]]:
    """Write what is not written yet; the bytes that an earlier run had, and each tensor's sha256.

    ``feed`` brings sources that are not on this machine. Raises what ``writer.write`` does.
    """
    say = say or silent
    total = sum(part.nbytes for part in files)
    work = jobs(files, staging)
    resumed = written(work)
    if resumed:
        say(f"going on from an earlier run: {resumed:,} of {total:,} bytes are there")
    elif staging.replaced:
        say("starting again: what an earlier run left cannot be used for this source and request")

    def advance(done: int) -> None:
        if progress is not None:
            progress(done, total)

    try:
        return resumed, writer.write(files, work, staging, advance, feed=feed)
    except BaseException as error:
        if not isinstance(error, FINAL):
            say(f"what is done is kept in {staging.folder}; the same command goes on from there")
        raise
