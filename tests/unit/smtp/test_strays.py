"""Replies too many or too few, anywhere, by a server with enhanced codes or without.

Contract. A model server takes commands in order, as the fates of its messages say, and doubles or
withholds one reply, or says a refusal more beside it. The dialogue must give no recipient another
one's verdict: what is told is what the server decided, or nothing is (in doubt where the content
left, else sent again). Every place, many pairs of fates, replies in one piece or each by itself.

What cannot be seen is named here, too: a reply to content that is missing while an envelope stands
behind it, where the next one's reply is in its place; and where BDAT is in use, and no enhanced
code tells, whom of several recipients a refusal meant.
With one message at a time in flight none is lost by a reply too many that comes with its double.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence

import pytest

from mailstrom.policy.outcome import Action, judge
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Fault,
    Pipelining,
    TransactionEnd,
)
from mailstrom.types import OnDoubt
from tests.unit.smtp.driving import BDAT, BEHIND, FIRST_BDAT, OFFER, body
from tests.unit.smtp.pieces import End, Pieces

Fate = tuple[int, tuple[int, ...], int, int]
"""Codes in reply to MAIL, each RCPT, DATA, and the content."""

TAKEN: Fate = (250, (250,), 354, 250)
FATES: list[Fate] = [
    TAKEN,
    (250, (250,), 354, 554),
    (250, (550,), 354, 250),
    (550, (250,), 354, 250),
    (250, (250,), 554, 250),
    (250, (250, 550), 354, 250),
    (250, (550, 250), 354, 250),
    (250, (550, 450), 354, 250),
    (250, (450, 550), 354, 250),
    (450, (250, 250), 354, 250),
    (250, (250, 550), 451, 250),
    (250, (250, 550, 250), 354, 250),
]
# the same words for everything, or words for each command
WORDS = {
    "bland": {"mail": "OK", "rcpt": "OK", "rset": "OK", "end": "OK"},
    "telling": {"mail": "OK", "rcpt": "Accepted", "rset": "Reset OK", "end": "OK id={}"},
    "coded": {"mail": "2.1.0 OK", "rcpt": "2.1.5 OK", "rset": "2.0.0 OK", "end": "2.0.0 OK"},
}
STAGES = ("rset", "mail", "rcpt0", "rcpt1", "data", "end")
TRANSACTION = Dialect(pipelining=Pipelining.TRANSACTION)
SERIAL = Dialect(pipelining=Pipelining.NONE)


class Server:
    """Answers in order; one reply, ``stray`` of message ``number``, comes ``times`` times.

    Args:
        extra: what is said behind it, too.
        ends: it closes behind its first refusal of a DATA.
        rset: its reply to RSET.
    """

    def __init__(
        self,
        fates: Sequence[Fate],
        words: str,
        number: int,
        stray: str,
        times: int,
        *,
        extra: Sequence[bytes] = (),
        ends: bool = False,
        rset: int = 250,
    ) -> None:
        self.rset = rset
        self.fates, self.words = fates, WORDS[words]
        self.coded = words == "coded"
        self.stray, self.times, self.strayed = (number, stray), times, False
        self.extra, self.ends, self.closed = extra, ends, False
        self.said: list[bytes] = []
        self.kept: set[tuple[int, int]] = set()
        self.pieces = Pieces()
        self.number, self.rcpts = -1, 0
        self.open = False
        self.accepted: list[int] = []

    def feed(self, data: bytes) -> None:
        for piece in () if self.closed else self.pieces.feed(data):
            if self.closed:
                break
            if isinstance(piece, End):
                self._end()
            else:
                self._command(piece)

    def _say(self, what: str, code: int) -> None:
        words = self.words.get(what[:4].rstrip("01"), "go").format(self.number)
        times, extra = 1, list[bytes]()
        if (self.number, what) == self.stray and not self.strayed:
            self.strayed, times, extra = True, self.times, [*self.extra]
        if code >= 300:
            words = self._refusal(what, code)
        self.said += [b"%d %s\r\n" % (code, words.encode())] * times + extra

    def _refusal(self, what: str, code: int) -> str:
        if not self.coded or code == 354:
            return "no"
        about = "5.1" if code == 503 else "1.1" if what.startswith("rcpt") else "7.1"
        return f"{code // 100}.{about} no"

    def _end(self) -> None:
        code = self.fates[self.number][3] if self.accepted else 503
        if code == 250:
            self.kept |= {(self.number, index) for index in self.accepted}
        self.open = self.pieces.content = False
        self.accepted = []
        self._say("end", code)

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if verb == b"MAIL":
            self.number = int(rest.removeprefix(b"FROM:<s").partition(b"@")[0])
            self.rcpts, self.accepted = 0, []
            self.open = self.fates[self.number][0] == 250
            self._say("mail", self.fates[self.number][0])
        elif verb == b"RCPT":
            index, self.rcpts = self.rcpts, self.rcpts + 1
            code = self.fates[self.number][1][index] if self.open else 503
            self.accepted += [index] * (code == 250)
            self._say(f"rcpt{index}", code)
        elif verb == b"DATA":
            code = self.fates[self.number][2] if self.accepted else 503
            self.pieces.content = code == 354
            self._say("data", code)
            self.closed = self.ends and code >= 400
        elif verb == b"BDAT":
            self.pieces.octets = int(rest.split()[0])
        else:
            assert verb in (b"RSET", b"QUIT"), line
            self.open, self.accepted = False, []
            self._say(verb.decode().lower(), 221 if verb == b"QUIT" else self.rset)

    def truth(self, number: int, index: int, *, chunked: bool) -> int:
        """The code that decided about a recipient, or will."""
        mail, rcpts, data, end = self.fates[number]
        codes = [mail, rcpts[index], *([] if chunked else [data]), end]
        return next((code for code in codes if code >= 400), 250)


class Client:
    """A dialogue that sends the messages, in a shell that begins whenever it may."""

    def __init__(self, dialect: Dialect, server: Server, *, pieces: str) -> None:
        self.dialogue = ClientDialogue(OFFER, dialect)
        self.server, self.pieces = server, pieces
        self.begun: list[Envelope] = []
        self.ends: list[TransactionEnd] = []
        self.over = False

    def run(self) -> None:
        coming: deque[bytes] = deque()
        late = False  # the first of what came together was read, the rest comes with what follows
        while not self.over:
            self._fill()
            output = self.dialogue.take_output()
            if output:
                self.server.feed(output)
                coming += self.server.said
                self.server.said.clear()
            elif coming:
                late = self.pieces == "late" and not late and len(coming) > 1
                if late or self.pieces == "apart":
                    data = coming.popleft()
                else:
                    data = b"".join(coming)
                    coming.clear()
                self._took(self.dialogue.receive(data))
            elif self.dialogue.idle:
                break
            elif self.server.closed:
                self._took(self.dialogue.receive_eof())
            else:
                self._took(self.dialogue.fail(Fault.TIMEOUT))

    def _fill(self) -> None:
        while self.dialogue.ready and len(self.begun) < len(self.server.fates):
            number = len(self.begun)
            recipients = range(len(self.server.fates[number][1]))
            envelope = Envelope(
                sender=f"s{number}@x.test",
                recipients=tuple(f"r{number}-{index}@y.test" for index in recipients),
                size=len(body(number)),
            )
            self.begun.append(envelope)
            self.dialogue.begin(envelope, body(number))

    def _took(self, events: Sequence[object]) -> None:
        for event in events:
            assert not isinstance(event, ContentWanted)
            if isinstance(event, TransactionEnd):
                self.ends.append(event)
                self.over = self.over or not event.usable
            else:
                self.over = True

    def wrong(self) -> Iterator[str]:
        """A word for each recipient who was told what is not so."""
        assert len(self.ends) == len(self.begun)
        for number, end in enumerate(self.ends):
            for index in range(len(end.rcpts)):
                verdict = judge(
                    end, index, last_host=True, reused=number > 0, on_doubt=OnDoubt.RETRY
                )
                kept = (number, index) in self.server.kept
                if verdict.action is Action.DELIVER:
                    if not kept:
                        yield "lost"
                elif kept and not verdict.in_doubt:
                    yield "sent again unmarked, or bounced"
                elif verdict.action is not Action.FAIL:
                    continue
                elif self.server.truth(number, index, chunked=end.chunked) < 500:
                    yield "failed by another's reply"


def wrongs(
    dialect: Dialect,
    words: str,
    times: int,
    *,
    pieces: str,
    stages: Sequence[str] = STAGES,
    extra: Sequence[bytes] = (),
    ends: bool = False,
    rset: int = 250,
) -> Counter[str]:
    """What went wrong, over every place and many pairs of fates."""
    found: Counter[str] = Counter()
    strayed = 0
    for first, second in itertools.product(FATES, FATES[::3]):
        for ahead, stage in itertools.product(([], [TAKEN]), stages):
            fates = [*ahead, first, second, TAKEN]
            server = Server(
                fates, words, len(ahead), stage, times, extra=extra, ends=ends, rset=rset
            )
            client = Client(dialect, server, pieces=pieces)
            client.run()
            strayed += server.strayed
            found.update(set(client.wrong()) if server.strayed else ())
    assert strayed > len(FATES)
    return found


@pytest.mark.parametrize("pieces", ["together", "apart", "late"])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(
    "dialect", [SERIAL, TRANSACTION, BEHIND], ids=["serial", "transaction", "full"]
)
def test_a_reply_too_many_by_data_gives_nobody_anothers_verdict(
    dialect: Dialect, words: str, pieces: str
) -> None:
    assert wrongs(dialect, words, 2, pieces=pieces) == {}


@pytest.mark.parametrize("times", [3, 4, 5])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(
    "dialect", [SERIAL, TRANSACTION, BEHIND], ids=["serial", "transaction", "full"]
)
def test_any_number_of_the_same_reply_by_data_gives_nobody_anothers_verdict(
    dialect: Dialect, words: str, times: int
) -> None:
    assert wrongs(dialect, words, times, pieces="apart") == {}


@pytest.mark.parametrize("pieces", ["apart", "late"])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("dialect", [TRANSACTION, BEHIND], ids=["transaction", "full"])
def test_a_close_behind_a_refused_data_hides_no_reply_too_many(
    dialect: Dialect, words: str, pieces: str
) -> None:
    for times in (2, 3):
        assert wrongs(dialect, words, times, pieces=pieces, ends=True) == {}


@pytest.mark.parametrize("extra", [(b"550 no\r\n",), (b"250 OK\r\n", b"550 no\r\n")], ids=len)
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(
    "dialect", [SERIAL, TRANSACTION, BEHIND], ids=["serial", "transaction", "full"]
)
def test_a_refusal_of_its_own_too_many_gives_nobody_anothers_verdict(
    dialect: Dialect, words: str, extra: Sequence[bytes]
) -> None:
    # what is said of a content as well as its verdict may be the next one's; where commands leave
    # one by one, nothing marks a lone recipient's place if two of them come
    found = wrongs(dialect, words, 1, pieces="apart", extra=extra, stages=["end"])
    assert (found == {}) is (dialect is not SERIAL or len(extra) == 1)


@pytest.mark.parametrize("pieces", ["together", "apart", "late"])
@pytest.mark.parametrize("rset", [450, 554])
@pytest.mark.parametrize("dialect", [SERIAL, TRANSACTION], ids=["serial", "transaction"])
def test_nor_where_the_server_refuses_rset_too(dialect: Dialect, rset: int, pieces: str) -> None:
    stages = (*STAGES, "quit")
    for words in WORDS:
        assert wrongs(dialect, words, 2, pieces=pieces, stages=stages, rset=rset) == {}
    assert wrongs(dialect, "bland", 0, pieces=pieces, stages=stages[:-2], rset=rset) == {}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("dialect", [TRANSACTION, BEHIND], ids=["transaction", "full"])
def test_a_reply_too_few_to_an_envelope_gives_nobody_anothers_verdict(
    dialect: Dialect, words: str
) -> None:
    assert wrongs(dialect, words, 0, pieces="apart", stages=STAGES[:-1]) == {}


@pytest.mark.parametrize("words", WORDS)
def test_without_pipelining_a_reply_too_few_gives_nobody_anothers_verdict(words: str) -> None:
    assert wrongs(SERIAL, words, 0, pieces="together") == {}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("dialect", [BDAT, FIRST_BDAT], ids=["bdat", "first-bdat"])
def test_a_reply_with_its_double_loses_no_message_sent_by_bdat(
    dialect: Dialect, words: str
) -> None:
    assert wrongs(dialect, words, 2, pieces="together")["lost"] == 0


@pytest.mark.parametrize("pieces", ["together", "apart", "late"])
@pytest.mark.parametrize("dialect", [BDAT, FIRST_BDAT], ids=["bdat", "first-bdat"])
def test_with_enhanced_codes_bdat_gives_nobody_anothers_verdict(
    dialect: Dialect, pieces: str
) -> None:
    assert wrongs(dialect, "coded", 2, pieces=pieces) == {}
    assert wrongs(dialect, "coded", 0, pieces=pieces, stages=STAGES[:-1]) == {}


def test_a_server_with_one_word_for_all_is_spared_bdat_once_it_showed_that() -> None:
    server = Server([TAKEN] * 4, "bland", -1, "", 1)
    client = Client(FIRST_BDAT, server, pieces="apart")
    client.run()
    assert [end.chunked for end in client.ends] == [True, False, False, False]
    assert {end.fault for end in client.ends} == {None}
    assert len(server.kept) == 4
    assert client.ends[0].stumbled == "chunking"


@pytest.mark.parametrize("dialect", [BEHIND, BDAT], ids=["full", "bdat"])
def test_content_may_be_taken_in_the_words_that_rset_gets(dialect: Dialect) -> None:
    fates = [TAKEN, FATES[1], TAKEN, FATES[2], TAKEN, TAKEN]
    server = Server(fates, "telling", -1, "", 1)
    server.words = {**WORDS["telling"], "rset": "Done", "end": "Done"}
    client = Client(dialect, server, pieces="apart")
    client.run()
    told = [end.dot is not None and end.dot.code == 250 for end in client.ends]
    assert told[:3] == [True, False, True]
    assert list(client.wrong()) == []
    assert {end.fault for end in client.ends} == {None}
