"""A client process with a fault in it: one message for each line it is told, one answer a line.

Run by path in a process of its own, so it imports nothing of the tests. ``sys.argv``: the spool,
then what is short here: "descriptors" (every descriptor is taken), "file size" (RLIMIT_FSIZE), or
nothing. Commands: an id to send under (as idempotency key), ``ask KEY``, or ``end``. Answers are
JSON: ``{"stored": id}``, ``{"refused": text}``, ``{"unknown": key}``, ``{"crossed": text}``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from email.message import EmailMessage

from mailstrom import Mailstrom
from mailstrom.errors import InvalidMessage, MessageNotFound, OutcomeUnknown, SpoolError


def _mail(word: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@sender.test", "b@errors.test", word
    message.set_content("Good morning.\n")
    return message


def main() -> None:
    """Serve commands until the end."""
    path, short = sys.argv[1], sys.argv[2]
    kept: list[int] = []
    try:
        ms = Mailstrom(path)
    except SpoolError as error:
        _say(kind="refused", text=error)
        return
    except BaseException as error:
        _say(kind="crossed", text=repr(error))
        return
    _mail("imports")
    print(json.dumps({"opened": os.getpid()}), flush=True)
    if short == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while True:
            try:
                kept.append(os.dup(0))
            except OSError:
                break
    if short == "file size":
        size = os.stat(f"{path}-wal").st_size + 2_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for line in sys.stdin:  # the first mail was made above: its imports are not the product's
        word = line.strip()
        if word == "end":
            return
        if word == "relieve":
            while kept:
                os.close(kept.pop())
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            print(json.dumps({"relieved": True}), flush=True)
            continue
        _answer(ms, word)


def _answer(ms: Mailstrom, word: str) -> None:
    try:
        if word.startswith("ask "):
            _say(kind="stored", text=ms.status(word[4:]).id)
        else:
            _say(kind="stored", text=ms.send(_mail(word)))
    except OutcomeUnknown as error:
        _say(kind="unknown", text=error.key)
    except (SpoolError, InvalidMessage, MessageNotFound) as error:
        _say(kind="refused", text=error)
    except BaseException as error:
        _say(kind="crossed", text=f"{type(error).__name__}: {error}")


def _say(*, kind: str, text: object) -> None:
    print(json.dumps({kind: str(text)}), flush=True)


if __name__ == "__main__":
    main()
