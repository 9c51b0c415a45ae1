"""How far a lane goes ahead of its wire: how much it claims and when, and how much it opens.

A claim is what the lane delivers in ``CLAIM_S``, so that a slow one hoards nothing; before its pace
is known it begins small, or a dead site would keep much. Openings are what leaves while one
exchange with the store is under way: the window grows while the wire waits for the store, and
shrinks when it was full for long, since what is opened is in doubt after a crash.

Times are seconds of any one clock, given by who asks. Must not know: the store, sessions, the loop.
"""

from __future__ import annotations

CLAIM_MESSAGES = 200
CLAIM_S = 0.5
"""A lane claims about what it delivers in this time, so that a slow one hoards nothing."""
HASTE_S = 0.1
"""What a lane delivers in this time it takes at once, though other lanes find less: where messages
trickle in, each lane would take one, and every message cost a claim."""
FIRST_CLAIM = 8
"""Messages claimed before the site was heard at all; twice as many each time, until the pace of
the lane is known. A dead site must not keep much, nor much of the worker's memory. A claim that
found less, for want of memory or of mail, does not grow: or one lane, a few such claims later, took
what is due from all the others."""
SLOW_CLAIM = 2
"""A lane so slow claims when it has nothing in hand: what is more urgent may come meanwhile."""
DRY_S = 0.25
"""A claim that found nothing is not repeated for so long while messages are under way."""
MOST_OPENED = 31
"""Messages opened ahead of the wire, at most: a crash leaves them in doubt, though nothing left. An
urgent one may come on top. Half of them, on average, leave while one exchange is under way."""
AMPLE = 64
"""A window that was full so often is made smaller, by one; one that ran dry grows by half, or a
lane to which messages trickle would take each handful of them in many exchanges."""
_LEAST_S = 0.001


def claim_size(due: int, lanes: int, most: int) -> int:
    """How many recipients a lane claims at once, as long as nothing was measured.

    Args:
        due: recipients due at the site.
        lanes: lanes open there over all workers; less than 1 counts as 1.
        most: the upper bound of one claim.

    Returns:
        An even share of what is due, from 1 to ``most``: a first lane that took everything would
        leave the others idle.
    """
    share = -(-max(due, 1) // max(lanes, 1))
    return max(min(share, most), 1)


class ClaimPace:
    """How much one lane claims, by what it was told is due and by what it delivers.

    Args:
        due: recipients due at the site when the lane was leased.
        lanes: how many lanes the site may have, to share what is due.

    Attributes:
        size: messages of the next claim, 1 to ``CLAIM_MESSAGES``.
        progress_s: when something ended last, or went to a wire that was empty.
    """

    def __init__(self, due: int, lanes: int) -> None:
        self.size = claim_size(due, lanes, FIRST_CLAIM)
        self.progress_s = 0.0
        self._paced = False  # whether the size comes from what was measured
        self._last = self.size  # of the last claim
        self._unclaimed = due  # of what was due at the lease, as far as this lane knows
        self._dry_s = float("-inf")  # when a claim found nothing
        self._from_s = 0.0
        self._ends = 0  # since then
        self._took_s = CLAIM_S  # a message on the wire, the last ones counting most

    # --- what is delivered ------------------------------------------------------------------

    def resume(self, now_s: float, *, renewed: bool = False) -> None:
        """Another session is fed: what went before says nothing about its pace.

        Args:
            renewed: only since the one before did not suit what is in hand. So it will be again:
                the time from one to the next is part of the pace.
        """
        self.progress_s = now_s
        if not renewed:
            self._from_s, self._ends = now_s, 0

    def begun(self, now_s: float) -> None:
        """A message went to a wire that was empty."""
        self.progress_s = now_s

    def ended(self, now_s: float) -> None:
        """A transaction ended: claim what this pace makes of ``CLAIM_S``."""
        self._took_s = (self._took_s + now_s - self.progress_s) / 2
        self.progress_s = now_s
        self._ends += 1
        seconds = now_s - self._from_s
        if seconds >= CLAIM_S / 2:
            self.size = min(max(int(self._ends / seconds * CLAIM_S), 1), CLAIM_MESSAGES)
            self._paced = True
            self._from_s, self._ends = now_s, 0

    def silent(self) -> None:
        """The session says nothing: once it does, message by message until its pace is known."""
        self.size, self._paced = 1, True

    # --- what is claimed --------------------------------------------------------------------

    def even(self, limit: int) -> int:
        """Of a claim of so many, what is taken though other lanes find less; 1 or more."""
        return max(min(int(HASTE_S / max(self._took_s, _LEAST_S)), limit), 1)

    def found(self, messages: int, now_s: float, *, more: bool) -> None:
        """A claim gave something.

        Args:
            messages: that can be sent; what was damaged does not count.
            more: whether it ended before it had looked through the site.
        """
        self._unclaimed -= messages
        if not more:
            self._dry_s = now_s
        elif self.size > 1:
            self._unclaimed = max(self._unclaimed, 1)
        self._last = self.size
        if not self._paced and messages >= self.size:
            self.size = min(self.size * 2, CLAIM_MESSAGES)

    def dry(self, now_s: float) -> None:
        """A claim gave nothing at all."""
        self._dry_s = now_s
        self._unclaimed = 0

    def called(self) -> None:
        """Something became due at the site."""
        self._unclaimed = 1

    @property
    def exhausted(self) -> bool:
        """Whether nothing is due, as far as this lane knows."""
        return self._unclaimed <= 0

    def wants(self, ahead: int, now_s: float, *, wire: bool, spent: bool) -> bool:
        """Whether to claim ahead: by half of what the lane delivers in ``CLAIM_S``.

        Before that is known, once half of the last claim is gone: the next is larger, and a lane
        that took it at once, of which nothing was delivered, would leave little for the others.

        Args:
            ahead: messages that the wire can go on with.
            wire: whether some are on it.
            spent: whether as much content is held as may be.
        """
        if ahead > (self.size if self._paced else self._last) // 2:
            return False
        if not (ahead or wire):
            return self._unclaimed > 0
        if self.size <= SLOW_CLAIM or spent:
            return False
        return self._unclaimed > 0 or now_s - self._dry_s >= DRY_S


class OpenWindow:
    """How many messages one lane has opened ahead of its wire.

    Attributes:
        size: 1 to ``MOST_OPENED``.
    """

    def __init__(self) -> None:
        self.size = 1
        self._ample = 0  # how often it was still full when its next message left

    def ran_dry(self) -> None:
        """The wire waited for an opening."""
        self.size = min(self.size + max(self.size // 2, 1), MOST_OPENED)
        self._ample = 0

    def left(self, opened: int) -> None:
        """A message went to the wire, and so many are still opened behind it."""
        if self.size > 1 and opened >= self.size - 1:
            self._ample += 1
            if self._ample >= AMPLE:
                self.size, self._ample = self.size - 1, 0
