"""Log lines about strangers are limited in rate, and what was left out is counted."""

from __future__ import annotations

import pytest

from dstore.runtime import clock
from dstore.runtime.logs import PAUSE, Log, RateLimitedLog


def test_one_line_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    limited = RateLimitedLog(Log("dstore.test"))
    for number in range(5):
        limited.warning("line %d", number)
    now[0] += PAUSE
    limited.warning("line %d", 5)
    assert caplog.messages == ["line 0", "line 5 (4 more since the last such line)"]
