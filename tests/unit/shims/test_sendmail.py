"""``mailstrom-sendmail`` as a process: what it takes in silence, how it says that it did not."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from email import message_from_bytes
from pathlib import Path

import apsw
import pytest

from mailstrom.shims import place as place_module
from mailstrom.shims.place import caller, place
from mailstrom.shims.sysexits import CONFIG, DATA, PERMISSION, TEMPORARY, USAGE
from tests.unit.shims.calling import TIMEOUT, TREE, Spool

LOGIN = pwd.getpwuid(os.getuid()).pw_name
BOB = "bob@b.example"


# What is loaded later could not be: root's interpreter need not be anybody's.
AS_NOBODY = """
import os, sys
import importlib, mailstrom.storage.sqlite.client, mailstrom.storage.sqlite.provider
from mailstrom.shims import sendmail
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(sendmail.run("mailstrom-sendmail", sys.argv[1:], os.environ))
"""


def body(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[2]


class TestEnvelope:
    def test_the_sender_is_who_calls(self, spool: Spool) -> None:
        origin = place(None, {"MAILSTROM_STORE": str(spool.path)}).origin
        sender, recipients, content = spool.taken(BOB, "root", text=b"Subject: x\n\nhi\n")
        assert sender == f"{LOGIN}@{origin}"
        assert recipients == [BOB, f"root@{origin}"]
        (row,) = spool.ms.query("SELECT origin, client FROM messages")
        assert row == ("sendmail", f'{{"user": "{LOGIN}"}}')
        told = message_from_bytes(content)
        assert f"{LOGIN}@{origin}" in told["From"]
        assert told["Date"]
        assert told["Message-ID"].endswith(f"@{origin}>")
        assert told["Received"].split()[2:4] == ["with", "local"]

    @pytest.mark.parametrize(
        ("given", "sender"),
        [
            ("ann@a.example", "ann@a.example"),
            ("Ann <ann@a.example>", "ann@a.example"),
            ("<ann@a.example>", "ann@a.example"),
            ("", ""),
            ("<>", ""),
        ],
    )
    def test_the_sender_that_is_given(self, spool: Spool, given: str, sender: str) -> None:
        assert spool.taken("-f", given, BOB)[0] == sender
        assert spool.taken(f"-r{given or '<>'}", BOB)[0] == sender

    def test_recipients_of_the_header_and_of_the_command_line(self, spool: Spool) -> None:
        text = (
            b"To: a@a.example, Friends: b@b.example,c@c.example;\nTo: d@d.example\n"
            b"Cc: a@a.example\nBcc: eve@e.example,\n mallory@e.example\nSubject: x\n\nhi\n"
        )
        _, recipients, content = spool.taken("-ti", "f@f.example, g@g.example", text=text)
        assert recipients == [
            "f@f.example", "g@g.example", "a@a.example", "b@b.example", "c@c.example",
            "d@d.example", "eve@e.example", "mallory@e.example",
        ]  # fmt: skip
        assert b"e.example" not in content
        # named alone, those of the header are none
        assert spool.taken(BOB, text=text)[1] == [BOB]

    def test_of_what_is_resent_the_newest_block_counts(self, spool: Spool) -> None:
        text = (
            b"Resent-To: r@r.example\nResent-Bcc: s@s.example\nReceived: by x; now\n"
            b"Resent-To: old@o.example\nTo: a@a.example\nFrom: b@b.example\n\nhi\n"
        )
        _, recipients, content = spool.taken("-t", text=text)
        assert recipients == ["r@r.example", "s@s.example"]
        assert b"s@s.example" not in content

    def test_notices(self, spool: Spool) -> None:
        spool.taken("-N", "success,delay", "-R", "hdrs", "-V", "order7", "-fann@a.example", BOB)
        (row,) = spool.ms.query("SELECT ret, envid FROM messages")
        assert row == ("hdrs", "order7")
        (notify,) = spool.ms.query("SELECT notify FROM recipients")[0]
        assert notify == "success,delay"

    def test_options_by_header(self, spool: Spool) -> None:
        text = b"X-Mailstrom-Idempotency-Key: k\nX-Mailstrom-Tags: a,b\nSubject: x\n\nhi\n"
        _, _, content = spool.taken(BOB, text=text)
        assert b"Mailstrom-" not in content.replace(b"X-Mailstrom", b"Mailstrom")
        again = spool.call(BOB, text=text)
        assert again.returncode == 0
        assert len(spool.ms.find(tag="a")) == 1
        spool.refused(DATA, BOB, text=text.replace(b"hi", b"other"), said="key")
        spool.refused(DATA, BOB, text=b"X-Mailstrom-Tag: a\n\n", said="X-Mailstrom-Tags")


class TestNames:
    def test_the_name_of_the_author(self, spool: Spool) -> None:
        assert (
            b"\r\nFrom: Ann Doe <ann@a.example>\r\n"
            in spool.taken("-F", "Ann Doe", "-fann@a.example", BOB)[2]
        )
        named = b"From: Other <o@o.example>\n\n"
        assert b"Ann" not in spool.taken("-F", "Ann Doe", "-f", "x@y.example", BOB, text=named)[2]

    def test_where_it_comes_from(self) -> None:
        assert caller({"NAME": "By Environment"}, None).name == "By Environment"
        assert caller({"NAME": "By Environment"}, "By Flag").name == "By Flag"
        assert caller({}, "a\nb").name == ""
        assert caller({}, None).login == LOGIN

    def test_of_the_machine(self, spool: Spool, tmp_path: Path) -> None:
        environ = {"MAILSTROM_STORE": str(spool.path)}
        mailname, config = tmp_path / "mailname", tmp_path / "mailstrom.toml"
        config.write_text('hostname = "mx.c.example"\n')
        nodename = os.uname().nodename
        assert place(None, environ, str(mailname)).hostname == nodename
        found = place(str(config), environ, str(mailname))
        assert (found.hostname, found.origin) == ("mx.c.example", "mx.c.example")
        mailname.write_text("m.example\n")
        assert place(str(config), environ, str(mailname)).origin == "m.example"
        assert place(None, environ, str(mailname)).hostname == nodename
        for odd in ("", "two words\n", "-x-\n", "\x00\xff"):
            mailname.write_text(odd)
            assert place(str(config), environ, str(mailname)).origin == "mx.c.example"

    def test_a_user_without_an_entry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(place_module.os, "getuid", lambda: 3_999_999_999)
        assert caller({}, None) == ("uid3999999999", "")


class TestContent:
    @pytest.mark.parametrize("flag", [(), ("-i",), ("-oi",)])
    @pytest.mark.parametrize(
        "text", [b"a\n.\nb\n", b"a\r\n.\r\nb\r\n", b"a\n.", b"a\n.b\n..\n", b"x.\n", b".\nb\n"]
    )
    def test_a_dot_alone_ends_it_unless_it_is_told_not_to(
        self, spool: Spool, flag: tuple[str, ...], text: bytes
    ) -> None:
        _, _, content = spool.taken(*flag, BOB, text=b"Subject: x\n\n" + text)
        whole = text.replace(b"\r\n", b"\n")
        if not flag:
            lines = whole.split(b"\n")
            if b"." in lines:
                whole = b"".join(line + b"\n" for line in lines[: lines.index(b".")])
        assert body(content) == (whole + b"\n" * (whole[-1:] not in (b"\n", b""))).replace(
            b"\n", b"\r\n"
        )

    def test_a_dot_is_found_wherever_the_pipe_cuts(self, spool: Spool) -> None:
        text = b"Subject: x\n\n" + b"line\n" * 13_000
        for cut in (65_536 - 1, 65_536, 65_536 + 1, 65_536 + 2):
            whole = (text[: cut - 2] + b"\n.\nrest" + text)[: 2 * cut]
            assert b"rest" not in spool.taken(BOB, text=whole)[2]

    def test_it_ends_at_the_dot_though_the_writer_stays(self, spool: Spool) -> None:
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "mailstrom.shims.sendmail", BOB],
            stdin=subprocess.PIPE,
            env=spool.environ(),
        ) as child:
            assert child.stdin is not None
            child.stdin.write(b"Subject: x\n\nhi\n.\n")
            child.stdin.flush()
            assert child.wait(TIMEOUT) == 0

    def test_input_that_somebody_made_non_blocking_is_waited_for(self, spool: Spool) -> None:
        behind, before = os.pipe()
        os.set_blocking(behind, False)
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "mailstrom.shims.sendmail", "-bs"],
            stdin=behind, stdout=subprocess.PIPE, env=spool.environ(),
        ) as child:  # fmt: skip
            os.close(behind)
            assert child.stdout is not None
            assert child.stdout.readline().startswith(b"220 ")  # it found nothing to read since
            os.write(before, b"QUIT\r\n")
            os.close(before)
            assert child.stdout.readline().startswith(b"221 ")
            assert child.wait(TIMEOUT) == 0

    def test_line_ends_of_any_kind(self, spool: Spool) -> None:
        for end in (b"\n", b"\r\n"):
            text = b"Subject: x" + end + end + b"a" + end + b"b"
            assert body(spool.taken("-i", BOB, text=text)[2]) == b"a\r\nb\r\n"

    def test_what_cron_sends(self, spool: Spool) -> None:
        text = (
            b"From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@box> backup\n"
            b"Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n"
            b"X-Cron-Env: <SHELL=/bin/sh>\n\n 10%\r 20%\r 100%\nbin\x00ary " + b"x" * 1200 + b"\n"
        )
        _, recipients, content = spool.taken("-FCronDaemon", "-odi", "-oem", "-oi", "-t", text=text)
        assert len(recipients) == 1
        assert recipients[0].startswith("root@")
        told = message_from_bytes(content)
        assert told["From"] == f"{recipients[0]} (Cron Daemon)"
        decoded = told.get_payload(decode=True)
        assert isinstance(decoded, bytes)
        assert decoded.replace(b"\r\n", b"\n") == text.partition(b"\n\n")[2]

    def test_nothing_at_all(self, spool: Spool) -> None:
        assert body(spool.taken(BOB)[2]) == b""

    @pytest.mark.parametrize("words", [("-G", BOB), ("-Gt",)])
    def test_a_gateway_touches_no_header_but_bcc(
        self, spool: Spool, words: tuple[str, ...]
    ) -> None:
        text = b"To: root\nX-Odd: 1\nBcc: x@x.example,\n y@y.example\n\nBcc: in the body\n"
        content = spool.taken("-fann@a.example", *words, text=text)[2]
        kept = b"\r\nTo: root\r\nX-Odd: 1\r\n\r\nBcc: in the body\r\n"
        assert content.endswith(kept)
        assert content.startswith(b"Received: by ")


class TestRefused:
    def test_the_command_line(self, spool: Spool) -> None:
        spool.refused(USAGE, said="recipient")
        spool.refused(USAGE, "-t", text=b"Subject: x\n\n", said="To, Cc or Bcc")
        spool.refused(USAGE, "-bd", said="mailstrom serve")
        spool.refused(USAGE, "-f", "a@a.example, b@b.example", BOB, said="not one")

    def test_addresses_and_content(self, spool: Spool) -> None:
        spool.refused(DATA, "a b@c.example", said="recipient")
        spool.refused(DATA, "-f", "a@", BOB, said="sender")
        spool.refused(DATA, "-t", text=b"To: a@b.example <c@d.example>\n\n", said="To")
        spool.refused(DATA, BOB, "bob@-b-.example", said="hyphen")
        spool.refused(DATA, BOB, text=b"DKIM-Signature: v=1\n\n" + b"x" * 1000, said="998")
        spool.refused(DATA, "\udcff@b.example")

    def test_without_a_spool(self, spool: Spool, tmp_path: Path) -> None:
        missing = tmp_path / "missing.db"
        done = spool.call(BOB, environ=spool.environ(MAILSTROM_STORE=str(missing)))
        assert done.returncode == TEMPORARY
        assert b"mailstrom serve" in done.stderr
        assert not missing.exists()
        done = spool.call(BOB, environ=spool.environ(MAILSTROM_STORE="memory:"))
        assert done.returncode == CONFIG

    def test_with_a_broken_configuration(self, spool: Spool, tmp_path: Path) -> None:
        config = tmp_path / "mailstrom.toml"
        config.write_text("store = [")
        environ = spool.environ()
        del environ["MAILSTROM_STORE"]
        done = spool.call("-C", str(config), BOB, environ=environ)
        assert (done.returncode, done.stdout) == (CONFIG, b"")
        config.write_text(f'store = "{spool.path}"\n')
        assert spool.call("-C", str(config), BOB, environ=environ).returncode == 0
        other = tmp_path / "other.db"
        other.write_bytes(b"no spool" * 1000)
        done = spool.call(BOB, environ=spool.environ(MAILSTROM_STORE=str(other)))
        assert done.returncode == CONFIG

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
    def test_without_permission(self, spool: Spool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            home = Path(folder) / "spool"
            home.mkdir(mode=0o750)
            other = Spool(home)
            for mode in (0o750, 0o755):
                home.chmod(mode)
                done = subprocess.run(
                    [sys.executable, "-P", "-c", AS_NOBODY, BOB],
                    input=b"hi",
                    capture_output=True,
                    timeout=TIMEOUT,
                    env=other.environ(),
                    cwd="/",
                )
                assert done.returncode == PERMISSION, done.stderr
                assert b"group mailstrom" in done.stderr
                assert done.stderr.count(b"\n") == 1
            other.ms.close()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
    def test_where_the_configuration_of_the_machine_is_kept_from_the_user(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            kept = Path(folder) / "kept"
            kept.mkdir(mode=0o750)
            named = kept / "mailstrom.toml"
            named.write_text(f'store = "{folder}/spool.db"\n')
            begin = f"import mailstrom.client.locate as it\nit.SYSTEM_FILE = {str(named)!r}\n"
            ways = {
                "found": ([], {}, (b"kept cannot be entered by this user", b"to its group")),
                "-C": (
                    ["-C", str(named)],
                    {},
                    (b"mailstrom.toml: cannot be reached by this user",),
                ),
                "environment": (
                    [],
                    {"MAILSTROM_CONFIG": str(named)},
                    (b"mailstrom.toml: cannot be reached by this user",),
                ),
            }
            for options, variables, words in ways.values():
                done = subprocess.run(
                    [sys.executable, "-P", "-c", begin + AS_NOBODY, *options, BOB],
                    input=b"hi",
                    capture_output=True,
                    timeout=TIMEOUT,
                    env={"PYTHONPATH": TREE, "HOME": folder, **variables},
                    cwd="/",
                )
                assert done.returncode == CONFIG, done.stderr
                for said in words:
                    assert said in done.stderr

    def test_while_another_writes_for_too_long(self, spool: Spool) -> None:
        program = (
            "import os, sys\nfrom mailstrom.shims import place, sendmail\nplace.BUSY_MS = 300\n"
            "sys.exit(sendmail.run('mailstrom-sendmail', sys.argv[1:], os.environ))"
        )
        words = [sys.executable, "-P", "-c", program, BOB]
        holder = apsw.Connection(str(spool.path))
        holder.execute("BEGIN IMMEDIATE")
        try:
            done = subprocess.run(
                words, input=b"hi", capture_output=True, timeout=TIMEOUT, env=spool.environ()
            )
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        assert (done.returncode, done.stdout) == (TEMPORARY, b""), done.stderr
        assert done.stderr.count(b"\n") == 1
        assert spool.ms.query("SELECT count(*) FROM messages")[0][0] == 0

    def test_what_is_cut_off_is_not_taken(self, spool: Spool) -> None:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "mailstrom.shims.sendmail", BOB],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=spool.environ(),
        )
        assert child.stdin is not None
        child.stdin.write(b"Subject: half\n\n")
        child.stdin.flush()
        child.send_signal(signal.SIGTERM)
        assert child.wait(TIMEOUT) != 0
        child.communicate()
        assert spool.ms.query("SELECT count(*) FROM messages")[0][0] == 0

    def test_where_input_cannot_be_read(self, spool: Spool) -> None:
        for stdin in (os.open("/dev/null", os.O_WRONLY), None):
            done = subprocess.run(
                [sys.executable, "-P", "-m", "mailstrom.shims.sendmail", BOB],
                stdin=stdin,
                capture_output=True,
                timeout=TIMEOUT,
                env=spool.environ(),
                preexec_fn=None if stdin is not None else lambda: os.close(0),
            )
            assert done.returncode == TEMPORARY
            if stdin is not None:
                os.close(stdin)
        assert spool.ms.query("SELECT count(*) FROM messages")[0][0] == 0


@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_whoever_closes_its_files_gets_the_code_alone(spool: Spool, closing: str) -> None:
    program = f'"{sys.executable}" -P -m mailstrom.shims.sendmail'
    for words, code in (("-bd", USAGE), (f"-f '' {BOB}", 75 if "<" in closing else 0)):
        done = subprocess.run(
            ["sh", "-c", f"{program} {words} {closing}"],
            input=b"hi\n",
            capture_output=True,
            timeout=TIMEOUT,
            env=spool.environ(),
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    with subprocess.Popen(
        ["sh", "-c", f"{program} -bs {closing}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=spool.environ(),
    ) as session:
        assert (session.wait(TIMEOUT) == 0) == (">&-" not in closing.split())
    assert spool.ms.check() == []


class TestSmtp:
    def talk(self, spool: Spool, *lines: str) -> list[str]:
        done = spool.call("-bs", text="".join(f"{line}\r\n" for line in lines).encode())
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().split("\r\n")[:-1]

    def test_messages_one_after_the_other(self, spool: Spool) -> None:
        letter = ("Subject: x", "", "..dot", "", ".")
        said = self.talk(
            spool, "EHLO box",
            "MAIL FROM:<ann@a.example> RET=HDRS", f"RCPT TO:<{BOB}> NOTIFY=NEVER", "DATA", *letter,
            "MAIL FROM:<>", f"RCPT TO:<{BOB}>", "DATA", *letter, "QUIT",
        )  # fmt: skip
        queued = [
            line.rpartition(" ")[2] for line in said if line.startswith("250 2.0.0 Ok: queued")
        ]
        assert len(queued) == 2
        assert [spool.ms.status(id).sender for id in queued] == ["ann@a.example", ""]
        assert said[-1].startswith("221")
        content = spool.ms.raw(queued[0])
        assert content is not None
        assert body(content) == b".dot\r\n\r\n"
        assert message_from_bytes(content)["Received"].startswith("from box (unknown)")
        (row,) = spool.ms.query("SELECT origin, ret FROM messages WHERE sender <> ''")
        assert row == ("sendmail", "hdrs")

    def test_addresses_of_the_envelope_are_completed(self, spool: Spool) -> None:
        self.talk(
            spool, "HELO box", "MAIL FROM:<cron>", "RCPT TO:<root>", "RCPT TO:<Postmaster>",
            "DATA", "Subject: x", "", ".", "QUIT",
        )  # fmt: skip
        ((sender,),) = spool.ms.query("SELECT sender FROM messages")
        local, _, origin = sender.partition("@")
        assert local == "cron"
        rows = spool.ms.query("SELECT address FROM recipients")
        assert {row[0] for row in rows} == {f"root@{origin}", f"Postmaster@{origin}"}

    def test_refusals(self, spool: Spool) -> None:
        said = self.talk(
            spool, "HELO box", "MAIL FROM:<ann@a.example>", "RCPT TO:<bob@-b-.example>",
            f"RCPT TO:<{BOB}>", "DATA", "X-Mailstrom-Priority: soon", "", ".", "NOOP",
        )  # fmt: skip
        assert said[3].startswith("501")
        assert said[6].startswith("554")
        assert "X-Mailstrom-Priority" in said[6]
        assert said[7].startswith("250")
        assert spool.ms.query("SELECT count(*) FROM messages")[0][0] == 0

    def test_the_end_of_input_in_a_message_leaves_nothing(self, spool: Spool) -> None:
        self.talk(spool, "HELO box", "MAIL FROM:<a@a.example>", f"RCPT TO:<{BOB}>", "DATA", "half")
        assert spool.ms.query("SELECT count(*) FROM messages")[0][0] == 0

    @pytest.mark.parametrize("blocking", [True, False])
    def test_over_a_socket_pair_each_reply_comes_at_once(
        self, spool: Spool, blocking: bool
    ) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(blocking)  # as a caller's event loop has it
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
        with (
            ours,
            subprocess.Popen(
                [sys.executable, "-P", "-m", "mailstrom.shims.sendmail", "-bs"],
                stdin=theirs,
                stdout=theirs,
                env=spool.environ(),
            ) as child,
        ):
            theirs.close()
            ours.settimeout(TIMEOUT)
            stream = ours.makefile("rb")
            assert stream.readline().startswith(b"220 ")
            for command in (
                b"HELO x",
                b"MAIL FROM:<a@a.example>",
                b"RCPT TO:<b@b.example>",
                b"RSET",
            ):
                ours.sendall(command + b"\r\n")
                assert stream.readline().startswith(b"250 ")
            ours.sendall(b"EHLO x\r\n" * 50)  # more than it can write before we read
            assert sum(stream.readline().startswith(b"250 ") for _ in range(50 * 8)) == 50
            ours.sendall(b"QUIT\r\n")
            assert stream.readline().startswith(b"221 ")
            assert child.wait(TIMEOUT) == 0
