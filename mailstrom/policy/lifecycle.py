"""The life of a recipient as data: (state, verb) -> state.

This table is the one the stores obey (their conformance suite walks it) and the documentation
draws. A pair that is not in it changes nothing. ``claimed`` is the engine's own word: views show it
as ``queued``, for nothing of the recipient has reached the wire.

Verbs: ``claim`` and ``open`` lead to the wire; ``settle_*`` record its verdict; ``settle_again``
takes a recipient back uncharged; ``settle_onward`` leaves it to its lane for the next host;
``release`` gives a claim back; ``lapse`` takes it from a dead worker (an opened one is in doubt
then; ``lapse_held`` where ``on_doubt`` says hold); ``settle_late`` is a fenced worker's late
``delivered``; ``route_*`` are the router's decisions before any claim; ``expire`` is the janitor's;
``cancel hold release_hold retry resolve_*`` are the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from mailstrom.types import Status


class State(StrEnum):
    """Where a recipient is."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    SENDING = "sending"
    DEFERRED = "deferred"
    HELD = "held"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Verb(StrEnum):
    """What may be done to a recipient."""

    CLAIM = "claim"
    OPEN = "open"
    SETTLE_DELIVERED = "settle_delivered"
    SETTLE_DEFERRED = "settle_deferred"
    SETTLE_FAILED = "settle_failed"
    SETTLE_HELD = "settle_held"
    SETTLE_AGAIN = "settle_again"
    SETTLE_ONWARD = "settle_onward"
    SETTLE_LATE = "settle_late"
    RELEASE = "release"
    LAPSE = "lapse"
    LAPSE_HELD = "lapse_held"
    ROUTE_DEFERRED = "route_deferred"
    ROUTE_FAILED = "route_failed"
    EXPIRE = "expire"
    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE_HOLD = "release_hold"
    RETRY = "retry"
    RESOLVE_DELIVERED = "resolve_delivered"
    RESOLVE_FAILED = "resolve_failed"


_ROWS: dict[State, dict[Verb, State]] = {
    State.QUEUED: {
        Verb.CLAIM: State.CLAIMED,
        Verb.ROUTE_DEFERRED: State.DEFERRED,
        Verb.ROUTE_FAILED: State.FAILED,
        Verb.SETTLE_LATE: State.DELIVERED,
        Verb.EXPIRE: State.FAILED,
        Verb.CANCEL: State.CANCELLED,
        Verb.HOLD: State.HELD,
    },
    State.CLAIMED: {
        Verb.OPEN: State.SENDING,
        # Refusals of our own before MAIL: size, missing extensions, TLS not reached.
        Verb.SETTLE_DEFERRED: State.DEFERRED,
        Verb.SETTLE_FAILED: State.FAILED,
        Verb.SETTLE_AGAIN: State.QUEUED,
        Verb.SETTLE_ONWARD: State.CLAIMED,
        Verb.SETTLE_LATE: State.DELIVERED,
        Verb.RELEASE: State.QUEUED,
        Verb.LAPSE: State.QUEUED,
        Verb.EXPIRE: State.FAILED,
        Verb.CANCEL: State.CANCELLED,
        Verb.HOLD: State.HELD,
    },
    State.SENDING: {
        Verb.SETTLE_DELIVERED: State.DELIVERED,
        Verb.SETTLE_DEFERRED: State.DEFERRED,
        Verb.SETTLE_FAILED: State.FAILED,
        Verb.SETTLE_HELD: State.HELD,
        Verb.SETTLE_AGAIN: State.QUEUED,
        Verb.SETTLE_ONWARD: State.CLAIMED,
        Verb.LAPSE: State.DEFERRED,
        Verb.LAPSE_HELD: State.HELD,
    },
    State.DEFERRED: {
        Verb.CLAIM: State.CLAIMED,
        Verb.ROUTE_DEFERRED: State.DEFERRED,
        Verb.ROUTE_FAILED: State.FAILED,
        Verb.SETTLE_LATE: State.DELIVERED,
        Verb.EXPIRE: State.FAILED,
        Verb.CANCEL: State.CANCELLED,
        Verb.HOLD: State.HELD,
        Verb.RETRY: State.QUEUED,
    },
    State.HELD: {
        Verb.SETTLE_LATE: State.DELIVERED,
        Verb.EXPIRE: State.FAILED,
        Verb.CANCEL: State.CANCELLED,
        # No RETRY: "retry everything" must not send again what is held because it is in doubt.
        Verb.RELEASE_HOLD: State.QUEUED,
        Verb.RESOLVE_DELIVERED: State.DELIVERED,
        Verb.RESOLVE_FAILED: State.FAILED,
    },
    State.FAILED: {Verb.RETRY: State.QUEUED},
    State.DELIVERED: {},
    State.CANCELLED: {},
}

TRANSITIONS: Mapping[tuple[State, Verb], State] = MappingProxyType(
    {(state, verb): after for state, row in _ROWS.items() for verb, after in row.items()}
)

FINAL = frozenset({State.DELIVERED, State.FAILED, State.CANCELLED})

PUBLIC: Mapping[State, Status] = MappingProxyType(
    {state: Status.QUEUED if state is State.CLAIMED else Status(state.value) for state in State}
)


def after(state: State, verb: Verb) -> State | None:
    """The state a verb leads to, or None where the verb changes nothing."""
    return TRANSITIONS.get((state, verb))


def mermaid() -> str:
    """The table as Mermaid ``stateDiagram-v2`` text, for the documentation.

    Verbs with the same ends share an arrow; the text is the same on every run.
    """
    arrows: dict[tuple[str, str], list[str]] = {("[*]", State.QUEUED.value): ["enqueue"]}
    for (state, verb), reached in TRANSITIONS.items():
        arrows.setdefault((state.value, reached.value), []).append(verb.value)
    for final in sorted(FINAL):
        arrows[(final.value, "[*]")] = []
    lines = ["stateDiagram-v2"]
    for (source, target), verbs in arrows.items():
        label = f": {', '.join(verbs)}" if verbs else ""
        lines.append(f"    {source} --> {target}{label}")
    return "\n".join(lines) + "\n"
