"""Connect files: what one client needs to reach a Global with keys."""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Connect:
    """What a connect file has. ``secret_key`` is a secret, and not in the repr."""

    address: str
    server_keys: list[str]
    name: str
    prefixes: list[str]
    public_key: str
    secret_key: str = dataclasses.field(repr=False)

    def text(self) -> str:
        """Return the text of the file."""
        return json.dumps({"dstore_connect": 1, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def load(cls, path: str) -> Connect:
        """Read a file."""
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        if not isinstance(fields, dict) or fields.pop("dstore_connect", None) != 1:
            raise ValueError(f"{path} is no connect file")
        return cls(**fields)
