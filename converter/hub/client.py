"""Requests to the Hub: retried if that may help, with limits of size and time.

The session is huggingface_hub's own, so proxies, certificates, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE work as they do there, and connections are reused. After a lost connection, a
timeout or a server error the request is repeated, with increasing pauses or after the time that the
server asks for. Any other unexpected response is reported as an error of one line.
"""

from __future__ import annotations

import email.utils
import io
import logging
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, Protocol
from urllib.parse import urlsplit

from gptoss.errors import GptossError, quoted
from gptoss.progress import Say, silent

_log = logging.getLogger(__name__)

ATTEMPTS = 8
"""The most consecutive failures without receiving a byte."""
FIRST_ATTEMPTS = 3
"""The same before the first response of the Hub: there is probably no network."""
MAX_ATTEMPTS = 2000
"""The most failures of one request in total."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds; each pause is up to twice the one before, less a random part."""
LONGEST_ASKED = 900.0
"""Seconds that a server may ask to wait; more is an error."""
WORTH_SAYING = 2.0
"""Pauses of at least this many seconds are reported."""
TIMEOUT = 20.0
"""Seconds without a connection or a byte, after which the request is repeated."""
HEADER_SECONDS = 90.0
"""The most seconds from a request to the end of the response's headers."""
GRACE_SECONDS = 60.0
SLOWEST = 10_000.0
"""Bytes a second that a server must send on average, after so many seconds of grace."""
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be temporary."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_RATE_LIMIT = re.compile(r"r=0;\s*t=(\d{1,9})")


class HubError(GptossError):
    """The Hub cannot be reached, does not have what is requested, or is inconsistent."""


class TransientError(Exception):
    """A temporary failure; ``after`` is the number of seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Response(Protocol):
    """The used part of httpx's response; ``iter_raw`` yields the body as it arrives."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def iter_raw(self) -> Iterator[bytes]: ...


@contextmanager
def importing() -> Iterator[None]:
    """Wrap imports of huggingface_hub, which reads its settings then and may print to stdout.

    Raises ``HubError`` when it cannot be imported.
    """
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ImportError, ValueError) as reason:
        raise HubError(
            f"huggingface_hub cannot be used: {reason}; check HF_ENDPOINT and the other settings "
            "of the Hub"
        ) from reason


