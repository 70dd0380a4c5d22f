"""Keys of other servers: from the environment, or from the system's keyring.

A key in the keyring belongs to one origin (scheme, host and port) and is found for no other. The
package ``keyring`` speaks with macOS's Keychain, Windows' Credential Locker, and the Secret Service
or KWallet of Linux desktops.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from gptoss.errors import OptionError, require_packages
from gptoss.runtime.remote.address import KEY_VARIABLE, Server, origin_of
from gptoss.text import printable

_log = logging.getLogger(__name__)

SERVICE = "gptoss-toolkit"
"""Under this name the keyring holds the keys; the user's name is the origin."""


def find_key(url: str) -> str | None:
    """Return the key for the server at an address: the environment's, else the keyring's, else
    None. Raises RemoteError for what is not an address.
    """
    origin = origin_of(url)
    given = os.environ.get(KEY_VARIABLE, "").strip()
    if given:
        return given
    try:
        import keyring
    except ImportError:
        return None
    try:
        return keyring.get_password(SERVICE, origin)
    except Exception as error:  # of whichever backend; a server without a key needs none
        _log.info("the keyring cannot be read: %s", printable(type(error).__name__))
        return None


def store_key(url: str, key: str) -> str:
    """Put the key of a server into the keyring; return the origin that it is for. Raises
    RemoteError, OptionError where the system has no keyring, MissingPackageError.
    """
    Server(url, key)  # what could never be sent is refused here
    origin = origin_of(url)
    with _system_keyring() as keyring:
        keyring.set_password(SERVICE, origin, key)
    return origin


def remove_key(url: str) -> tuple[str, bool]:
    """Take the key of a server out of the keyring; return its origin, and whether there was one.
    Raises as ``store_key``.
    """
    origin = origin_of(url)
    with _system_keyring() as keyring:
        found = keyring.get_password(SERVICE, origin) is not None
        if found:
            keyring.delete_password(SERVICE, origin)
    return origin, found


@contextmanager
def _system_keyring() -> Iterator[ModuleType]:
    """Give the package ``keyring``; its errors become OptionError."""
    require_packages("keyring", "keyring")
    import keyring
    from keyring.errors import KeyringError

    try:
        yield keyring
    except KeyringError as error:
        kind = type(error).__name__
        raise OptionError(
            f"the system's keyring cannot be used ({kind}); set {KEY_VARIABLE} in the environment"
        ) from error
