"""What a process spends while something is done to it: time, processor, memory at its peak.

Contract. ``Meter(pid)`` starts counting when it is made; its peak of memory is that since then, by
the kernel (``VmHWM`` after a write to ``clear_refs``), so nothing that comes and goes between two
looks is missed. Linux only; a process of our own user.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """Counts for a process from now on.

    Args:
        pid: 0 for this one.
    """

    def __init__(self, pid: int = 0) -> None:
        self._folder = Path("/proc") / (str(pid) if pid else "self")
        (self._folder / "clear_refs").write_text("5")  # the peak is what it has now
        self._memory = self._peak()
        self._cpu = self._spent()
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    @property
    def cpu_s(self) -> float:
        """Processor seconds since it was made, in hundredths."""
        return self._spent() - self._cpu

    @property
    def memory(self) -> int:
        """Octets by which the process grew, at its peak."""
        return max(self._peak() - self._memory, 0)

    def _peak(self) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(f"{self._folder} is no living process")

    def _spent(self) -> float:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