class Client:
    """Sends requests to the Hub; shared by threads.

    ``stop``, once set, ends all waiting. ``say`` is called with the reason of a long pause.
    Raises ``HubError`` when HF_ENDPOINT is not the address of a server.
    """

    def __init__(self, say: Say | None = None) -> None:
        # Not before it is needed: importing these takes half a second.
        with importing():
            from huggingface_hub import constants, get_session, get_token
            from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        self.endpoint: str = constants.ENDPOINT
        if not is_address(self.endpoint):
            raise HubError(
                f"HF_ENDPOINT is {quoted(self.endpoint)}; expected an address such as "
                "https://huggingface.co"
            )
        self.reached = False
        self.stop = threading.Event()
        self.say = say or silent
        self._session: Any = get_session()
        token = get_token()
        self._token = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._offline = OfflineModeIsEnabled
        # The base class of a request's errors: httpx's, or that of another library used there.
        self._failed: type[BaseException] = HfHubHTTPError.__bases__[0]

    @contextmanager
    def get(self, url: str, span: tuple[int, int] | None = None) -> Iterator[Response]:
        """Send one HTTP request to the Hub for ``url``, or for its bytes from ``span[0]`` up to
        ``span[1]``.

        The token is sent to the Hub only, never to a redirect's target. Redirects are not followed.
        Raises ``TransientError`` for failures worth retrying, here or while the body is read, and
        ``HubError`` when offline.
        """
        headers = {"Accept-Encoding": "identity"}
        if origin(url) == origin(self.endpoint):
            headers |= self._token
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        # Without the query: a redirect's holds a signature that grants access.
        _log.debug("GET %s %s", url.partition("?")[0], headers.get("Range", ""))
        with ExitStack() as stack:
            try:
                response = self._open(url, headers, stack)
            except self._offline as reason:
                raise HubError(
                    f"{self.endpoint}: not requested, since HF_HUB_OFFLINE is set; unset it, or "
                    "omit --stream or --plan to use what is in the cache"
                ) from reason
            except self._failed as reason:
                raise self._unanswered(reason) from reason
            except (HubError, TransientError):
                raise
            except Exception as reason:  # an address that no request can be made for
                raise HubError(f"{quoted(url)}: cannot be requested: {reason}") from reason
            self.reached = True
            if response.status_code in TRANSIENT:
                raise TransientError(f"status {response.status_code}", _asked(response.headers))
            try:
                yield response
            except self._failed as reason:
                raise self._unanswered(reason) from reason

    def _open(self, url: str, headers: Mapping[str, str], stack: ExitStack) -> Response:
        """Send an HTTP request and wait for the response's headers, for a limited time: a server
        may send them slowly.
        """
        context = self._session.stream(
            "GET", url, headers=headers, follow_redirects=False, timeout=TIMEOUT
        )
        opened: Future[Response] = Future()

        def enter() -> None:
            try:
                response = context.__enter__()
            except BaseException as error:
                if opened.set_running_or_notify_cancel():
                    opened.set_exception(error)
                return
            if opened.set_running_or_notify_cancel():
                opened.set_result(response)
            else:  # too late: the caller has stopped waiting
                context.__exit__(None, None, None)

        threading.Thread(target=enter, name="request", daemon=True).start()
        try:
            response = opened.result(HEADER_SECONDS)
        except TimeoutError as reason:
            if opened.cancel():
                raise TransientError(f"no response within {HEADER_SECONDS:.0f} s") from reason
            response = opened.result()
        stack.push(context.__exit__)
        return response

    def as_transient(self, error: BaseException, repository: str, what: str) -> TransientError:
        """Convert an error of huggingface_hub's HTTP client to a failure that is worth another
        attempt; raises ``HubError`` for others.
        """
        known = (self._offline, self._failed)
        while not isinstance(error, known) and error.__cause__ is not None:
            error = error.__cause__
        response: Response | None = getattr(error, "response", None)
        if response is not None:
            self.reached = True
            if response.status_code in TRANSIENT:
                return TransientError(f"status {response.status_code}", _asked(response.headers))
            raise self.refusal(response, repository, what) from error
        if isinstance(error, self._offline):
            raise HubError(
                f"{what}: not in the cache, and HF_HUB_OFFLINE is set; unset it to download; "
                f"and there is no local folder {repository}"
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
        """Make the error for an HTTP response with an unexpected status; ``what`` was requested."""
        code, said = (response.headers.get(f"X-Error-{key}", "") for key in ("Code", "Message"))
        status = response.status_code
        if code == "GatedRepo":
            return HubError(
                f"{what}: its owners grant access on request; request it at {self.endpoint}/"
                f"{repository}, then set HF_TOKEN to a token of that account"
            )
        if code == "RevisionNotFound":
            return HubError(f"{what}: no such revision on {self.endpoint}")
        if code == "EntryNotFound":
            return HubError(f"{what}: no such file in the repository")
        if status == 401 and said.startswith("Invalid"):
            return HubError(f"{what}: {self.endpoint} rejected the token in HF_TOKEN")
        if code == "RepoNotFound" or status == 401:
            return HubError(
                f"{what}: {self.endpoint} has no such repository, or it is private and HF_TOKEN "
                f"does not give access to it; and there is no local folder {repository}"
            )
        return HubError(f"{what}: {self.endpoint} responded with status {status} {said}".rstrip())


class RetryPolicy:
    """Decides how often and how long to retry the request for ``what``."""

    def __init__(self, client: Client, what: str) -> None:
        self._client = client
        self._what = what
        self._failures = self._attempts = self._bytes = 0
        self._seconds = 0.0
        self._last = time.monotonic()

    def received(self, nbytes: int) -> None:
        """Reset the count of a request's failed attempts, as bytes were received; raises
        ``HubError`` if they are too slow.

        Counts the time between bytes over all attempts, but not the pauses.
        """
        now = time.monotonic()
        self._failures = 0
        self._bytes += nbytes
        self._seconds += now - self._last
        self._last = now
        if self._seconds > GRACE_SECONDS + self._bytes / SLOWEST:
            raise HubError(
                f"{self._what}: the server is too slow: {self._bytes:,} bytes in "
                f"{self._seconds:.0f} s; run the same command later"
            )

    def wait(self, error: TransientError) -> None:
        """Pause before the next attempt of an HTTP request; raises ``HubError`` after too many
        failures.
        """
        self._failures += 1
        self._attempts += 1
        if self._attempts >= MAX_ATTEMPTS or self._failures >= (
            ATTEMPTS if self._client.reached else FIRST_ATTEMPTS
        ):
            message = f"{self._what}: tried {self._attempts} times: {error}; "
            if self._client.reached:
                message += "run the same command later"
            else:  # only a repository was requested so far
                message += (
                    "check the network and the proxy (HTTPS_PROXY); and there is no local folder "
                    f"{self._what.partition('@')[0]}"
                )
            raise HubError(message) from error
        if error.after is not None and error.after > LONGEST_ASKED:
            raise HubError(
                f"{self._what}: the server asked to wait {error.after:.0f} s (Retry-After); "
                "rerun the command then"
            ) from error
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1))
        pause = random.uniform(longest / 2, longest) if error.after is None else error.after  # noqa: S311 no secret
        _log.info("%s: %s; retrying in %.1f s", self._what, error, pause)
        if pause >= WORTH_SAYING:
            self._client.say(f"{self._what}: {error}; retrying in {pause:.0f} s")
        if self._client.stop.wait(pause):
            raise HubError(f"{self._what}: interrupted") from error
        self._last = time.monotonic()


def is_address(url: str) -> bool:
    """Check whether HTTP requests can be sent to a server at this address, such as HF_ENDPOINT."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError for one out of range
        host = (parts.hostname or "").encode("idna")
    except (ValueError, UnicodeError):
        return False
    return parts.scheme in ("http", "https") and 0 < len(host) < 254 and not re.search(r"\s", url)


def origin(url: str) -> tuple[str, str]:
    """Return scheme, host and port of a URL: the server that gets an HTTP request, and perhaps the
    token. Raises ``HubError``.
    """
    try:
        parts = urlsplit(url)
    except ValueError as reason:
        raise HubError(f"{quoted(url)}: is not an address: {reason}") from reason
    return parts.scheme, parts.netloc.lower()


def _asked(headers: Mapping[str, str]) -> float | None:
    """Read how many seconds a server's response asks to wait before the next attempt: Retry-After
    as a number or a date, or the Hub's rate limit.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    date = email.utils.parsedate_tz(value)
    if date is not None:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
