"""The clock that leases are counted on.

It must not jump when NTP or a user sets the time, and must go on while the machine is suspended:
a Local that wakes up after an hour has to notice that its lease has expired. On Linux this is
``CLOCK_BOOTTIME``; elsewhere it is the monotonic clock of the system (which includes suspended
time on macOS).
"""

from __future__ import annotations

import time
from functools import partial

if hasattr(time, "CLOCK_BOOTTIME"):
    now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    """Seconds since a fixed moment, which is the same for all processes of this host."""
    now_ns = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    """The same in nanoseconds: leases are kept and compared in these."""
else:  # pragma: no cover - not Linux
    now = time.monotonic  # type: ignore[assignment]
    now_ns = time.monotonic_ns  # type: ignore[assignment]
