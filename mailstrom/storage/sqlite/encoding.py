"""Rows that a statement takes as one value, for the worker's side alone.

Each statement, and each row that it gives back, hands Python's lock over and takes it again: where
an event loop works beside it that costs more than the row. So rows go in as one JSON text, and
where many come back they come as one, too. Clients do without: importing msgspec costs an
application a quarter of its start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec

_encoder = msgspec.json.Encoder()


def encoded(values: Sequence[object] | Mapping[str, object]) -> str:
    """A JSON array, for ``json_each``; or an object."""
    try:
        return _encoder.encode(values).decode()
    except UnicodeEncodeError:  # half a surrogate pair, out of a damaged row
        return json.dumps(values)
