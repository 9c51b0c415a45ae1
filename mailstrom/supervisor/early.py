"""Signals that come while the program is still being loaded.

From here on the kernel keeps them, until ``Signals.installed`` counts them: a reload that follows a
start at once, or a stop, must not end the process by the raw signal (systemd takes an end by HUP
for a clean one, and starts nothing again). Called first of all, where the process is the engine's
own; what comes before, in the interpreter's first moments, has its default effect.

Must not know: what the signals mean; and imports nothing that takes time.
"""

from __future__ import annotations

import signal

KEPT = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def keep_signals() -> None:
    """Have them wait; whoever listens lets them come. A process that ends first ends as it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, KEPT)
