"""An application with the engine inside: run as a script by the tests, and killed by them.

``python -P embedded_app.py STORE CONFIG [--fork] [--send ADDRESS] [--leave]``: opens the spool,
starts the engine with the tables of CONFIG (JSON), says ``ready`` and its process id on standard
output, and lives until its standard input ends. With ``--fork`` a child is forked once the engine
runs; it says ``child``, its id and what it thinks of its engine, and lives until it is killed.
``--send`` sends one message. ``--leave`` returns from the script at once, stopping nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

from mailstrom import Mailstrom


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("config")
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--leave", action="store_true")
    parser.add_argument("--send")
    arguments = parser.parse_args()
    ms = Mailstrom(arguments.store)
    ms.start(config=json.loads(arguments.config))
    if arguments.send:
        ms.send(
            f"From: a@sender.test\r\nTo: {arguments.send}\r\nSubject: s\r\n\r\nHi.\r\n".encode()
        )
    print("ready", os.getpid(), flush=True)
    if arguments.leave:
        return 0
    if arguments.fork and os.fork() == 0:
        print("child", os.getpid(), ms.worker_status().state, flush=True)
        while True:
            signal.pause()
    sys.stdin.read()
    return 0 if ms.stop(20) else 1


if __name__ == "__main__":
    sys.exit(main())
