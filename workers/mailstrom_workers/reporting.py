"""The engine's reporter: from what a store knows of a failure to a message that it can store.

Between ``storage.reporting``, whose facts have to be reported, and ``message.report``, which writes
reports; the configuration says who they come from. A store calls it inside of a transaction, so it
computes and does nothing else.

A report is mail like any other, and ends there: null sender, NOTIFY=NEVER (RFC 3461 section 6.3),
never a report of its own, and tried as long as any mail. Its stream is ``bounces``, whose settings
are those of ``[stream.bounces]``. It is never held for a person: a report that came twice does less
harm than one that nobody saw.

Must not know: who asks, transactions, what else becomes of a failure.
"""

from __future__ import annotations

from mailstrom.client.identity import new_id
from mailstrom.config import Config, report_author
from mailstrom.message.report import render_report
from mailstrom.message.report_facts import Fate, Original
from mailstrom.storage.base import WorkerStore
from mailstrom.storage.client import Notice, Submission
from mailstrom.storage.reporting import ReportedRecipient, Reporter, ReportFacts
from mailstrom.types import OnDoubt

STREAM = "bounces"


def use(store: WorkerStore, config: Config) -> None:
    """Let a store make its reports as the configuration says, from now on."""
    store.use_reporter(reporter(config), config.reports.original_size)


def same(one: Config, other: Config) -> bool:
    """Whether two configurations make the same reports."""
    return one.reports == other.reports and one.hostname == other.hostname


def reporter(config: Config) -> Reporter:
    """Who writes the reports of an engine with this configuration."""
    wanted, hostname, author = config.reports.send, config.hostname, report_author(config)

    def report(facts: ReportFacts, now_ms: int) -> Submission | None:
        if not wanted or not facts.sender:
            return None
        report = render_report(
            _original(facts),
            [_fate(recipient) for recipient in facts.recipients],
            hostname=hostname,
            author=author,
            now_ms=now_ms,
        )
        return Submission(
            id=new_id(now_ms),
            content=report.content,
            sender="",
            recipients=(facts.sender,),
            subject=report.subject,
            message_id=report.message_id,
            stream=STREAM,
            priority=None,
            tags=(),
            metadata={"report_of": facts.id, "action": facts.recipients[0].action},
            created_ms=now_ms,
            send_ms=now_ms,
            expires_ms=None,
            on_doubt=OnDoubt.RETRY,
            require_tls=facts.requiretls,
            eightbit=report.eightbit,
            smtputf8=report.smtputf8,
            origin="report",
            notices=(Notice(notify="never"),),
            requiretls=facts.requiretls,
        )

    return report


def _original(facts: ReportFacts) -> Original:
    came_from = (facts.client or {}).get("helo")
    return Original(
        id=facts.id,
        sender=facts.sender,
        message_id=facts.message_id,
        envelope_id=facts.envid,
        arrived_ms=facts.created_ms,
        content=facts.content,
        whole=facts.ret != "hdrs" and not facts.requiretls and len(facts.content) == facts.size,
        came_from=came_from if isinstance(came_from, str) else None,
        redacted=facts.require_tls and not facts.requiretls,
    )


def _fate(recipient: ReportedRecipient) -> Fate:
    return Fate(
        address=recipient.address,
        action=recipient.action,
        original=recipient.orcpt,
        reason=recipient.reason,
        host=recipient.mx,
        reply_code=recipient.reply_code,
        enhanced_code=recipient.enhanced_code,
        reply_text=recipient.reply_text,
        tried_ms=recipient.last_ms,
        until_ms=recipient.expires_ms,
    )
