"""Configuration files, arguments and variables that mean no good.

Contract. Each file is given to the real commands: exit code 78 within the time that a sound file
has, one error that names the file and says what to do, no traceback, nothing raw that moves a
cursor. A running supervisor that is told to read such a file goes on with what it has, and says so.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.input_payloads import BREAKS
from tests.hostile.replies_told import look
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import environment
from tests.support.sockets import eventually
from tests.support.trial import Plan

LIMIT_S = 40
MEMORY = 1 << 30
REFUSED = "exit 78, the file and what is wrong named"
SMALL = 1 << 20
_KEYS = (
    ("", "store"), ("", "hostname"), ("delivery", "workers"), ("delivery", "mode"),
    ("delivery", "port"), ("delivery", "drain_timeout"), ("relay", "hosts"), ("relay", "username"),
    ("relay", "password_file"), ("relay", "tls"), ("dns", "nameservers"), ("dns", "timeout"),
    ("dns", "tls_hostname"), ("tls", "ca_file"), ("tls", "require"), ("retry", "schedule"),
    ("retry", "jitter"), ("sites", "connections"), ("stream.x", "priority"), ("log", "level"),
)  # fmt: skip
_VALUES: tuple[str, ...] = (
    "[]", "{}", "1979-05-27T07:32:00Z", "nan", "-inf", "[[1]]", '"\\u0000"', '[{"a" = 1}, "x"]',
    "0x" + "f" * 3_000, "9999999999999999999999", '"99999999999999999999d"', "-1", '"\\r\\nQUIT"',
    '"a\\u001b]52;c;eA==\\u0007b"', '"' + "x" * 70_000 + '"', '["a\\r\\nb"]', "'''\nx\n'''",
    '"\\u202e"', "1e400", '"1e9d"',
)  # fmt: skip
# What the key takes after all, in words that a person may well write.
_TAKEN = {("dns", "nameservers", "[]"), ("relay", "hosts", "[]")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that ended, or did not."""

    code: int | None
    told: str
    cpu_s: float


