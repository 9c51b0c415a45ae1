"""The failure policy: what a reply, a loss or a silence means for a recipient or a host.

With ``blame`` and ``limits`` all that looks at a reply code. First digit decides (RFC 5321 section
4.2.1).

========================  ==========================  =======================================
stage                     what happened               verdict
========================  ==========================  =======================================
rcpt 2xx and dot 2xx      accepted                    delivered
mail 5xx                  this message, this sender   failed; 552 or 5.3.4: too_large
rcpt 5xx                  this recipient              failed; 552 counts as 452 (4.5.3.1.10)
data, dot 5xx             every recipient concerned   failed; 5.3.4: too_large
mail rcpt data dot 4xx    not now, not here           next host; last: deferred/remote
421 anywhere              the host is closing         next host; last: deferred/remote
mail rcpt data, reused    421                         again: the session had its time
mail, reused session      4xx, more than one in turn  again: reconnect, nothing charged
rcpt, others were taken   452, 552, x.5.3: too many   another transaction, nothing charged
rcpt data, others failed  421, close                  another connection, nothing charged
mail rcpt data body       close, silence, garbage     next host; last: deferred/remote
dot, after it was sent    close, silence, garbage     in doubt: deferred, or held (on_doubt);
                                                      never another host
behind a content          unanswered, however         again: reconnect, nothing charged
rset, mail 503 on reuse   an envelope before is open  again: reconnect, nothing charged
mail data dot, not taken  an extension mishandled     again, with less; nothing charged
before any reply          close on a reused session   again: reconnect, nothing charged
before any reply          close on a new session      next host; last: suspend, nothing charged
before the dot was sent   cut by ourselves            again: given back, nothing charged
connect .. auth           anything, a 5xx too         next host; after the last: suspend site
before MAIL (ours)        larger than SIZE            failed/too_large 5.3.4
before MAIL (ours)        no 8BITMIME, no SMTPUTF8    next host; last: failed/unsupported
before MAIL (ours)        TLS needed, not reached     next host; last: deferred/tls
before MAIL (ours)        REQUIRETLS, TLS unproved    next host; all: failed/policy 5.7.10
before MAIL (ours)        REQUIRETLS, not offered     next host; all: failed/policy 5.7.30
route                     null MX, no domain, loop    failed 5.1.10, 5.1.2, 5.4.6
route                     DNS trouble                 deferred/dns 4.4.3
========================  ==========================  =======================================

A recipient refused at RCPT keeps its own refusal whatever happens later. A definite reply beats
the loss that follows it: a 5xx and then a close stays the 5xx, a 250 to the dot and then a close is
delivered. A loss before the final dot is never in doubt, one after it always is; a 421 in reply to
the dot is a refusal and leaves no doubt. A reply to the dot that came before the dot was sent can
refuse, but never accept. Where the wire ended the connection itself, behind a message that was
refused whole, those in flight behind it are judged as by a loss, in words that do not blame the
server. Who is left where a server refused others for good, and then ended the session before the
content, is asked for on another connection to the same host, as often as ``rounds`` allows; then
deferred.

What the wire says of liberties taken with a server (``behind``, ``stumbled``), or of what came
before (``stale``), where replies did not decide and the content was not taken; one that may have
been taken is judged as ever:

==========  ==========  ==============================  =======================================
answered    stumbled    how                             verdict
==========  ==========  ==============================  =======================================
no          any         behind a content                again
no          any         ``stale``                       again
no          any         an extension mishandled         again
yes         CHUNKING    anywhere                        again
yes         PIPELINING  at the dot                      again
yes         PIPELINING  before the dot                  as without
==========  ==========  ==============================  =======================================

Must not know: clocks, sockets, the store, how a session was set up.
"""

from __future__ import annotations

from msgspec.structs import replace

from mailstrom.policy.blame import fault_of
from mailstrom.policy.hint import retry_hint_s
from mailstrom.policy.limits import STORAGE_EXCEEDED, may_follow, refuses_session
from mailstrom.policy.refusal import TOO_LARGE, judge_route, local_refusal
from mailstrom.policy.verdict import Action, FaultOf, HostVerdict, Turn, Verdict
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.states import CLOSING
from mailstrom.smtp.transaction import Extension, Fault, TransactionEnd
from mailstrom.types import Judgement, OnDoubt, Reason, Stage

__all__ = [
    "Action",
    "FaultOf",
    "HostVerdict",
    "Verdict",
    "judge",
    "judge_route",
    "judge_session",
    "local_refusal",
]

