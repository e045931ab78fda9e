"""Mutants of memberships that the processes of a host share, all of which the simulation catches."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import Mutant

ENTRIES = "core.local.entries"
HITS = "client.hits"
HOST = "core.authority.host"
OWNER = "core.local.owner"
READER = "client.host_reader"
WRITES = "core.authority.writes"

OF_HOSTS_SIMULATED = (
    # ---- what owners write ----------------------------------------------------------------
    Mutant(
        "word in Global's page after the engine has changed",
        (
            (
                WRITES,
                "                if not self._invalidations.own.invalidated(pending.key, pending.seq, now):\n"
                "                    break  # processes of Global's host may use the value for a while\n"
                "                self._completed.popleft()\n"
                "                pending.submitted = True\n"
                "                self._changes.submit(self._change(pending), partial(self._commit, pending), now)\n",
                "                self._completed.popleft()\n"
                "                self._changes.submit(self._change(pending), partial(self._commit, pending), now)\n"
                "                self._invalidations.own.invalidated(pending.key, pending.seq, now)\n",
            ),
        ),
    ),
    Mutant(
        "replacement that is missing in Global's page",
        (
            (
                WRITES,
                "                if not self._invalidations.own.invalidated(",
                "                if pending.replacement is None and not self._invalidations.own.invalidated(",
            ),
        ),
    ),
    Mutant(
        "page of Global that cannot be written and is not voided",
        (
            (
                HOST,
                "            page.void()\n        except Exception:  # the lease ends by itself\n",
                "            pass\n        except Exception:  # the lease ends by itself\n",
            ),
        ),
    ),
    Mutant(
        "word of an owner after its number counts as applied",
        (
            (
                ENTRIES,
                "                self.vector.note(key, seq)\n            elif",
                "                joined.applied = seq\n                self.vector.note(key, seq)\n            elif",
            ),
        ),
    ),
    Mutant(
        "page that cannot be written and that its owner keeps",
        (
            (
                OWNER,
                "            self.published.note(key, seq)\n        except Exception as error:\n            self.trouble = str(error)\n            self._close_page()\n",
                "            self.published.note(key, seq)\n        except Exception as error:\n            self.trouble = str(error)\n",
            ),
        ),
    ),
    Mutant(
        "page that cannot be voided and whose owner goes on at once",
        (
            (
                OWNER,
                "            self._silent_until = self._lease_in_page\n            raise\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "page that is valid after the goodbye of its owner",
        (
            (
                OWNER,
                '        """Void and remove the page, then end the session."""\n        try:\n            self._close_page()\n',
                '        """Void and remove the page, then end the session."""\n        try:\n            pass\n',
            ),
            (
                OWNER,
                '        """Let no process of the host answer from its cache any more."""\n        try:\n            self._close_page()\n',
                '        """Let no process of the host answer from its cache any more."""\n        try:\n            pass\n',
            ),
        ),
    ),
    Mutant(
        "page of a former session that the next one uses",
        (
            (
                OWNER,
                "    def _void(self, now: float) -> None:\n        try:\n            self._close_page()\n",
                "    def _void(self, now: float) -> None:\n        try:\n            pass\n",
            ),
            (
                OWNER,
                "            self.published = self._open_page(message)\n",
                "            self.published = self.published or self._open_page(message)\n",
            ),
        ),
    ),
    # ---- hits -----------------------------------------------------------------------------
    Mutant(
        "hit of a shared entry that does not compare the word",
        (
            (
                HITS,
                "\n    words = membership.words\n    if words is not None and words[entry.bucket] > entry.seq:\n        return None\n",
                "\n",
            ),
        ),
    ),
    Mutant(
        "read of the host cache that does not compare the word",
        (
            (
                READER,
                "record is None or words[hashed % len(words)] > record.seq:\n",
                "record is None:\n",
            ),
        ),
    ),
    Mutant(
        "reads of many values of the host cache that do not compare the words",
        (
            (
                READER,
                "record is None or words[hashed % buckets] > record[0] or",
                "record is None or",
            ),
        ),
    ),
    Mutant(
        "operation that does not compare the word of a shared entry",
        (
            (
                ENTRIES,
                "        if entry is None or page.vector.words[entry.bucket] > entry.seq:\n            entry = self._read_host",
                "        if entry is None:\n            entry = self._read_host",
            ),
        ),
    ),
    Mutant(
        "operation that does not compare the word of a value of the host cache",
        (
            (
                ENTRIES,
                "        if record is None or page.vector.words[bucket] > record.seq:\n",
                "        if record is None:\n",
            ),
        ),
    ),
    # ---- fills ----------------------------------------------------------------------------
    Mutant(
        "value of a former membership put into the host cache of the present one",
        (
            (
                ENTRIES,
                "        if membership is not self.membership or self.closing:\n            return None\n        if self.page",
                "        if self.closing:\n            return None\n        if self.page",
            ),
        ),
    ),
    Mutant(
        "read without a session that may be cached",
        (
            (
                "core.authority.reads",
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if key in pending or (bit != NO_BIT and not hold(key, bit)):\n",
            ),
        ),
    ),
)
