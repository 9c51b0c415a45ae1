"""Fuzzes one target with atheris in this process: a child of ``fuzz``, or by hand.

``python -P -m tests.hostile.fuzz_child TARGET [libFuzzer options] [corpus folders]``. It ends by
libFuzzer's own limits of time and memory; a finding leaves an artifact and exit code 77 (an
exception), 70 (slower than -timeout) or 71 (more memory than -rss_limit_mb).
"""

from __future__ import annotations

import sys


def main() -> None:
    """Instrument what is fuzzed, then hand over to libFuzzer."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["mailstrom", "mailstrom_workers"]):
        from tests.hostile.fuzz_targets import TARGETS
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
