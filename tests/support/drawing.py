"""What hypothesis draws from: the strategy and the seed, and nothing that happens to be loaded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from unittest import mock

from hypothesis.internal.conjecture import providers


def drawn_from_the_seed() -> AbstractContextManager[object]:
    """Hypothesis draws now and then a constant of a loaded module: then a seed is not enough.

    Releases that have no such draw need nothing.
    """
    name = "_maybe_draw_constant"
    if not hasattr(providers.HypothesisProvider, name):
        return nullcontext()
    return mock.patch.object(providers.HypothesisProvider, name, return_value=None)