_LOSSES: dict[Fault, str] = {
    Fault.CLOSED: "connection closed by the server",
    Fault.TIMEOUT: "no reply in time",
    Fault.GARBAGE: "the server's answer was not SMTP",
    Fault.CUT: "cut at the end of the time to drain",
    Fault.ENDED: "we ended the connection behind a message that was refused whole",
}

MOST_WORDS = 180
"""Characters of a reply that is told though it does not count."""
_OURS = (Fault.CUT, Fault.ENDED)


def judge(
    end: TransactionEnd,
    index: int,
    *,
    last_host: bool,
    reused: bool,
    on_doubt: OnDoubt,
    excused: bool = True,
    full: bool = False,
    left: Action | None = None,
) -> Verdict:
    """Decide for one recipient of a finished transaction.

    Args:
        end: how the transaction ended.
        index: the recipient's place in the envelope.
        last_host: no other host is left for this delivery.
        reused: the session had completed a transaction (or sat idle) before this one.
        excused: a close before any answer is the host's affair; False where it happened to this
            message before and the site was left alone for it: then the message is charged.
        full: the session took messages and refuses more, as ``limits.SessionMails`` says, and may
            be renewed for this one.
        left: what those do whom the server did not get to, where it closed behind others that it
            refused (``rounds.closed_behind_refusals``): ``NEXT_SESSION``, or ``DEFER`` where it did
            so too often. None: it did not.
        on_doubt: what the message wants when it may or may not have been delivered.

    Returns:
        The verdict. Source: RFC 5321 sections 3.8, 4.2.1, 4.5.3.1.10, 4.5.3.2.6, 6.1; RFC 1047.

    Raises:
        IndexError: the transaction has no such recipient (a bug of the caller).
    """
    rcpt = end.rcpts[index]
    unread = _unread(end)
    if unread and not end.answered:
        return _again_unread(end, index)
    unanswered = not end.answered and end.fault is Fault.CLOSED and not end.dot_written
    if unanswered and (excused or reused):
        return _unanswered(end, last_host=last_host, reused=reused)
    over = reused and not end.dot_written  # a 421 ends a session for what came before in it
    # In the order of the wire: the first reply that refuses is the one that stands.
    if end.mail is not None and end.mail.code >= 400:
        if reused and end.mail.code == CLOSING:
            return _again(end.mail)
        if full and refuses_session(end.mail):
            return _again(end.mail)
        return _refused(end.mail, Stage.MAIL, last_host)
    if rcpt is not None and rcpt.code >= 400:
        if may_follow(end, rcpt):
            return _follows(rcpt)
        if left is not None and rcpt.code == CLOSING:
            return _left(end, index, left)
        if over and rcpt.code == CLOSING:
            return _again(rcpt, Stage.RCPT)
        return _refused(rcpt, Stage.RCPT, last_host)
    if left is not None and not end.dot_written:
        return _left(end, index, left)
    if end.data is not None and end.data.code >= 400:
        if over and end.data.code == CLOSING:
            return _again(end.data, Stage.DATA)
        return _refused(end.data, Stage.DATA, last_host)
    if unread:
        return _again_unread(end, index)
    if rcpt is not None and rcpt.positive and end.dot is not None:
        if end.dot.code >= 400:
            early = end.stage is Stage.BODY
            return _refused(end.dot, Stage.BODY if early else Stage.DOT, last_host)
        if end.dot.positive and end.dot_written:
            return _delivered(end.dot)
    if end.dot_written:
        # Also where the replies to RCPT never came: only a refusal proves that it was not taken.
        return _in_doubt(end, on_doubt)
    closing = next((r for r in end.rcpts if r is not None and r.code == CLOSING), None)
    if closing is not None:
        again = _again(closing, Stage.RCPT)
        return again if over else _refused(closing, Stage.RCPT, last_host)
    if end.fault in _OURS:
        return _again_cut(end)
    return _lost(end, index, last_host)


def _delivered(reply: Reply) -> Verdict:
    return Verdict(
        action=Action.DELIVER,
        judgement=Judgement.DELIVERED,
        reason=None,
        stage=Stage.DOT,
        reply_code=reply.code,
        enhanced_code=reply.enhanced,
        reply_text=reply.text,
        fault_of=FaultOf.REMOTE,
    )


