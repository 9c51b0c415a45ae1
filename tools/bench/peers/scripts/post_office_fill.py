"""Hands N messages to django-post-office, 500 a call; prints ``[begin, end]`` (monotonic).

Runs in the peers' own interpreter.
"""

from __future__ import annotations

import json
import sys
import time

import django

django.setup()

from post_office import mail  # noqa: E402

TEXT = "The quick brown fox jumps over the lazy dog, and the mail goes out.\r\n" * 15
STEP = 500

begin = time.monotonic()
for first in range(0, int(sys.argv[1]), STEP):
    mail.send_many(
        [
            {
                "sender": "sender@bench.test",
                "recipients": ["u@d0.test"],
                "subject": "bench",
                "message": TEXT,
            }
            for _ in range(min(STEP, int(sys.argv[1]) - first))
        ]
    )
print(json.dumps([begin, time.monotonic()]))
