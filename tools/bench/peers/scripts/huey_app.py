"""A huey application: one task that mails, and as a program, calls that enqueue it.

Runs in the peers' own interpreter, not in Mailstrom's. ``huey_app.py N`` prints ``[begin, end]``
(monotonic) of N calls.
"""

from __future__ import annotations

import json
import os
import smtplib
import sys
import threading
import time

from huey import SqliteHuey

queue = SqliteHuey(filename=os.path.join(os.environ["BENCH_HOME"], "queue.db"), timeout=60)
MESSAGE = (
    "From: sender@bench.test\r\nTo: u@d0.test\r\nSubject: bench\r\n\r\n"
    + ("The quick brown fox jumps over the lazy dog, and the mail goes out.\r\n") * 15
)
kept = threading.local()


@queue.task(retries=3, retry_delay=60)
def deliver(sender, recipient, message):
    """Send one message over this worker's connection."""
    if getattr(kept, "smtp", None) is None:
        kept.smtp = smtplib.SMTP(
            "127.0.0.1", int(os.environ["BENCH_PORT"]), local_hostname="peer.bench.test"
        )
    kept.smtp.sendmail(sender, [recipient], message)


if __name__ == "__main__":
    # the task's name must be the consumer's, not __main__'s
    from huey_app import deliver as task

    begin = time.monotonic()
    for _ in range(int(sys.argv[1])):
        task("sender@bench.test", "u@d0.test", MESSAGE)
    print(json.dumps([begin, time.monotonic()]))
