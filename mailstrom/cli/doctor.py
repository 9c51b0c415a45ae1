"""``mailstrom doctor``: is this installation well, and if not, what is to be done?"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json, terminal
from mailstrom.cli.spool import json_option, place, spool_options
from mailstrom.printable import printable

if TYPE_CHECKING:
    from mailstrom.config import Config
    from mailstrom.doctor.examination import Examination
    from mailstrom.doctor.finding import Finding

WIDTH = 100
LONGEST = 2_000  # characters of a sentence with foreign words in it
_STYLES = {"problem": {"fg": "red", "bold": True}, "warning": {"fg": "yellow", "bold": True}}
_CONFIGURATION = frozenset({"configuration.file", "spool.kind", "spool.schema"})
_BUSY = "spool.busy"


@click.command("doctor")
@click.option("--no-network", is_flag=True, help="Leave out DNS, the way out, and the relay.")
@click.option(
    "--probe",
    metavar="DOMAIN",
    help="Whose mail hosts are connected to, without a relay. Default: gmail.com.",
)
@spool_options
@json_option
def command(
    no_network: bool, probe: str | None, config: str | None, store: str | None, as_json: bool
) -> int:
    """Look at everything that mail needs here, and say what to do about what is not well.

    Spool, write-ahead log and who reads it, disk, clock, configuration, engine, queue, nameservers,
    our name and PTR records, the way out, TLS. Nothing is written or sent, nobody waits; it takes
    a few seconds, 15 at most. Of mail hosts only the greeting is heard.

    Exit 0 if all is well (notes allowed), 1 if there are problems or warnings, 75 if the spool was
    too busy to be looked at, 78 if the configuration is unusable or the file is no spool of this
    version.
    """
    from mailstrom.doctor.examination import PROBE, examined

    effective, errors = _configuration(config, store)
    found = examined(
        _store(config, store, effective),
        effective,
        errors,
        with_network=not no_network,
        probe=_domain(probe or PROBE),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        for line in _lines(found):
            click.echo(line)
    return _exit(found)


def _domain(text: str) -> str:
    """A domain as the DNS knows it.

    Raises:
        BadParameter: it is none.
    """
    from mailstrom.errors import InvalidAddress
    from mailstrom.message.address import parse_domain
    from mailstrom.policy.answers import is_host_name

    try:
        domain = parse_domain(text)
    except InvalidAddress:
        domain = ""
    if not is_host_name(domain):
        raise click.BadParameter(f"{text!r} is no domain", param_hint="--probe")
    return domain


def _configuration(config: str | None, store: str | None) -> tuple[Config | None, tuple[str, ...]]:
    from mailstrom.config import load
    from mailstrom.errors import ConfigError

    try:
        return load(config, store=store), ()
    except ConfigError as error:
        return None, tuple(str(error).splitlines())


def _store(config: str | None, store: str | None, effective: Config | None) -> str | None:
    from mailstrom.errors import MailstromError

    if effective is not None:
        return effective.store
    try:
        return place(config, store)
    except MailstromError:
        return None


def _exit(found: Examination) -> Exit:
    bad = {one.check for one in found.findings if one.level == "problem"}
    if bad & _CONFIGURATION:
        return Exit.CONFIG
    if _BUSY in bad:
        return Exit.TEMPORARY
    return Exit.FAILED if found.level in ("problem", "warning") else Exit.OK


# --- for people -----------------------------------------------------------------------------------


def _lines(found: Examination) -> Iterator[str]:
    from mailstrom import __version__

    width = min(WIDTH, shutil.get_terminal_size().columns) if terminal() else WIDTH
    store = printable(found.store, LONGEST) if found.store else "no spool"
    unusable = any(one.check == "configuration.file" and one.level == "problem"
                   for one in found.findings)  # fmt: skip
    file = "an unusable configuration" if unusable else "no configuration file"
    if found.file is not None:
        file = printable(found.file, LONGEST)
    yield from _wrapped(f"mailstrom {__version__} looked at ", f"{store} ({file}).", width, 2)
    for one in found.findings:
        if one.level != "ok":
            yield ""
            yield from _told(one, width)
    well = [one for one in found.findings if one.level == "ok"]
    if well:
        yield ""
    names = max((len(one.check) for one in well), default=0)
    for one in well:
        head = f"OK       {one.check:<{names}}  "
        yield from _wrapped(head, printable(one.found, LONGEST), width)
    yield ""
    yield _summary(found)


def _told(one: Finding, width: int) -> Iterator[str]:
    word = f"{str(one.level).upper():<9}"
    style = _STYLES.get(str(one.level))
    coloured = style is not None and terminal() and not os.environ.get("NO_COLOR")
    yield f"{click.style(word, **style) if coloured and style else word}{one.check}"  # type: ignore[arg-type]
    yield from _wrapped(" " * 9, _sentence(one.found), width)
    if one.advice:
        yield from _wrapped(" " * 9 + "> ", printable(one.advice, LONGEST), width)


def _sentence(text: str) -> str:
    shown = printable(text, LONGEST)
    first = shown.split(" ", 1)[0]
    begin = shown[:1].upper() if first.isalpha() else shown[:1]  # no name of a host or a spool
    return f"{begin}{shown[1:]}{'' if shown.endswith(('.', '!', '?')) else '.'}"


def _wrapped(head: str, text: str, width: int, indent: int | None = None) -> list[str]:
    """Lines that fit; a word, which may be a path or a command's, is never broken."""
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=head,
        subsequent_indent=" " * (len(head) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(found: Examination) -> str:
    from mailstrom.doctor.finding import counted, plural

    amounts = counted(found.findings)
    bad = [plural(amounts[word], word) for word in ("problem", "warning", "note") if amounts[word]]
    verdict = {
        "problem": "Not well",
        "warning": "To be looked after",
        "note": "All well",
        "ok": "All well",
    }[str(found.level)]
    told = ", ".join([*bad, f"{plural(amounts['ok'], 'check')} ok"])
    return f"{verdict}: {told} ({found.seconds:.1f} s)."
