"""``send_queued_mail`` with two processes, again and again; runs in the peers' own interpreter."""

from __future__ import annotations

import subprocess
import sys
import time

while True:
    subprocess.run(
        [sys.executable, "-m", "django", "send_queued_mail", "--processes", "2"], check=False
    )
    time.sleep(0.1)
