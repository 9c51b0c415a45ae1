"""``mailstrom user add|remove|list|check``: who may log in at the listener."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.spool import config_option
from mailstrom.errors import ConfigError
from mailstrom.printable import printable

LONGEST_LINE = 4096

file_option = click.option(
    "--file", "file", metavar="FILE", help="The file of users; else [listener] auth_file."
)


@click.group("user")
def command() -> None:
    """Change the file of users who may log in at the listener.

    A running engine reads a changed file at its next reload (HUP).
    """


@command.command("add")
@click.argument("name")
@file_option
@config_option
@click.option("--replace", is_flag=True, help="Give a user who is there this password.")
def add(name: str, file: str | None, config: str | None, replace: bool) -> int:
    """Add NAME. The password is asked for, or read from standard input (its first line)."""
    from mailstrom.passwords import hash_password
    from mailstrom.userfile import Users, require_name

    path = _file(file, config)
    _told(path, lambda: require_name(name))
    users = _users(path, missing_ok=True)
    taken = f"{name} is there already; --replace gives a new password"
    if name in users and not replace:
        return _fail(taken)
    hashed = hash_password(_password(twice=True))

    def put(users: Users) -> Users:
        if name in users and not replace:  # added meanwhile by somebody else
            raise _Taken
        return {**users, name: hashed}

    made = not os.path.exists(path)
    try:
        _change(path, put)
    except _Taken:
        return _fail(taken)
    click.echo(f"{printable(name)}: {'replaced' if name in users else 'added'}")
    if made and os.geteuid() == 0:
        place = shlex.quote(path)
        click.echo(
            f"mailstrom: {printable(path, 2000)} was made and only root can read it: give it to"
            f" the engine's user ('chown mailstrom {printable(place, 2000)}')",
            err=True,
        )
    return Exit.OK


@command.command("remove")
@click.argument("name")
@file_option
@config_option
def remove(name: str, file: str | None, config: str | None) -> int:
    """Remove NAME. Exit 1 if there is no such user."""
    from mailstrom.userfile import Users

    path = _file(file, config)
    if name not in _users(path):
        return _fail(f"{name}: no such user")

    def without(users: Users) -> Users:
        return {other: hashed for other, hashed in users.items() if other != name}

    _change(path, without)
    click.echo(f"{printable(name)}: removed")
    return Exit.OK


@command.command("list")
@file_option
@config_option
def list_users(file: str | None, config: str | None) -> int:
    """Print the names, one a line."""
    for name in _users(_file(file, config)):
        click.echo(printable(name))
    return Exit.OK


@command.command("check")
@click.argument("name")
@file_option
@config_option
def check(name: str, file: str | None, config: str | None) -> int:
    """Say whether a password is NAME's. Exit 1 if it is not, or there is no such user."""
    from mailstrom.passwords import matches

    hashed = _users(_file(file, config)).get(name)
    password = _password(twice=False)
    if hashed is None or not matches(password, hashed):
        return _fail(f"{name}: no such user, or not the password")
    click.echo(f"{printable(name)}: ok")
    return Exit.OK


class _Taken(Exception):
    """There is such a user already."""


def _file(file: str | None, config: str | None) -> str:
    """The file that is meant; the configuration need not be usable, nor the file be there."""
    from mailstrom.config.loading import named_path

    found = os.path.abspath(file) if file else named_path("listener", "auth_file", config)
    if found is None:
        raise ConfigError(
            "no file of users: name one by --file, or as auth_file of [listener] in the"
            " configuration"
        )
    return found


def _told(path: str, step: Callable[[], object]) -> None:
    try:
        step()
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _users(path: str, *, missing_ok: bool = False) -> dict[str, str]:
    from mailstrom.userfile import read_users

    try:
        return read_users(path)
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise ConfigError(f"{path}: no such file; 'mailstrom user add' makes it") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _change(path: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    from mailstrom.userfile import change_users

    try:
        change_users(path, change)
    except TimeoutError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _password(*, twice: bool) -> str:
    """From a terminal without showing it, else the first line of standard input."""
    from mailstrom.passwords import LONGEST_PASSWORD

    if sys.stdin is not None and sys.stdin.isatty():
        password = str(click.prompt("Password", hide_input=True, confirmation_prompt=twice))
    else:
        line = sys.stdin.buffer.readline(LONGEST_LINE + 1) if sys.stdin is not None else b""
        try:
            password = line.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            raise click.UsageError("the password on standard input is not UTF-8") from None
    if not password or len(password) > LONGEST_PASSWORD:
        raise click.UsageError(
            f"a password has 1 to {LONGEST_PASSWORD} characters: type one, or write it to standard"
            " input"
        )
    if "\0" in password:  # it ends the password in AUTH PLAIN (RFC 4616)
        raise click.UsageError("a password holds no NUL: no client could log in with it")
    return password


def _fail(sentence: str) -> int:
    click.echo(f"mailstrom: {printable(sentence)}", err=True)
    return Exit.FAILED