def _refused(reply: Reply, stage: Stage, last_host: bool) -> Verdict:
    permanent = reply.permanent and not (stage is Stage.RCPT and reply.code == STORAGE_EXCEEDED)
    verdict = Verdict(
        action=Action.FAIL,
        judgement=Judgement.FAILED,
        reason=Reason.BOUNCED,
        stage=stage,
        reply_code=reply.code,
        enhanced_code=reply.enhanced,
        reply_text=reply.text,
        fault_of=fault_of(reply, stage, permanent=permanent),
    )
    if permanent:
        if _too_large(reply, stage):
            return replace(verdict, reason=Reason.TOO_LARGE, fault_of=FaultOf.CONTENT)
        return verdict
    return replace(
        verdict,
        action=Action.DEFER if last_host else Action.NEXT_HOST,
        judgement=Judgement.DEFERRED,
        reason=Reason.REMOTE,
        retry_hint_s=retry_hint_s(reply.text),
    )


def _too_large(reply: Reply, stage: Stage) -> bool:
    if stage is Stage.RCPT:
        return False  # there it speaks of the recipient's mailbox
    if stage is Stage.MAIL and reply.code == STORAGE_EXCEEDED and reply.enhanced is None:
        return True
    return reply.enhanced == TOO_LARGE


def _in_doubt(end: TransactionEnd, on_doubt: OnDoubt) -> Verdict:
    hold = on_doubt is OnDoubt.HOLD
    where = "" if end.fault is Fault.ENDED else " after the final dot"
    return Verdict(
        action=Action.HOLD if hold else Action.DEFER,
        judgement=Judgement.HELD if hold else Judgement.DEFERRED,
        reason=Reason.IN_DOUBT,
        stage=Stage.DOT,
        reply_text=f"{_loss(end)}{where}: it may have been delivered",
        in_doubt=True,
    )


def _unanswered(end: TransactionEnd, *, last_host: bool, reused: bool) -> Verdict:
    fresh = Action.SUSPEND if last_host else Action.NEXT_HOST
    return Verdict(
        action=Action.AGAIN if reused else fresh,
        judgement=None,
        reason=Reason.REMOTE,
        stage=end.stage,
        reply_text="connection closed by the server before it answered anything",
    )


def _unread(end: TransactionEnd) -> bool:
    """Whether what was sent before, ahead, or by an extension, is why nothing was decided."""
    if end.fault is None or end.dot_written:
        return False
    if not end.answered:
        return end.behind or end.stale or end.stumbled is not None
    if end.stumbled is Extension.PIPELINING:
        return end.stage is Stage.DOT
    return end.stumbled is not None


def _again_unread(end: TransactionEnd, index: int) -> Verdict:
    if end.stumbled:
        how = f"{end.stumbled} mishandled by the server"
    else:
        how = "left behind a content" if end.behind else "the session was not clear for it"
    return Verdict(
        action=Action.AGAIN,
        judgement=None,
        reason=Reason.REMOTE,
        stage=end.stage,
        reply_text=_told(end, index, f"{_loss(end)}, {how}: not read, sent again"),
    )


def _again_cut(end: TransactionEnd) -> Verdict:
    return Verdict(
        action=Action.AGAIN,
        judgement=None,
        reason=Reason.REMOTE,
        stage=end.stage,
        reply_text=f"{_loss(end)}: not sent",
    )


def _again(reply: Reply, stage: Stage = Stage.MAIL) -> Verdict:
    return Verdict(
        action=Action.AGAIN,
        judgement=None,
        reason=Reason.REMOTE,
        stage=stage,
        reply_code=reply.code,
        enhanced_code=reply.enhanced,
        reply_text=reply.text,
    )


def _follows(reply: Reply) -> Verdict:
    return replace(_again(reply), action=Action.NEXT_TRANSACTION, stage=Stage.RCPT)


def _left(end: TransactionEnd, index: int, action: Action) -> Verdict:
    closing = next((r for r in (*end.rcpts, end.data) if r and r.code == CLOSING), None)
    if closing is None:
        verdict = _lost(end, index, last_host=True)
    else:
        stage = Stage.DATA if closing is end.data else Stage.RCPT
        verdict = _refused(closing, stage, last_host=True)
    if action is Action.DEFER:
        return verdict
    rcpt, turn = end.rcpts[index], Turn.UNASKED
    if rcpt is not None and rcpt.positive:
        turn = Turn.TAKEN
    elif rcpt == closing and rcpt not in end.rcpts[:index]:  # or the first without a reply
        turn = Turn.CLOSED_ON
    return replace(verdict, action=action, judgement=None, retry_hint_s=None, turn=turn)


def _lost(end: TransactionEnd, index: int, last_host: bool) -> Verdict:
    return Verdict(
        action=Action.DEFER if last_host else Action.NEXT_HOST,
        judgement=Judgement.DEFERRED,
        reason=Reason.REMOTE,
        # The dot was not sent: whatever the dialogue awaited, the body was not complete.
        stage=Stage.BODY if end.stage is Stage.DOT else end.stage,
        reply_text=_told(end, index, f"{_loss(end)} at {end.stage.value}"),
    )


