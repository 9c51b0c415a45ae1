"""What every verb of the client works with; ``Mailstrom`` is made of verbs over this.

``api`` opens and closes it. The verbs stand in ``sending``, ``asking``, ``changing`` (which asks,
too) and ``running``; nothing else binds them.
"""

from __future__ import annotations

import weakref

from mailstrom.client.commit import Committer
from mailstrom.client.embedding import Embedding
from mailstrom.storage.client import ClientStore


class Handle:
    """An open spool.

    Args:
        path: its path, or its name with a scheme.
        _timeout: seconds to wait for other writers.
        _store: reads from any thread; writes go through ``_committer`` only.
        _embedding: the engine of this process, if ``start()`` was called.
        _finalizer: alive until the client is closed.
    """

    path: str
    _timeout: float
    _store: ClientStore
    _committer: Committer
    _embedding: Embedding
    _finalizer: weakref.finalize[..., Handle]
