"""The fixtures, in a pytest of their own, as an application's tests use them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points

import pytest

from tests.docs.blocks import CHECKOUT

pytest_plugins = ["pytester"]

MODULE = "mailstrom.testing.pytest_plugin"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """The plugin is found by its entry point where Mailstrom is installed, else it is named."""
    installed = entry_points(group="pytest11", name="mailstrom")
    named = [] if installed else ["-p", MODULE]
    quiet = ["-p", "no:randomly", "-p", "no:cacheprovider"]
    with pytest.MonkeyPatch.context() as patch:
        if "PYTHONPATH" in os.environ:  # run from a checkout: that pytest stands elsewhere
            paths = os.environ["PYTHONPATH"].split(os.pathsep)
            patch.setenv("PYTHONPATH", os.pathsep.join(str(CHECKOUT / path) for path in paths))
        return pytester.runpytest_subprocess(*named, *quiet, *options)


def test_the_entry_point_is_the_plugin() -> None:
    assert PROJECT["project"]["entry-points"]["pytest11"] == {"mailstrom": MODULE}
    needed, extra = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]
    assert any(one.startswith("pytest>") for one in extra["testing"])
    assert not any(one.startswith("pytest") for one in needed)


def test_an_application_is_tested(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import smtplib
        from mailstrom import Mailstrom, Status

        CONTENT = b"From: shop@example.org\\r\\nSubject: Hi\\r\\n\\r\\nHello\\r\\n"

        def test_by_smtp(mailstrom_sink):
            with smtplib.SMTP(mailstrom_sink.host, mailstrom_sink.port) as client:
                client.sendmail("shop@example.org", ["alice@example.com"], CONTENT)
            [mail] = mailstrom_sink.messages
            assert mail.message()["Subject"] == "Hi"

        def test_each_test_has_its_own(mailstrom_sink, mailstrom_spool):
            assert mailstrom_sink.messages == []
            assert mailstrom_spool.find() == []

        def test_by_the_spool(mailstrom_spool):
            with Mailstrom() as application:
                id = application.send(CONTENT, recipients=["alice@example.com"])
            [(address, seen)] = mailstrom_spool.status(id).recipients.items()
            assert (address, seen.status) == ("alice@example.com", Status.QUEUED)

        def test_by_both(mailstrom_spool, mailstrom_sink):
            mailstrom_spool.start(config=mailstrom_sink.config)
            id = mailstrom_spool.send(
                CONTENT, recipients=["defer-once@example.com", "refuse@example.com"]
            )
            status = mailstrom_spool.wait(id, timeout=60)
            assert status.recipients["defer-once@example.com"].status is Status.DELIVERED
            assert status.recipients["refuse@example.com"].status is Status.FAILED
            [mail] = mailstrom_sink.wait()
            assert mail.recipients == ("defer-once@example.com",)
        """
    )
    run(pytester, "-W", "error").assert_outcomes(passed=4)


def test_fixtures_are_listed_with_what_they_are(pytester: pytest.Pytester) -> None:
    listed = run(pytester, "--fixtures").stdout.str()
    assert "mailstrom_sink" in listed
    assert "A mail server that keeps what it gets" in listed


def test_a_test_that_asks_for_neither_loads_neither(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            loaded = {name for name in sys.modules if name.startswith("mailstrom")}
            assert loaded <= {"mailstrom", "mailstrom.testing", "mailstrom.testing.pytest_plugin"}
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_the_test_kit_never_loads_pytest() -> None:
    program = (
        "import sys; from mailstrom.testing import Act, Per, Rule, Script, Sink, SMTPServer;"
        "print('pytest' in sys.modules, Sink.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["False", "Sink"]
