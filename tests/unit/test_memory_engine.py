"""The in-memory engine keeps the contract."""

from __future__ import annotations

from dstore.engines.memory import MemoryEngine
from dstore.testing.engine_contract import EngineContract


class TestMemoryEngine(EngineContract):
    def make(self, limit: int) -> MemoryEngine:
        return MemoryEngine(limit)
