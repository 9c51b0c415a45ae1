"""A DNS server for one zone, light enough not to be what is measured.

Usage: ``names.py FILE.json``; the zone is ``{name: {"MX": ["10 host."]}}`` or ``{name: {"A":
["127.0.0.1"]}}``, names absolute. UDP on loopback, a port that was free, told as one JSON line
``{"port": n}``; TERM ends it. What it does not have it denies, with NXDOMAIN for a name it does not
know. It believes what it is asked to be one plain question, which is what our resolver asks.
"""

from __future__ import annotations

import json
import socket
import struct
import sys

TTL_S = 300
TYPES = {"A": 1, "MX": 15}
NO_NAME, NO_ERROR = 0x8183, 0x8180


def wire(name: str) -> bytes:
    """A name as a message holds it."""
    labels = name.rstrip(".").encode("ascii").split(b".")
    return b"".join([bytes([len(label)]) + label for label in labels]) + b"\0"


def data(kind: str, text: str) -> bytes:
    """A record's data."""
    if kind == "A":
        return socket.inet_aton(text)
    preference, _, host = text.partition(" ")
    return struct.pack("!H", int(preference)) + wire(host)


def answers(zone: dict[str, dict[str, list[str]]]) -> dict[bytes, bytes]:
    """By question: how many records, and the records."""
    found = {}
    for name, kinds in zone.items():
        for kind, texts in kinds.items():
            records = b""
            for text in texts:
                content = data(kind, text)
                records += struct.pack("!HHHIH", 0xC00C, TYPES[kind], 1, TTL_S, len(content))
                records += content
            found[wire(name) + struct.pack("!HH", TYPES[kind], 1)] = (
                struct.pack("!HHHHH", NO_ERROR, 1, len(texts), 0, 0),
                records,
            )
    return {asked: head + asked + records for asked, (head, records) in found.items()}


def main() -> None:
    """Serve until ended."""
    with open(sys.argv[1], encoding="utf-8") as file:
        zone = json.load(file)
    known = answers(zone)
    names = {wire(name) for name in zone}
    nothing = struct.pack("!HHHHH", NO_ERROR, 1, 0, 0, 0)
    nobody = struct.pack("!HHHHH", NO_NAME, 1, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        server.bind(("127.0.0.1", 0))
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        while True:
            message, sender = server.recvfrom(512)
            asked = message[12:].lower()
            answer = known.get(asked)
            if answer is None:
                answer = (nothing if asked[:-4] in names else nobody) + asked
            server.sendto(message[:2] + answer, sender)


if __name__ == "__main__":
    main()
