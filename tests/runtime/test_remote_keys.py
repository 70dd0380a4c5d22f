"""Keys of other servers: where they come from, where they go, and where they never are."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

pytest.importorskip("httpcore")

from gptoss.console import ExitCode
from gptoss.errors import MissingPackageError, OptionError
from gptoss.runtime.engine.base import RemoteError
from gptoss.runtime.remote import keys
from gptoss.runtime.remote.address import KEY_VARIABLE, Server, origin_of
from gptoss.runtime.remote.command import remote_command
from gptoss.runtime.remote.engine import server_at
from gptoss.runtime.remote.http import ask
from support.remote_servers import answering

SECRET = "-".join(["sk", "very", "secret"])


class FakeKeyring(types.ModuleType):
    """The package ``keyring`` over a dictionary."""

    class KeyringError(Exception):
        """The base of the package's errors."""

    def __init__(self) -> None:
        super().__init__("keyring")
        self.held: dict[tuple[str, str], str] = {}
        self.broken = False
        self.errors = types.ModuleType("keyring.errors")
        self.errors.KeyringError = self.KeyringError  # type: ignore[attr-defined]

    def _check(self) -> None:
        if self.broken:
            raise self.KeyringError(SECRET)

    def get_password(self, service: str, user: str) -> str | None:
        self._check()
        return self.held.get((service, user))

    def set_password(self, service: str, user: str, password: str) -> None:
        self._check()
        self.held[service, user] = password

    def delete_password(self, service: str, user: str) -> None:
        self._check()
        del self.held[service, user]


@pytest.fixture(autouse=True)
def keyring(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeyring]:
    fake = FakeKeyring()
    monkeypatch.setitem(sys.modules, "keyring", fake)
    monkeypatch.setitem(sys.modules, "keyring.errors", fake.errors)
    monkeypatch.setattr(keys, "require_packages", lambda *_: None)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return fake


def test_a_key_belongs_to_one_origin(keyring: FakeKeyring) -> None:
    assert keys.store_key("https://example.org/v1", SECRET) == "https://example.org:443"
    for same in ("https://example.org", "https://EXAMPLE.org:443/v1/"):
        assert keys.find_key(same) == SECRET
    for other in (
        "https://example.org:444",
        "https://sub.example.org",
        "https://example.org.evil.org",
        "http://example.org:443",
        "https://evil.org/example.org",
    ):
        assert keys.find_key(other) is None
    assert keys.remove_key("https://example.org") == ("https://example.org:443", True)
    assert keys.remove_key("https://example.org") == ("https://example.org:443", False)
    assert not keyring.held


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    keys.store_key("https://example.org", "stored")
    monkeypatch.setenv(KEY_VARIABLE, f" {SECRET}\n")
    assert keys.find_key("https://example.org") == SECRET


def test_a_keyring_that_fails_is_no_reason_to_stop(
    keyring: FakeKeyring, caplog: pytest.LogCaptureFixture
) -> None:
    keyring.broken = True
    with caplog.at_level(logging.DEBUG):
        assert keys.find_key("https://example.org") is None
    assert "keyring" in caplog.text
    assert SECRET not in caplog.text
    with pytest.raises(OptionError, match=KEY_VARIABLE) as caught:
        keys.store_key("https://example.org", SECRET)
    assert SECRET not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert keys.find_key("https://example.org") is None
    monkeypatch.setattr("gptoss.errors.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"\[keyring\]"):
        keys.store_key("https://example.org", SECRET)


@pytest.mark.parametrize("url", ["http://example.org", "http://10.0.0.1:80", "http://127.0.0.1.a"])
def test_a_key_is_not_sent_where_others_can_read_it(url: str) -> None:
    with pytest.raises(RemoteError, match="only over https") as caught:
        Server(url, SECRET)
    assert SECRET not in str(caught.value)
    assert Server(url).headers.keys() == {"User-Agent"}


@pytest.mark.parametrize(
    "url", ["https://example.org", "http://localhost:1", "http://127.9.9.9", "http://[::1]:8080"]
)
def test_where_a_key_is_sent(url: str) -> None:
    assert Server(url, SECRET).headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(Server(url, SECRET))


@pytest.mark.parametrize("key", ["a b", "a\nX-Evil: 1", "schlüssel", "a\x00"])
def test_keys_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(RemoteError) as caught:
        Server("https://example.org", key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["https://me:pass-word@example.org", "https://pass-word@example.org", "ftp://a:pass-word@b"],
)
def test_no_password_in_an_address(url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        Server(url)
    assert "pass-word" not in str(caught.value)


def test_origins() -> None:
    assert origin_of("http://[::1]/x") == "http://[::1]:80"
    for bad in ("https://a?b", "https://a#b", "https://a b", "", "https://", "https://a:0"):
        with pytest.raises(RemoteError):
            origin_of(bad)


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with answering([b"{}"]) as other, answering([b""], status=302) as server:
        server.headers["Location"] = f"{other.url}/stolen"
        with pytest.raises(RemoteError, match="redirects to"):
            ask(server_at(server.url), "GET", "/props")
        assert server.requests[0]["Authorization"] == f"Bearer {SECRET}"
        assert not other.requests


def test_a_server_that_repeats_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with (
        answering([f"wrong key {SECRET}".encode()], status=500) as server,
        pytest.raises(RemoteError, match=r"\[key\]") as caught,
    ):
        ask(server_at(server.url), "GET", "/props")
    assert SECRET not in str(caught.value)


def test_a_wrong_address_is_reported_before_the_key_is_read() -> None:
    result = CliRunner().invoke(remote_command, ["key", "set", "ftp://x"], input="")
    assert isinstance(result.exception, RemoteError)
    assert "is not an address" in str(result.exception)


def test_the_command(keyring: FakeKeyring) -> None:
    run = CliRunner().invoke
    done = run(remote_command, ["key", "set", "https://example.org"], input=f"{SECRET}\n")
    assert (done.exit_code, SECRET in done.output) == (0, False)
    assert keyring.held == {("gptoss-toolkit", "https://example.org:443"): SECRET}
    assert run(remote_command, ["key", "rm", "https://example.org"]).exit_code == ExitCode.DONE
    assert run(remote_command, ["key", "rm", "https://example.org"]).exit_code == ExitCode.NO
    for given in ("", "\n", "x" * 5_000):
        done = run(remote_command, ["key", "set", "https://example.org"], input=given)
        assert isinstance(done.exception, OptionError)
    done = run(remote_command, ["key", "set", "http://example.org"], input=SECRET)
    assert isinstance(done.exception, RemoteError)
    assert not keyring.held
