"""Messages through a real engine to smtp-sink; every recipient accounted for.

Clients are processes of their own; the engine is a supervisor with workers; the sink is Debian's
smtp-sink, which writes each message down before it answers the dot. Afterwards the checker holds
what was acknowledged, what the sink saw and what the spool says against each other. Bounded:
the number of messages, a deadline, a temporary directory that is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for tests.support; the packages come from site-packages (-P)

from mailstrom import Mailstrom  # noqa: E402
from tests.support.checker import History, Sent, check, content_digest  # noqa: E402
from tests.support.postfix import SmtpSink  # noqa: E402
from tests.support.witnesses import seen_by_peer, spool_rows  # noqa: E402

CLIENT = """
import json, sys
from mailstrom import Mailstrom
store, number, messages, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
line = b"The quick brown fox jumps over the lazy dog, and mail goes out.\\r\\n"
body = line * max(1, size // len(line))
with Mailstrom(store, timeout=30) as ms, open(sys.argv[5], "w") as out:
    for n in range(messages):
        header = f"<flood-{number}-{n}@flood.test>"
        to = f"user{n}@d{n % 7}.test"
        raw = (f"From: sender@flood.test\\r\\nTo: {to}\\r\\nSubject: flood {number} {n}\\r\\n"
               f"Message-ID: {header}\\r\\nDate: Fri, 20 Nov 2026 12:00:00 +0000\\r\\n\\r\\n"
               ).encode() + body
        out.write(json.dumps([ms.send(raw), header, to]) + "\\n")
"""


def main() -> int:
    """Run once; 0 when nothing was lost, doubled unmarked, or left over."""
    options = argparse.ArgumentParser(
        prog="tools/flood", description=(__doc__ or "").splitlines()[0]
    )
    options.add_argument("--messages", type=int, default=10_000, help="in all (default 10000)")
    options.add_argument("--clients", type=int, default=4, help="client processes (default 4)")
    options.add_argument("--workers", type=int, default=2, help="delivery workers (default 2)")
    options.add_argument("--size", type=int, default=1024, help="body octets (default 1024)")
    options.add_argument("--kill", type=float, default=0, help="kill -9 a worker each N seconds")
    options.add_argument("--seed", type=int, default=1, help="which worker is killed when")
    options.add_argument("--deadline", type=float, default=240, help="seconds for the whole run")
    options.add_argument("--json", action="store_true", help="one JSON object")
    figures = flood(options.parse_args())
    wants_json = "--json" in sys.argv
    print(json.dumps(figures) if wants_json else figures["text"])
    return 0 if figures["clean"] else 1


def flood(options: argparse.Namespace) -> dict[str, object]:
    """One run; its figures."""
    with tempfile.TemporaryDirectory(prefix="mailstrom-flood-") as folder, SmtpSink() as sink:
        home = Path(folder)
        store = home / "spool.db"
        config = home / "mailstrom.toml"
        config.write_text(
            f'store = "{store}"\nhostname = "flood.test"\n[delivery]\nmode = "relay"\n'
            f'[relay]\nhosts = ["{sink.address}:{sink.port}"]\n[retry]\nschedule = ["1s"]\n'
            '[log]\nlevel = "warning"\n[supervisor]\nrestart_backoff = ["100ms"]\n'
        )
        with (home / "log").open("w") as log:
            engine = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "mailstrom.supervisor",
                    "--config",
                    str(config),
                    "--workers",
                    str(options.workers),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home,
            )
            try:
                return _run(options, home, str(store), sink, engine)
            finally:
                if engine.poll() is None:
                    engine.kill()
                    engine.wait()


def _run(
    options: argparse.Namespace,
    home: Path,
    store: str,
    sink: SmtpSink,
    engine: subprocess.Popen[bytes],
) -> dict[str, object]:
    started = time.monotonic()
    deadline = started + options.deadline
    share = -(-options.messages // options.clients)
    clients = []
    for number in range(options.clients):
        count = min(share, options.messages - number * share)
        clients.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    CLIENT,
                    store,
                    str(number),
                    str(count),
                    str(options.size),
                    str(home / f"sent-{number}"),
                ],
                cwd=home,
            )
        )
    chance = random.Random(options.seed)
    kills = 0
    next_kill = started + options.kill if options.kill else float("inf")
    accepted_at = None
    ms = Mailstrom(store, timeout=30)
    while time.monotonic() < deadline:
        now = time.monotonic()
        if accepted_at is None and all(client.poll() is not None for client in clients):
            accepted_at = now
        if now >= next_kill:
            next_kill = now + options.kill
            kills += _kill_one(ms, chance)
        left = ms.query(
            "SELECT count(*) AS n FROM recipients"
            " WHERE status NOT IN ('delivered', 'failed', 'cancelled')"
        )[0].n
        if accepted_at is not None and left == 0:
            break
        time.sleep(0.1)
    finished_at = time.monotonic()
    engine.send_signal(signal.SIGTERM)
    code = engine.wait(timeout=60)
    return _figures(
        options,
        home,
        ms,
        sink,
        {
            "kills": kills,
            "exit": code,
            "accepted_s": round((accepted_at or finished_at) - started, 2),
            "finished_s": round(finished_at - started, 2),
            "clients_failed": sum(client.wait() != 0 for client in clients),
        },
    )


def _kill_one(ms: Mailstrom, chance: random.Random) -> int:
    pids = [
        row.pid
        for row in ms.query("SELECT pid FROM workers WHERE kind = 'delivery' AND state = 'ready'")
    ]
    if not pids:
        return 0
    try:
        os.kill(chance.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _figures(
    options: argparse.Namespace,
    home: Path,
    ms: Mailstrom,
    sink: SmtpSink,
    run: dict[str, object],
) -> dict[str, object]:
    sent = []
    with ms:
        for file in sorted(home.glob("sent-*")):
            for line in file.read_text().splitlines():
                id, header, to = json.loads(line)
                sent.append(
                    Sent(id=id, message_id=header, recipient=to, digest=content_digest(ms.raw(id)))
                )
        received = sink.received()
        rows = spool_rows(ms.query)
        report = check(History(acknowledged=tuple(sent), seen=seen_by_peer(received), spool=rows))
        findings = ms.check()
        doubt = ms.query("SELECT count(*) AS n FROM recipients WHERE in_doubt")[0].n
    at_sink = sum(len(one.recipients) for one in received)
    seconds = float(str(run["finished_s"]))
    figures: dict[str, object] = {
        "accepted": len(sent),
        "at_sink": at_sink,
        "lost": len(report.lost),
        "phantom": len(report.phantom),
        "wrong_bytes": len(report.wrong_bytes),
        "doubled_marked": len(report.doubled_marked),
        "doubled_unmarked": len(report.doubled_unmarked),
        "stuck": len(report.stuck),
        "recipients_in_doubt": doubt,
        "spool_findings": findings,
        "messages_per_second": round(len(sent) / seconds),
        **run,
        "clean": report.clean and not findings and len(sent) == options.messages,
    }
    figures["text"] = "\n".join(
        [f"{name:20} {value}" for name, value in figures.items()] + [report.describe()]
    )
    return figures


if __name__ == "__main__":
    sys.exit(main())
