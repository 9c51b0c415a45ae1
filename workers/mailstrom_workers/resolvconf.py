"""The nameservers that the system names, as long as it names them: ``/etc/resolv.conf``.

Contract. The file is read as resolv.conf(5) says, and as forgivingly as the C library does: what is
no ``nameserver`` with an IP address is passed over, whatever it is, and a file without any, or no
file, means the nameserver of this machine. An engine runs for months, and the file is another one
after each change of network: whoever asks looks whether it changed, at most once a second. What
cannot be read then changes nothing.

Must not know: how a nameserver is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

from mailstrom.regular import beginning

PLACE = Path("/etc/resolv.conf")
LOOK_S = 1.0
DEFAULT = ("127.0.0.1",)
_MOST_OCTETS = 65536

_Sign = tuple[int, int, int, int]


class ResolvConf:
    """The addresses in a file, looked at again.

    Args:
        place: the file.
        clock: seconds of any clock that only goes on.
    """

    def __init__(self, place: Path, clock: Callable[[], float]) -> None:
        self._place = place
        self._clock = clock
        self._looked_s = float("-inf")
        self._sign: _Sign | None = None

    def changed(self) -> Sequence[str] | None:
        """The nameservers, in their order; None where they are those that were told last."""
        now_s = self._clock()
        if now_s < self._looked_s + LOOK_S:
            return None
        first, self._looked_s = self._looked_s < 0, now_s
        try:
            found = os.stat(self._place)
            sign = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if sign == self._sign:
                return None
            text = beginning(self._place, _MOST_OCTETS)
        except OSError:  # it is being replaced, perhaps
            return DEFAULT if first else None
        self._sign = sign
        return addresses(text)


def addresses(text: bytes) -> Sequence[str]:
    """The nameservers of a file, each once; that of this machine where it names none."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        words = line.decode("latin-1").split()
        if len(words) > 1 and words[0] == "nameserver" and _is_address(words[1]):
            found[words[1]] = None
    return tuple(found) or DEFAULT


def _is_address(word: str) -> bool:
    try:
        ip_address(word)
    except ValueError:
        return False
    return True
