"""Mutants of the owners of host memberships: what is written, and when a page ends."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

ENTRIES = "core.local.entries"
OWNER = "core.local.owner"
SHARE = "shm.share"
GLOBAL = "server.host"
LOOP = "server.loop"
TEST = CORE + "test_owner.py::"
GLOBAL_TEST = "tests/integration/test_global_host.py::"
SHARE_TEST = "tests/unit/shm/test_share.py::"
NO_OWNER = "no simulated Local is the owner of a page"
NO_FILES = "files are outside of the simulated core"

OF_HOSTS = (
    Mutant(
        "owner that counts an invalidation before its word is written",
        (
            (
                ENTRIES,
                "                self.vector.note(key, seq)\n            elif",
                "                joined.applied = seq\n                self.vector.note(key, seq)\n            elif",
            ),
        ),
        TEST + "test_a_word_is_written_before_it_counts_as_applied_and_is_acknowledged",
        NO_OWNER,
    ),
    Mutant(
        "owner that renews the page before the words of a SYNC answer",
        (
            (
                OWNER,
                "        super()._on_synced(message, now)\n",
                "        self._trust(self._sent_at.get(message.serial, 0.0))\n        super()._on_synced(message, now)\n",
            ),
        ),
        TEST + "test_words_of_a_sync_answer_are_written_before_the_lease",
        NO_OWNER,
    ),
    Mutant(
        "owner that writes no words",
        ((OWNER, "            self.published.note(key, seq)\n", "            pass\n"),),
        TEST + "test_a_word_is_written_before_it_counts_as_applied_and_is_acknowledged",
        NO_OWNER,
    ),
    Mutant(
        "owner that goes on with its page after a flush",
        (
            (
                OWNER,
                "            self.abandon(now)\n            return\n",
                "            self.joined.applied = message.seq\n            return\n",
            ),
        ),
        TEST + "test_a_flush_is_another_session_with_another_page",
        NO_OWNER,
    ),
    Mutant(
        "owner that keeps its page when its session is lost",
        (
            (
                OWNER,
                "        try:\n            self._close_page()\n        finally:\n            super()._void(now)\n",
                "        super()._void(now)\n",
            ),
        ),
        TEST + "test_a_lost_session_voids_and_removes_before_the_next_hello",
        NO_OWNER,
    ),
    Mutant(
        "owner that says GOODBYE and keeps its page",
        (
            (
                OWNER,
                "        try:\n            self._close_page()\n        finally:\n            super().goodbye(now)\n",
                "        super().goodbye(now)\n",
            ),
            (
                OWNER,
                "        try:\n            self._close_page()\n        finally:\n            super().lapse()\n",
                "        super().lapse()\n",
            ),
        ),
        TEST + "test_a_stop_voids_and_removes_before_the_goodbye",
        NO_OWNER,
    ),
    Mutant(
        "owner that removes a page without voiding it",
        ((OWNER, "            page.void()\n", "            pass\n"),),
        TEST + "test_a_stop_voids_and_removes_before_the_goodbye",
        NO_OWNER,
    ),
    Mutant(
        "owner that uses a page again for another session",
        (
            (
                OWNER,
                "            self.published = self._open_page(message)\n",
                "            page = vars(self).setdefault('first', None) or self._open_page(message)\n            self.first = self.published = page\n",
            ),
        ),
        TEST + "test_a_lost_session_voids_and_removes_before_the_next_hello",
        NO_OWNER,
    ),
    Mutant(
        "owner that makes a page for a repeated WELCOME",
        (
            (
                OWNER,
                "        if type(message) is Welcome and self.session and not before:\n",
                "        if type(message) is Welcome and self.session:\n",
            ),
        ),
        TEST + "test_a_repeated_welcome_changes_nothing",
        NO_OWNER,
    ),
    Mutant(
        "owner that goes on with a page that it could not write",
        (
            (
                OWNER,
                "            self.published.note(key, seq)\n        except Exception as error:\n            self.trouble = str(error)\n            self._close_page()\n",
                "            self.published.note(key, seq)\n        except Exception as error:\n            self.trouble = str(error)\n",
            ),
        ),
        TEST + "test_a_page_that_cannot_be_written_is_void_and_replaced",
        NO_OWNER,
    ),
    Mutant(
        "owner that speaks although its page could not be voided",
        ((OWNER, "            self._silent_until = self._lease_in_page\n", ""),),
        TEST + "test_a_page_that_cannot_be_voided_keeps_the_owner_silent_until_its_lease_ends",
        NO_OWNER,
    ),
    Mutant(
        "owner that counts an invalidation although its page could not be voided",
        (
            (
                OWNER,
                "            self._silent_until = self._lease_in_page\n            raise\n",
                "            self._silent_until = self._lease_in_page\n",
            ),
        ),
        TEST + "test_a_page_that_cannot_be_voided_keeps_the_owner_silent_until_its_lease_ends",
        NO_OWNER,
    ),
    Mutant(
        "owner that is not ended by another version of the protocol",
        (
            (
                OWNER,
                "            self.refuse(message.text, now)\n",
                "            pass\n",
            ),
        ),
        TEST + "test_another_version_of_the_protocol_ends_it",
        NO_OWNER,
    ),
    Mutant(
        "word that becomes smaller",
        ((SHARE, "        if words[bucket] < seq:\n", "        if True:\n"),),
        SHARE_TEST + "test_a_word_never_becomes_smaller",
        NO_FILES,
    ),
    Mutant(
        "page that is renewed after it was voided",
        (
            (
                SHARE,
                "        if lease[0] == VOID:  # by another owner, perhaps\n",
                "        if False:\n",
            ),
        ),
        SHARE_TEST + "test_a_void_page_is_not_renewed",
        NO_FILES,
    ),
    Mutant(
        "Global that frees its address before its page is void",
        (
            (
                LOOP,
                "            if epoch is not None:  # first: from now on another Global may have the address\n                epoch.void(clock.now())\n",
                "            if router is not None:\n                router.close()\n            if epoch is not None:\n                epoch.void(clock.now())\n",
            ),
        ),
        GLOBAL_TEST + "test_it_is_void_before_the_address_is_free",
        NO_FILES,
    ),
    Mutant(
        "Global that does not replace a page which is lost",
        (
            (
                GLOBAL,
                "            if not self._state.host_lost and self._share.findable:\n",
                "            if self._share.findable:\n",
            ),
        ),
        GLOBAL_TEST + "test_a_page_that_cannot_be_written_is_replaced",
        NO_FILES,
    ),
    Mutant(
        "Global that does not look whether its page was removed",
        (
            (
                GLOBAL,
                "            if not self._state.host_lost and self._share.findable:\n",
                "            if not self._state.host_lost:\n",
            ),
        ),
        GLOBAL_TEST + "test_a_page_that_another_program_has_removed_is_replaced",
        NO_FILES,
    ),
)
