"""Counters in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gptoss.runtime.engine.base import Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Metrics:
    """What has happened since the server started. Used in the event loop only."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """HTTP requests by route and status."""
    replies: Counter[str] = field(default_factory=Counter)
    """Replies by how they ended."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    queued_seconds: float = 0.0

    def count_reply(self, end: str, timings: Timings) -> None:
        """Add one reply's cost."""
        self.replies[end] += 1
        self.prompt_tokens += timings.prompt_tokens
        self.cached_tokens += timings.reused_tokens
        self.completion_tokens += timings.generated_tokens
        self.prompt_seconds += timings.prompt_seconds
        self.generate_seconds += timings.generate_seconds
        self.queued_seconds += timings.queued_seconds

    def text(self, running: int, loaded: bool) -> str:
        """Write all of it for Prometheus."""
        lines = _family("http_requests_total", "counter", "HTTP requests by route and status.")
        for (route, status), n in sorted(self.requests.items()):
            lines.append(f'gptoss_http_requests_total{{route="{route}",status="{status}"}} {n}')
        lines += _family("replies_total", "counter", "Replies by how they ended.")
        lines += [
            f'gptoss_replies_total{{end="{end}"}} {n}' for end, n in sorted(self.replies.items())
        ]
        for name, kind, about, value in (
            ("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            ("cached_tokens_total", "counter", "Of those, found in memory.", self.cached_tokens),
            ("completion_tokens_total", "counter", "Tokens generated.", self.completion_tokens),
            ("prompt_seconds_total", "counter", "Reading prompts.", self.prompt_seconds),
            ("generate_seconds_total", "counter", "Generating.", self.generate_seconds),
            ("queued_seconds_total", "counter", "Waiting for a sequence.", self.queued_seconds),
            ("replies_running", "gauge", "Replies under way or queued.", running),
            ("model_loaded", "gauge", "Whether a model is in memory, or reached.", int(loaded)),
        ):
            lines += _family(name, kind, about)
            lines.append(
                f"gptoss_{name} {value:g}" if isinstance(value, float) else f"gptoss_{name} {value}"
            )
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP gptoss_{name} {about}", f"# TYPE gptoss_{name} {kind}"]
