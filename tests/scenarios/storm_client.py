"""A client process of a storm: sends messages one by one and writes down what was acknowledged.

Usage: ``python -P storm_client.py STORE RECORD SEED COUNT DOMAIN...``. One JSON line for each
``send()`` that returned, written after it returned: id, message_id, recipient, content (base64 of
the bytes for the wire).
"""

from __future__ import annotations

import base64
import json
import random
import sys
from email.message import EmailMessage
from pathlib import Path

from mailstrom import Mailstrom


def main(store: str, record: str, seed: str, count: str, *domains: str) -> None:
    """Send ``count`` messages of random length to random domains."""
    dice = random.Random(seed)
    with Mailstrom(store, timeout=30.0) as ms, Path(record).open("w") as written:
        for number in range(int(count)):
            recipient = f"u{number}@{dice.choice(domains)}"
            message = EmailMessage()
            message["From"], message["To"] = "storm@sender.test", recipient
            message["Subject"] = f"{seed} {number}"
            message["Message-ID"] = f"<{seed}.{number}@storm.test>"
            message.set_content("".join(f".{n}\n" for n in range(dice.randrange(1, 200))))
            id = ms.send(message)
            acknowledged = {
                "id": id,
                "message_id": message["Message-ID"],
                "recipient": recipient,
                "content": base64.b64encode(ms.raw(id)).decode(),
            }
            written.write(json.dumps(acknowledged) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
