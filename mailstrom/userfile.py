"""The file of users who may hand in mail: ``user:hash``, a line each; ``#`` begins a comment.

Read whole, within bounds; changed whole: under a lock beside it, written anew and renamed over, so
that a server that reads it meanwhile finds the old or the new one. Lines that are not changed are
kept as they are.

Must not know: what a hash is made of (``passwords``), who logs in where.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable

from mailstrom.lockfile import LockFile
from mailstrom.passwords import require_hash
from mailstrom.regular import beginning

LARGEST_FILE = 1 << 24  # octets: a hundred thousand users
LONGEST_NAME = 255
LOCK_S = 5.0
# No colon, no control character, no space at an end, no comment.
_NAME = re.compile(r"(?![\s#])[^:\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,255}(?<!\s)")

Users = dict[str, str]


def require_name(name: str) -> None:
    """Raise unless a line can begin with this name.

    Raises:
        ValueError: says what it may hold.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name[:80]!r} is no user name: write 1 to {LONGEST_NAME} characters without colon or"
            " control character, with no space at an end and no # at the front"
        )


def read_users(path: str | os.PathLike[str]) -> Users:
    """The hash of each user.

    Raises:
        OSError: the file cannot be opened or read, or is no regular file.
        ValueError: a line is none, or names a user again; the sentence has its number.
    """
    users: Users = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, hashed = line.partition(":")
        try:
            if not colon:
                raise ValueError("write user:hash, as 'mailstrom user add' does")
            require_name(name)
            require_hash(hashed.strip())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if name in users:
            raise ValueError(f"line {number}: {name!r} stands in an earlier line: remove one")
        users[name] = hashed.strip()
    return users


def change_users(path: str, change: Callable[[Users], Users]) -> None:
    """Replace the file by one with other users.

    Args:
        path: made, readable by its owner alone, where it is missing; else owner and mode stay.
        change: gets the users of now, returns those of then; its exception leaves all as it is.

    Raises:
        OSError: the file cannot be read, written or locked.
        ValueError: as ``read_users``.
    """
    path = os.path.realpath(path)  # a link stays one
    lock = LockFile(f"{path}.lock")
    deadline = time.monotonic() + LOCK_S
    while not lock.acquire():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{lock.path} is held by another process; try again")
        time.sleep(0.02)
    try:
        try:
            before, kept = read_users(path), _lines(path)
        except FileNotFoundError:
            before, kept = {}, []
        after = change(dict(before))
        lines = []
        for line in kept:
            name = line.partition(":")[0]
            if name not in before:
                lines.append(line)  # a comment
            elif name in after:
                same = after[name] == before[name]
                lines.append(line if same else f"{name}:{after[name]}")
        lines += [f"{name}:{hashed}" for name, hashed in after.items() if name not in before]
        _write(path, "".join(f"{line}\n" for line in lines).encode())
    finally:
        lock.release(delete=True)


def _lines(path: str | os.PathLike[str]) -> list[str]:
    octets = beginning(path, LARGEST_FILE + 1)
    if len(octets) > LARGEST_FILE:
        raise ValueError(f"longer than {LARGEST_FILE} bytes")
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8; save it as UTF-8") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _write(path: str, octets: bytes) -> None:
    folder = os.path.dirname(path)
    fd, fresh = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
    try:
        with open(fd, "wb") as stream:
            with contextlib.suppress(FileNotFoundError):
                now = os.stat(path)
                os.fchmod(fd, now.st_mode & 0o777)
                with contextlib.suppress(PermissionError):  # not ours to give away
                    os.fchown(fd, now.st_uid, now.st_gid)
            stream.write(octets)
            stream.flush()
            os.fsync(fd)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
