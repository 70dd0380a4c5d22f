"""Requests to the Hub: patient with what passes, strict with what must not be.

The session is huggingface_hub's own, so proxies, certificates, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE hold here as they do there, and connections are reused. A cut, a timeout, a busy or
a broken server are tried again after longer and longer pauses, or after the time that the server
names; everything else that is not the answer asked for is refused in one line.
"""

from __future__ import annotations

import email.utils
import io
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol
from urllib.parse import urlsplit

from gptoss.errors import GptossError
from gptoss.progress import Say, silent

ATTEMPTS = 8
"""Failures in a row, without a byte in between, after which one gives up."""
FIRST_ATTEMPTS = 3
"""The same before the Hub was reached at all: more likely there is no network."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds; each pause is up to twice the one before, less a random part."""
LONGEST_ASKED = 900.0
"""Seconds that a server may ask for; more is a refusal."""
WORTH_SAYING = 2.0
"""Seconds of a pause that is announced."""
TIMEOUT = 20.0
"""Seconds without a connection or without a byte, after which one tries again."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another attempt may not meet again."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_RATE_LIMIT = re.compile(r"r=0;\s*t=(\d{1,9})")


class HubError(GptossError):
    """The Hub cannot be reached, does not have what is asked for, or contradicts itself."""


class TransientError(Exception):
    """What may go better next time; ``after``: the seconds that the server asks for."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Response(Protocol):
    """What is used of httpx's response; ``iter_raw`` gives the body as it comes."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def iter_raw(self) -> Iterator[bytes]: ...


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of huggingface_hub, which reads its settings then and prints what it makes
    of them on stdout. Raises ``HubError`` when one cannot be."""
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ImportError, ValueError) as reason:
        raise HubError(
            f"huggingface_hub cannot be used: {reason}; check HF_ENDPOINT and the other settings "
            "of the Hub"
        ) from reason


class Client:
    """A way to ask the Hub, shared by threads.

    ``stop``, once set, ends all waiting. ``say`` is told why one waits, if it is for long.
    """

    def __init__(self, say: Say | None = None) -> None:
        # Not before it is needed: importing these takes half a second.
        with importing():
            from huggingface_hub import constants, get_session, get_token
            from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        self.endpoint: str = constants.ENDPOINT
        self.reached = False
        self.stop = threading.Event()
        self.say = say or silent
        self._session: Any = get_session()
        token = get_token()
        self._token = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._offline = OfflineModeIsEnabled
        # The base of all that goes wrong in a request: httpx's, or of whatever follows it there.
        self._failed: type[BaseException] = HfHubHTTPError.__bases__[0]

    @contextmanager
    def get(self, url: str, span: tuple[int, int] | None = None) -> Iterator[Response]:
        """One attempt to get ``url``, or its bytes from ``span[0]`` up to ``span[1]``.

        The token goes to the Hub alone, never to where it redirects. Redirects are not followed.
        Raises ``TransientError`` for what may pass, here or while the body is read, and ``HubError``
        when offline.
        """
        headers = {"Accept-Encoding": "identity"}
        if origin(url) == origin(self.endpoint):
            headers |= self._token
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        try:
            with self._session.stream(
                "GET", url, headers=headers, follow_redirects=False, timeout=TIMEOUT
            ) as response:
                self.reached = True
                if response.status_code in PASSING:
                    raise TransientError(f"status {response.status_code}", _asked(response.headers))
                yield response
        except self._offline as reason:
            raise HubError(
                f"{self.endpoint}: not asked, since HF_HUB_OFFLINE is set; unset it, or leave out "
                "--stream or --plan to use what is in the cache"
            ) from reason
        except self._failed as reason:
            raise self._unanswered(reason) from reason

    def passing(self, error: BaseException, repository: str, what: str) -> TransientError:
        """What an error of huggingface_hub means, if it may pass; raises what it is if not."""
        known = (self._offline, self._failed)
        while not isinstance(error, known) and error.__cause__ is not None:
            error = error.__cause__
        response: Response | None = getattr(error, "response", None)
        if response is not None:
            self.reached = True
            if response.status_code in PASSING:
                return TransientError(f"status {response.status_code}", _asked(response.headers))
            raise self.refusal(response, repository, what) from error
        if isinstance(error, self._offline):
            raise HubError(
                f"{what}: not in the cache, and HF_HUB_OFFLINE is set; unset it to download; "
                f"no folder {repository} is here either"
            ) from error
        if isinstance(error, self._failed):
            return self._unanswered(error)
        raise HubError(f"{what}: {' '.join(str(error).split())}") from error

    def _unanswered(self, error: BaseException) -> TransientError:
        reason = str(error) or type(error).__name__
        return TransientError(
            reason if self.reached else f"{self.endpoint} cannot be reached: {reason}"
        )

    def refusal(self, response: Response, repository: str, what: str) -> HubError:
        """What an answer other than the one asked for means; ``what`` is what was asked for."""
        code, said = (response.headers.get(f"X-Error-{key}", "") for key in ("Code", "Message"))
        status = response.status_code
        if code == "GatedRepo":
            return HubError(
                f"{what}: access is granted by its owners; ask for it at {self.endpoint}/"
                f"{repository}, then set HF_TOKEN to a token of that account"
            )
        if code == "RevisionNotFound":
            return HubError(f"{what}: {self.endpoint} has no such revision of it, or no longer")
        if code == "EntryNotFound":
            return HubError(f"{what}: no such file in the repository")
        if status == 401 and said.startswith("Invalid"):
            return HubError(f"{what}: the token of HF_TOKEN is not accepted by {self.endpoint}")
        if code == "RepoNotFound" or status == 401:
            return HubError(
                f"{what}: {self.endpoint} has no such repository, or it is private and HF_TOKEN "
                f"holds no token that may read it; no folder {repository} is here either"
            )
        return HubError(f"{what}: {self.endpoint} answers with status {status} {said}".rstrip())


class RetryPolicy:
    """How long to go on trying for one thing, ``what``."""

    def __init__(self, client: Client, what: str) -> None:
        self._client = client
        self._what = what
        self._failures = 0

    def reset(self) -> None:
        """Something came: failures count from nothing again."""
        self._failures = 0

    def wait(self, error: TransientError) -> None:
        """Pause before the next attempt; raises ``HubError`` when it has been enough."""
        self._failures += 1
        if self._failures >= (ATTEMPTS if self._client.reached else FIRST_ATTEMPTS):
            said = (
                f"{self._what}: tried {self._failures} times: {error}; run the same command later"
            )
            if not self._client.reached:  # all that is asked for so far is a repository
                said += f"; no folder {self._what.partition('@')[0]} is here either"
            raise HubError(said) from error
        if error.after is not None and error.after > LONGEST_ASKED:
            raise HubError(
                f"{self._what}: the server wants to be left alone for {error.after:.0f} seconds; "
                "run the same command after that"
            ) from error
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1))
        pause = random.uniform(longest / 2, longest) if error.after is None else error.after  # noqa: S311
        if pause >= WORTH_SAYING:
            self._client.say(f"{self._what}: {error}; trying again in {pause:.0f} seconds")
        if self._client.stop.wait(pause):
            raise HubError(f"{self._what}: interrupted") from error


def origin(url: str) -> tuple[str, str]:
    """Scheme and host with port: who gets a request."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _asked(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to be left alone: a number, a date, or the Hub's own way."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    date = email.utils.parsedate_tz(value)
    if date is not None:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