def ran(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Ran:
    """Run a command of ours, bounded in time and memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", *argv], cwd=cwd, env={**environment(), **(env or {})},
            stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False,
            preexec_fn=_bounded, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ran(code=None, told="it did not end", cpu_s=LIMIT_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
    return Ran(code=done.returncode, told=told, cpu_s=spent)


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def wrong(one: Ran, codes: Sequence[int], named: str = "") -> str | None:
    """What is not as it should be."""
    if one.code not in codes:
        return f"exit {one.code}: {one.told[-200:]!r}"
    if "Traceback" in one.told:
        return f"a traceback: {one.told[-200:]!r}"
    if one.code and named not in one.told:
        return f"{named!r} is not named: {one.told[:200]!r}"
    if len(one.told) > 100_000:
        return f"{len(one.told)} characters were told"
    return look(one.told)


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that are none, or no TOML, or TOML beyond all measure."""
    contents: dict[str, bytes] = {
        "bad UTF-8": b'hostname = "\xff\xfe"\n', "NUL": b'hostname = "a\0b"\n',
        "UTF-16": 'hostname = "a"\n'.encode("utf-16"), "a lone CR": b'hostname = "a"\rx = 1\n',
        "nested lists": b"x = " + b"[" * 100_000 + b"]" * 100_000,
        "nested tables": b"x = " + b"{a=" * 20_000 + b"1" + b"}" * 20_000,
        "a key of parts": b".".join([b"a"] * 100_000) + b" = 1\n",
        "a table twice": b"[log]\n[log]\n", "a key twice": b'hostname = "a"\nhostname = "b"\n',
        "a table over a key": b'[log]\nlevel = "info"\n[log.level]\nx = 1\n',
        "200,000 tables": b"".join(b"[t%d]\n" % n for n in range(100_000)),
        "an unknown key": b"[delivery]\nport_ = 25\n",
        "a key that rings": b'"\\u001b]52;c;eA==\\u0007" = 1\n',
        "a key with a line end": b'"a\\nmailstrom: all is well" = 1\n',
        "a value without end": b'hostname = "' + b"a" * 900_000,
        "an unknown table": b"[deliverz]\nx = 1\n", "a program": b"#!/bin/sh\nexec rm -rf\n",
        "JSON": b'{"hostname": "a"}', "an escape that is none": b'hostname = "\\ud800"\n',
    }  # fmt: skip
    for name, octets in contents.items():
        file = folder / f"{len(name)}{name.replace(' ', '_')}.toml"
        file.write_bytes(octets)
        yield name, file
    special: dict[str, Callable[[Path], object]] = {
        "/dev/zero": lambda file: file.symlink_to("/dev/zero"),
        "/dev/tty or none": lambda file: file.symlink_to("/dev/tty"),
        "a FIFO": lambda file: os.mkfifo(file), "a directory": lambda file: file.mkdir(),
        "a link to itself": lambda file: file.symlink_to(file.name),
        "100 MB": lambda file: _sparse(file, 100 * SMALL),
        "a name with line ends": lambda file: file.write_bytes(b"x ="),
    }  # fmt: skip
    for number, (name, make) in enumerate(special.items()):
        own = "a\n\x1b[2Jmailstrom: fine" if "line ends" in name else f"special{number}"
        file = folder / f"{own}.toml"
        make(file)
        yield name, file


def _sparse(file: Path, octets: int) -> None:
    with file.open("wb") as stream:
        stream.truncate(octets)


def values(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Table, key and value, every key with values of every wrong kind."""
    every = [(table, key, value) for table, key in _KEYS for value in _VALUES]
    every += [
        ("", "hostname", json.dumps(f"a{text}.test")) for text in BREAKS if text.isascii()
    ] + [("relay", "username", json.dumps(f"u{text}")) for text in BREAKS if not text.isprintable()]
    lot = random.Random(plan.seed)
    lot.shuffle(every)
    return iter(every)


_MANY = """
import json, signal, sys
from mailstrom.config import load
from mailstrom.errors import ConfigError
for line in sys.stdin:
    file = json.loads(line)
    signal.alarm(20)
    try:
        load(file, environ={"HOME": "/nonexistent"})
        print(json.dumps("taken"), flush=True)
    except ConfigError as error:
        print(json.dumps(str(error)), flush=True)
"""


def loaded(folder: Path, texts: Sequence[str]) -> list[str | None]:
    """What loading each text as a file said, in one child; None behind one that ended it."""
    names = []
    for number, text in enumerate(texts):
        file = folder / f"v{number}.toml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        names.append(str(file))
    done = subprocess.run(
        [sys.executable, "-P", "-c", _MANY], cwd=folder, env=environment(), check=False, text=True,
        input="".join(json.dumps(name) + "\n" for name in names), capture_output=True,
        timeout=LIMIT_S * 5, preexec_fn=_bounded, start_new_session=True,
    )  # fmt: skip
    told: list[str | None] = [json.loads(line) for line in done.stdout.splitlines()]
    return told + [None] * (len(texts) - len(told))


def rows(plan: Plan) -> Iterator[Row]:
    """Each kind as a row."""
    folder = plan.folder / "configuration"
    folder.mkdir()
    yield broken_files(folder, plan)
    yield broken_values(folder, plan)
    yield named_files(folder)


def broken_files(folder: Path, plan: Plan) -> Row:
    """Files that no parser takes."""
    findings: list[str] = []
    worst, tried, started = 0.0, 0, time.monotonic()
    commands: Sequence[Sequence[str]] = (
        ("mailstrom", "config", "check", "--config"), ("mailstrom.supervisor", "--config"),
    )  # fmt: skip
    for number, (name, file) in enumerate(files(folder)):
        for argv in commands if plan.long else commands[number % 2 :][:1]:
            one = ran([*argv, str(file)], folder)
            worst, tried = max(worst, one.cpu_s), tried + 1
            named = "fine.toml" if "line ends" in name else file.name
            text = wrong(one, (78,), named)
            if text is not None:
                findings.append(f"{name}: {text}")
    return Row(
        case="configuration files: bad octets, nested, doubled, endless, FIFO, device, directory",
        wanted=REFUSED, seen=REFUSED if not findings else "something else", tried=tried,
        seconds=time.monotonic() - started, cpu_s=worst, findings=tuple(findings),
    )  # fmt: skip


def broken_values(folder: Path, plan: Plan) -> Row:
    """Values of wrong kinds, beyond measure, with line ends."""
    some = list(values(plan))[: plan.pick(120, 1_000)]
    texts = [f"[{table}]\n{key} = {value}\n" if table else f"{key} = {value}\n"
             for table, key, value in some]  # fmt: skip
    findings: list[str] = []
    started = time.monotonic()
    for number, said in enumerate(loaded(folder, texts)):
        table, key, value = some[number]
        if said is None:
            findings.append(f"[{table}] {key} = {value[:60]}: it did not end in words")
            break
        if said == "taken":
            if _harmful(value) and (table, key) not in _PATHS and "99d" not in value:
                findings.append(f"[{table}] {key} = {value[:60]} was taken")
            continue
        if f"v{number}.toml" not in said:
            findings.append(f"[{table}] {key}: the file is not named: {said[:100]!r}")
        if "not TOML" not in said and key not in said:
            findings.append(f"[{table}] {key}: the key is not named: {said[:100]!r}")
        if (text := look(said)) is not None or len(said) > 5_000:
            findings.append(f"[{table}] {key}: {text or len(said)}")
    return Row(
        case="... each key with values of every wrong kind, line ends, NUL, numbers beyond measure",
        wanted="refused, file and key named", tried=len(some), seconds=time.monotonic() - started,
        seen="refused, file and key named" if not findings else "something else",
        findings=tuple(findings),
    )  # fmt: skip


_PATHS = {("", "store"), ("tls", "ca_file"), ("relay", "password_file")}


def _harmful(value: str) -> bool:
    return any(
        one in value for one in ("\\r", "\\n", "\\u00", "\\u20", "inf", "nan", "999999", "e400")
    )


def named_files(folder: Path) -> Row:
    """Files that a sound configuration names."""
    made: dict[str, Callable[[Path], object]] = {
        "a FIFO": os.mkfifo, "a directory": os.mkdir,
        "/dev/zero": lambda f: f.symlink_to("/dev/zero"),
        "nothing": lambda f: None, "1 GB": lambda f: _sparse(f, 1 << 30),
        "a line end first": lambda f: f.write_bytes(b"\nsecret\n"),
        "NUL within": lambda f: f.write_bytes(b"a\0b\n"),
        "bad UTF-8": lambda f: f.write_bytes(b"\xff\n"),
    }  # fmt: skip
    relay = (
        '[delivery]\nmode = "relay"\n[relay]\nhosts = ["127.0.0.1"]\nusername = "u"\n'
        "password_file = {}\n"
    )
    findings: list[str] = []
    names, texts = [], []
    for name, make in made.items():
        for key, text in (("password_file", relay), ("ca_file", "[tls]\nca_file = {}\n")):
            if key == "ca_file" and name in ("NUL within", "bad UTF-8"):
                continue  # loaded where a connection needs it, and told there
            file = folder / f"{key}-{len(names)}"
            make(file)
            names.append((name, key))
            texts.append(text.format(json.dumps(str(file))))
    for (name, key), said in zip(names, loaded(folder, texts), strict=True):
        if said is None or said == "taken" or key not in said or look(said):
            findings.append(f"{key}, {name}: {said!r}"[:200])
    return Row(
        case="... password_file and ca_file that are FIFOs, devices, endless or no text",
        wanted="refused, key named",
        seen="refused, key named" if not findings else "something else",
        tried=len(names), findings=tuple(findings),
    )  # fmt: skip


def reloads(stand: Stand, plan: Plan) -> Row:
    """HUP with such files: the engine goes on with what it has."""
    engine = stand.engine
    good = engine.config.read_bytes()
    folder = plan.folder / "reloads"
    folder.mkdir()
    some = [one for one in files(folder) if "line ends" not in one[0]]
    some = some if plan.long else some[::4] + some[-6:-3]
    findings: list[str] = []
    domain, _ = stand.network.site(None)  # type: ignore[arg-type]
    for name, file in some:
        before = len(engine.log("config.rejected"))
        engine.config.unlink()
        engine.config.symlink_to(file)
        engine.signal(signal.SIGHUP)
        try:
            eventually(
                lambda seen=before: len(engine.log("config.rejected")) > seen, 20,  # type: ignore[misc]
                what=f"config.rejected for {name}",
            )  # fmt: skip
            said = engine.log("config.rejected")[-1]
            if not said.get("error"):
                findings.append(f"{name}: nothing said")
        except (AssertionError, TimeoutError) as error:
            findings.append(str(error).splitlines()[0])
        finally:
            engine.config.unlink()
            engine.config.write_bytes(good)
    before = len(engine.log("config.reloaded"))
    engine.signal(signal.SIGHUP)
    engine.wait_log("config.reloaded", count=before + 1)
    status = engine.final(engine.send(f"after@{domain}"))
    if not status.succeeded:
        findings.append(f"then mail came to {status.status}")
    wanted = "config.rejected, and mail goes on"
    return Row(
        case="a running supervisor is told to read such files (HUP)", wanted=wanted,
        seen=wanted if not findings else "something else", tried=len(some),
        findings=tuple(findings),
    )  # fmt: skip