def _told(end: TransactionEnd, index: int, how: str) -> str:
    """How it was lost; with what the server had said of him, for a person to judge."""
    told = end.disbelieved[index] if end.disbelieved else None
    if told is None:
        return how
    said = f'"{str(told)[:MOST_WORDS]}"'
    if end.reset is None:
        return f"{how}; before that it said {said}, which may have been meant for another command"
    reset = f'"{str(end.reset)[:MOST_WORDS]}"'
    return (
        f"the server said {said}, then {reset} to RSET:"
        " the first may have been meant for another command"
    )


def _loss(end: TransactionEnd) -> str:
    if end.fault is None and any(
        reply is not None and reply.code == CLOSING for reply in end.rcpts
    ):
        return "421 to another recipient of the same flight"
    # No fault and yet no usable reply: the replies themselves made no sense.
    return _LOSSES[end.fault if end.fault is not None else Fault.GARBAGE]


# (stage, cause) -> (reason, fault); a missing stage falls back to (None, cause).
_HOST_TABLE: dict[tuple[Stage | None, str], tuple[Reason, FaultOf]] = {
    (None, "refused"): (Reason.CONNECT, FaultOf.REMOTE),
    (None, "unreachable"): (Reason.CONNECT, FaultOf.REMOTE),
    (None, "closed"): (Reason.REMOTE, FaultOf.REMOTE),
    (None, "timeout"): (Reason.REMOTE, FaultOf.REMOTE),
    (None, "garbage"): (Reason.REMOTE, FaultOf.REMOTE),
    (None, "reply"): (Reason.REMOTE, FaultOf.REMOTE),
    (None, "tls"): (Reason.TLS, FaultOf.REMOTE),
    (None, "auth"): (Reason.LOCAL, FaultOf.LOCAL),
    (None, "local"): (Reason.LOCAL, FaultOf.LOCAL),
    (Stage.CONNECT, "closed"): (Reason.CONNECT, FaultOf.REMOTE),
    (Stage.CONNECT, "timeout"): (Reason.CONNECT, FaultOf.REMOTE),
    (Stage.STARTTLS, "closed"): (Reason.TLS, FaultOf.REMOTE),
    (Stage.STARTTLS, "timeout"): (Reason.TLS, FaultOf.REMOTE),
    (Stage.STARTTLS, "garbage"): (Reason.TLS, FaultOf.REMOTE),
    (Stage.STARTTLS, "reply"): (Reason.TLS, FaultOf.REMOTE),
}

_CAUSES: dict[str, str] = {
    "refused": "connection refused",
    "unreachable": "host unreachable",
    "closed": _LOSSES[Fault.CLOSED],
    "timeout": _LOSSES[Fault.TIMEOUT],
    "garbage": _LOSSES[Fault.GARBAGE],
    "reply": "refused by the server",
    "tls": "TLS could not be set up",
    "auth": "authentication was not possible",
    "local": "trouble on this machine",
}


def judge_session(stage: Stage, cause: str, reply: Reply | None) -> HostVerdict:
    """Decide about a host whose session could not be set up.

    Args:
        stage: connect, greeting, ehlo, starttls or auth.
        cause: the wire's word: reply closed timeout garbage refused unreachable tls auth local.
        reply: the server's reply where it gave one.

    Returns:
        A host verdict; never a recipient's failure, not even for a 5xx greeting or EHLO
        (RFC 5321 section 3.1 speaks of the host) or refused credentials (ours are wrong, the mail
        is not).

    Raises:
        ValueError: an unknown cause (a bug of the caller).
    """
    if cause not in _CAUSES:
        raise ValueError(f"unknown session cause {cause!r}: one of {', '.join(sorted(_CAUSES))}")
    default = _HOST_TABLE[None, cause]
    reason, fault_of = _HOST_TABLE.get((stage, cause), default)
    if reply is not None and reply.permanent:
        if stage is Stage.AUTH:
            reason, fault_of = Reason.LOCAL, FaultOf.LOCAL
        elif stage in (Stage.GREETING, Stage.EHLO):
            fault_of = FaultOf.SOURCE
    text = f"{_CAUSES[cause]} at {stage.value}"
    if reply is not None:
        text = f"{text}: {reply.code} {reply.text}".rstrip()
    return HostVerdict(
        reason=reason,
        fault_of=fault_of,
        text=text,
        stage=stage,
        reply_code=None if reply is None else reply.code,
        enhanced_code=None if reply is None else reply.enhanced,
    )
