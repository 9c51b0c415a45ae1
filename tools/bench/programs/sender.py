"""One application process that hands over mail: sender.py PLAN (JSON); prints one JSON line.

Plan: ``store``; ``number`` of this process; ``verb``: ``send`` (bytes that are ready), ``email``
(an ``EmailMessage`` built for each call) or ``many`` (``send_many`` of ready bytes); ``messages``
to hand over, or ``seconds`` to go on; ``size`` of the body; ``domains`` to spread recipients over
(in ``zone``); ``later_s``: not due before that (``many``); ``recipients`` of each message;
``pause_s`` between two calls; ``threads`` that do nothing but reckon, as a busy application's do;
``callers``: threads that send, 1 where it is missing; ``warm``: before it is ready it has sent one
message more, due in a day, so that imports and the first connection are no call's time.
Waits for a line on standard input once it is ready, having printed ``{"ready": true}``. Answers
``begin`` and ``end`` (monotonic), ``messages``, ``cpu_s``, ``waits_ms`` of each call (not of
``many``, where a call is all there is).
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from email.message import EmailMessage

from mailstrom import Mailstrom

LINE = "The quick brown fox jumps over the lazy dog, and the mail goes out.\r\n"


def main() -> None:
    """Hand over what the plan says."""
    plan = json.loads(sys.argv[1])
    number, size = plan["number"], plan.get("size", 1024)
    spread, several = plan.get("domains", 1), plan.get("recipients", 1)
    zone = plan.get("zone", "test")
    text = LINE * max(1, size // len(LINE))
    head = "From: sender@bench.test\r\n"

    def recipients(n: int) -> list[str]:
        first = (number * 7919 + n) * several
        return [f"u{n}@d{(first + k) % spread}.{zone}" for k in range(several)]

    def ready(n: int) -> bytes:
        return (
            f"{head}To: {', '.join(recipients(n))}\r\nSubject: bench {number} {n}\r\n"
            f"Message-ID: <{number}.{n}@bench.test>\r\n"
            f"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\n{text}"
        ).encode()

    def built(n: int) -> EmailMessage:
        message = EmailMessage()
        message["From"] = "sender@bench.test"
        message["To"] = ", ".join(recipients(n))
        message["Subject"] = f"bench {number} {n}"
        message.set_content(text)
        return message

    def reckon() -> None:
        while True:
            sum(range(1000))

    waits: list[float] = []
    callers = plan.get("callers", 1)
    limit = plan.get("messages") or sys.maxsize
    pause = plan.get("pause_s", 0.0)
    made = built if plan["verb"] == "email" else ready
    with Mailstrom(plan["store"], timeout=60) as ms:
        ms.stats()  # connected, statements prepared
        if plan.get("warm"):
            ms.send(ready(-1), send_at=timedelta(days=1))
        for _ in range(plan.get("threads", 0)):
            threading.Thread(target=reckon, daemon=True).start()
        print(json.dumps({"ready": True}), flush=True)
        sys.stdin.readline()
        used = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.monotonic()
        until = begin + plan.get("seconds", 1e9)
        if plan["verb"] == "many":

            def stream() -> Iterator[bytes]:
                for n in range(limit):
                    yield ready(n)

            later = {"send_at": timedelta(seconds=plan["later_s"])} if "later_s" in plan else {}
            messages = len(ms.send_many(stream(), **later))
        else:

            def hand(first: int) -> None:
                n = first
                while n < limit and time.monotonic() < until:
                    message = made(n)
                    start = time.perf_counter()
                    ms.send(message)
                    waits.append(1000 * (time.perf_counter() - start))
                    n += callers
                    if pause:
                        time.sleep(pause)

            others = [threading.Thread(target=hand, args=(k,)) for k in range(1, callers)]
            for thread in others:
                thread.start()
            hand(0)
            for thread in others:
                thread.join()
            messages = len(waits)
        end = time.monotonic()
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    found = {
        "begin": begin, "end": end, "messages": messages, "cpu_s": cpu,
        "waits_ms": [round(wait, 3) for wait in waits],
    }  # fmt: skip
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
