"""The clock that leases are counted on.

It must neither jump with NTP or a user's hand nor stand still while the machine is suspended:
a Local that wakes up after an hour has to notice that its lease is over. On Linux that is
``CLOCK_BOOTTIME``; elsewhere the monotonic clock of the system (macOS counts suspended time in
it too).
"""

from __future__ import annotations

import time
from functools import partial

if hasattr(time, "CLOCK_BOOTTIME"):
    now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    """Seconds since some fixed moment, the same for all processes of this host."""
else:  # pragma: no cover - not Linux
    now = time.monotonic  # type: ignore[assignment]
