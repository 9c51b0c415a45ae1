"""The disk errors of ``inject`` in this process; its modules find one another by name here, too."""

from __future__ import annotations

import sys

from tests.torture.launch import INJECT

if str(INJECT) not in sys.path:
    sys.path.append(str(INJECT))

from torture_errors import Fault, Fuse, faults
from torture_vfs import Op

__all__ = ["Fault", "Fuse", "Op", "faults"]
