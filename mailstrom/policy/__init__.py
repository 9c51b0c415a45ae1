"""Pure decisions: what a reply means, when to try again, where to go, how much at once.

No module here knows a clock, socket, random source, loop or database: ``now`` and random numbers
are arguments, verdicts are values. ``outcome`` is the only reader of reply codes.
"""

from __future__ import annotations
