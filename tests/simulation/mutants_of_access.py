"""Mutants of identities: what each of them may do, and that no other one can change or see it."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

ACCESS = "core.authority.access"
BROADCASTS = "core.authority.broadcasts"
BUDGETS = "core.authority.budgets"
CONTENT = "protocol.content"
INVALIDATIONS = "core.authority.invalidations"
LOADS = "core.authority.loads"
MEMBERSHIPS = "core.authority.memberships"
READS = "core.authority.reads"
SESSIONS = "core.authority.sessions"
STAGES = "core.authority.stages"
STATE = "core.authority.state"
WRITES = "core.authority.writes"
SESSION_TESTS = CORE + "test_access_sessions.py::"
KEY_TESTS = CORE + "test_access_keys.py::"
CONCEALED_TESTS = CORE + "test_access_concealed.py::"
REVOKED_TESTS = CORE + "test_access_revoked.py::"
BUDGET_TESTS = CORE + "test_access_budgets.py::"
HONEST = "simulated Locals use what is their own, and ask for what they may"
ONE_WAY = "the simulated Global takes the long way"
NO_LIMIT = "simulated identities are far from their limits"
FEW = "in few seeds only a process sees more keys than the owner of its page"
UNSEEN = "nothing that a simulated Local does shows what it was told"
HOLDS = SESSION_TESTS + "test_a_session_holds_only_what_its_own_identity_is_told_of"
NO_CHANGE = SESSION_TESTS + "test_another_identity_that_knows_id_and_secret_changes_nothing"
BEYOND = KEY_TESTS + "test_a_message_that_names_a_key_beyond_the_prefixes_does_nothing"

OF_ACCESS = (
    # ---- sessions belong to the identity that opened them
    Mutant(
        "renewal, acknowledgement or end by another identity that has the secret",
        (
            (
                SESSIONS,
                "        return session if session is not None and session.identity is identity else None\n",
                "        return session\n",
            ),
        ),
        SESSION_TESTS + "test_the_secret_of_another_identity_neither_renews_nor_acknowledges_nor_ends",
        HONEST,
    ),
    Mutant(
        "write or upload in the session of another identity",
        ((STATE, "        if session is not None and session.identity is not identity:\n", "        if False:\n"),),
        SESSION_TESTS + "test_writes_and_uploads_need_a_session_of_the_same_identity",
        HONEST,
    ),
    Mutant(
        "HELLO of another identity that replaces a session",
        (
            (
                MEMBERSHIPS,
                "                replaced = self._sessions.by_secret(message.replaces_secret, identity)\n",
                "                replaced = self._sessions._by_secret.get(message.replaces_secret)\n",
            ),
        ),
        SESSION_TESTS + "test_a_hello_of_another_identity_replaces_no_session",
        HONEST,
    ),
    Mutant(
        "repeat of a HELLO by another identity answered with its secret",
        (
            (SESSIONS, "        return self._by_nonce.get((identity, nonce))\n", "        return next((each for (_, n), each in self._by_nonce.items() if n == nonce), None)\n"),
        ),
        SESSION_TESTS + "test_a_nonce_of_another_identity_opens_another_session",
        HONEST,
    ),
    Mutant(
        "upload withdrawn by another identity",
        (
            (
                STATE,
                "        if session is not None and session.identity is identity:\n",
                "        if session is not None:\n",
            ),
        ),
        SESSION_TESTS + "test_writes_and_uploads_need_a_session_of_the_same_identity",
        HONEST,
    ),
    Mutant(
        "WAIT taken over or withdrawn by another identity",
        (
            (READS, "        name = (message.session, message.request, identity)\n        account", "        name = (message.session, message.request, ANYONE)\n        account"),
            (READS, "        name = (message.session, message.request, identity)\n        if", "        name = (message.session, message.request, ANYONE)\n        if"),
        ),
        SESSION_TESTS + "test_a_wait_belongs_to_the_identity_that_asked_and_not_to_the_session_it_names",
        HONEST,
    ),
    Mutant(
        "parked request taken over or withdrawn by another identity",
        (
            (LOADS, "        name = (identity, type(message)", "        name = (ANYONE, type(message)"),
            (LOADS, "        parked = self._parked.get((identity, Wait", "        parked = self._parked.get((ANYONE, Wait"),
        ),
        SESSION_TESTS + "test_a_parked_load_belongs_to_the_identity_that_asked",
        HONEST,
    ),
    # ---- holders
    Mutant(
        "reader that makes a session a holder whose identity does not see the key",
        (
            (
                READS,
                "        if not identity.prefixes and not identity.revoked:\n",
                "        if not identity.revoked:\n",
            ),
        ),
        HOLDS,
        FEW,
    ),
    Mutant(
        "reader that makes a session of a revoked identity a holder",
        (
            (
                READS,
                "        if not identity.prefixes and not identity.revoked:\n",
                "        if not identity.prefixes:\n",
            ),
        ),
        HOLDS,
        "a lease that is not renewed any more ends soon, and nothing is stale before",
    ),
    Mutant(
        "writer that makes a session a holder whose identity does not see the key",
        (
            (
                WRITES,
                "        if session is None or not session.may_hold(key):\n",
                "        if session is None or not session.open or session.bit < 0:\n",
            ),
        ),
        HOLDS,
        FEW,
    ),
    Mutant(
        "offer that makes a session a holder whose identity does not see the key",
        (
            (
                READS,
                "            if not (identity.sees(key) and session.may_hold(key)):\n",
                "            if not identity.sees(key):\n",
            ),
        ),
        HOLDS,
        "a simulated Local offers what it has been given itself",
    ),
    # ---- roles and prefixes
    Mutant(
        "write without the role for it",
        ((ACCESS, "    if identity.role < needed:\n", "    if False:\n"),),
        KEY_TESTS + "test_a_role_that_only_reads_writes_nothing_and_is_told_why",
        HONEST,
    ),
    Mutant(
        "writer session without the role for it",
        ((ACCESS, "        return message.kind is m.Kind.WRITER\n", "        return False\n"),),
        KEY_TESTS + "test_a_role_that_only_reads_writes_nothing_and_is_told_why",
        HONEST,
    ),
    Mutant(
        "sessions of others in the metrics",
        (
            (
                SESSIONS,
                "if everyone or each.identity is identity)",
                "if True)",
            ),
        ),
        KEY_TESTS + "test_the_locals_of_others_are_shown_to_an_admin_only",
        UNSEEN,
    ),
    Mutant(
        "key beyond the prefixes used",
        ((ACCESS, "    if forbidden is not None:\n", "    if False:\n"),),
        BEYOND,
        HONEST,
    ),
    Mutant(
        "only the first key of a message compared with the prefixes",
        ((ACCESS, "        for key in keys:\n", "        for key in keys[:1]:\n"),),
        BEYOND,
        HONEST,
    ),
    Mutant(
        "short way of a GET that asks for no leave",
        (
            (
                STATE,
                "        if identity is not ANYONE and (identity.revoked or unseen(identity, message.keys)):\n",
                "        if False:\n",
            ),
        ),
        BEYOND,
        ONE_WAY,
    ),
    Mutant(
        "scan of all keys",
        ((READS, "        for prefix in identity.within(message.prefix):\n", "        for prefix in [message.prefix]:\n"),),
        KEY_TESTS + "test_a_scan_returns_the_keys_below_the_prefixes_in_order_page_by_page",
        "no simulated Local scans",
    ),
    Mutant(
        "scan below prefixes that overlap",
        (
            (
                "core.authority.identity",
                "            if not ordered or not prefix.startswith(ordered[-1]):\n",
                "            if True:\n",
            ),
        ),
        KEY_TESTS + "test_a_scan_returns_the_keys_below_the_prefixes_in_order_page_by_page",
        "no simulated Local scans",
    ),
    Mutant(
        "offer of a key that is not seen",
        (
            (
                READS,
                "            if not (identity.sees(key) and session.may_hold(key)):\n",
                "            if not session.may_hold(key) and identity.sees(key):\n",
            ),
        ),
        KEY_TESTS + "test_what_an_identity_does_not_see_is_not_the_same_in_an_offer",
        HONEST,
    ),
    Mutant(
        "FETCH by the token alone",
        (
            (
                READS,
                "        if stored is not None and large and stored.token == message.token:\n",
                "        if True:\n",
            ),
        ),
        KEY_TESTS + "test_a_fetch_needs_the_key_that_has_the_token_now",
        HONEST,
    ),
    Mutant(
        "FETCH of a key that is not seen",
        ((READS, "self._engine.read(message.key) if identity.sees(message.key) else None", "self._engine.read(message.key)"),),
        KEY_TESTS + "test_a_fetch_needs_the_key_that_has_the_token_now",
        HONEST,
    ),
    Mutant(
        "FETCH of a small value that was given the token of a large one",
        ((READS, "        if stored is not None and large and", "        if stored is not None and"),),
        KEY_TESTS + "test_a_small_value_with_the_token_of_a_large_one_is_no_way_to_its_bytes",
        HONEST,
    ),
    Mutant(
        "value that was loaded for one key answered for another with the same token",
        (
            (LOADS, "            place = key, away.token\n            if", '            place = "", away.token\n            if'),
            (LOADS, "            place = key, away.token\n            body", '            place = "", away.token\n            body'),
            (READS, "                if (key, token) not in loaded:\n", '                if ("", token) not in loaded:\n'),
            (READS, "                found = loaded[key, token]\n", '                found = loaded["", token]\n'),
            (READS, "and (key, stored.token) not in loaded:\n", 'and ("", stored.token) not in loaded:\n'),
        ),
        KEY_TESTS + "test_what_is_loaded_for_one_key_is_not_answered_for_another_with_the_same_token",
        HONEST,
    ),
    Mutant(
        "content address below a prefix that takes any value",
        (
            (
                CONTENT,
                "(CONTENT_PREFIX, *(prefix + CONTENT_PREFIX for prefix in prefixes))",
                "(CONTENT_PREFIX,)",
            ),
        ),
        KEY_TESTS + "test_an_address_below_the_prefix_of_its_writer_is_bound_to_its_value_only",
        "no simulated key is a content address",
    ),
    # ---- concealed
    Mutant(
        "broadcast of a concealed Global",
        ((BROADCASTS, "        if self._tell is not None:\n", "        if False:\n"),),
        CONCEALED_TESTS + "test_a_concealed_global_broadcasts_no_names_and_no_tokens",
        UNSEEN,
    ),
    Mutant(
        "holders of a concealed Global left to a broadcast",
        ((INVALIDATIONS, "        if most and not self.broadcasts.concealed:\n", "        if most:\n"),),
        CONCEALED_TESTS + "test_a_concealed_global_broadcasts_no_names_and_no_tokens",
        "reminders reach the holders all the same, later",
    ),
    Mutant(
        "names of all keys in what is sent to one session",
        ((INVALIDATIONS, '            keys = [key if sees(key) else "" for key in keys]\n', "            pass\n"),),
        CONCEALED_TESTS + "test_keys_that_a_session_may_not_see_have_no_name_in_its_invalidations",
        UNSEEN,
    ),
    Mutant(
        "keys without a name left out of what is counted",
        ((INVALIDATIONS, '            keys = [key if sees(key) else "" for key in keys]\n', "            keys = [key for key in keys if sees(key)]\n"),),
    ),
    Mutant(
        "names concealed of keys that are seen",
        ((INVALIDATIONS, '            keys = [key if sees(key) else "" for key in keys]\n', '            keys = [""] * len(keys)\n'),),
    ),
    Mutant(
        "key without a name taken for a key",
        (("core.local.entries", "            if not key:  # one", "            if False:  # one"),),
        CONCEALED_TESTS + "test_a_key_without_a_name_counts_and_nothing_is_dropped_or_announced",
        "an invalidation too many costs a miss",
    ),
    Mutant(
        "key without a name not counted as applied",
        (("core.local.entries", "                joined.applied = seq\n                continue\n", "                continue\n"),),
    ),
    Mutant(
        "watchers of a concealed Global not told",
        ((INVALIDATIONS, "            watches = recipient.watching or recipient.session.kind is Kind.OBSERVER\n", "            watches = False\n"),),
        CONCEALED_TESTS + "test_who_watches_is_sent_what_a_broadcast_would_have_told",
        "they are told when they renew their leases",
    ),
    Mutant(
        "gap between targeted invalidations not repaired",
        (("core.local.state", "            self.renew(now)\n            return\n        # As in a broadcast.", "            return\n        # As in a broadcast."),),
        CONCEALED_TESTS + "test_a_watcher_that_was_not_sent_one_invalidation_asks_when_the_next_one_comes",
        "the next renewal repairs it, too",
    ),
    Mutant(
        "acknowledgement of what a concealed Global has kept for watchers",
        ((BROADCASTS, "            self.heard = self.seq\n", ""), (BROADCASTS, "        if self._tell is not None:\n", "        self.heard = self.seq\n        if self._tell is not None:\n")),
        CONCEALED_TESTS + "test_a_session_acknowledges_only_what_was_sent_to_it",
        "no simulated Local acknowledges what it has not applied",
    ),
    Mutant(
        "tokens of large values left out where there is no broadcast",
        ((INVALIDATIONS, "        if self.broadcasts.concealed and not repeats:\n            tokens", "        if False:\n            tokens"),),
        CONCEALED_TESTS + "test_tokens_of_large_values_reach_who_sees_their_keys",
        "a simulated host keeps files that nothing refers to",
    ),
    Mutant(
        "tokens told again and again where names are not",
        ((INVALIDATIONS, "self.broadcasts.concealed and not repeats:", "self.broadcasts.concealed:"),),
        CONCEALED_TESTS + "test_tokens_that_are_asked_for_again_and_again_are_sent_no_more",
        "it costs time alone",
    ),
    Mutant(
        "tokens of large values told to who does not see their keys",
        ((INVALIDATIONS, "self.log.large_since(applied) if sees(key)]", "self.log.large_since(applied)]"),),
        CONCEALED_TESTS + "test_tokens_of_large_values_reach_who_sees_their_keys",
        UNSEEN,
    ),
    # ---- revoked
    Mutant(
        "message of a revoked identity handled",
        ((STATE, "        if identity.revoked:\n            return []\n", ""),),
        REVOKED_TESTS + "test_a_revoked_identity_gets_no_answer_to_anything",
        "a Local that goes on is as honest as before",
    ),
    Mutant(
        "session of a revoked identity ended at once",
        (
            (
                MEMBERSHIPS,
                "            if session.kind is Kind.MEMBER and session.lease_end > now:\n",
                "            if False:\n",
            ),
        ),
    ),
    Mutant(
        "session of a revoked identity that lingers",
        ((SESSIONS, "        if session.identity.revoked:\n            return session.lease_end\n", ""),),
        REVOKED_TESTS + "test_a_session_of_a_revoked_identity_ends_with_its_lease",
        "a session that lingers holds nothing up",
    ),
    Mutant(
        "invalidation sent to a revoked identity",
        ((INVALIDATIONS, "        if recipient.session.identity.revoked:\n            return\n", ""),),
        REVOKED_TESTS + "test_a_deletion_waits_for_the_lease_of_a_revoked_holder",
        UNSEEN,
    ),
    Mutant(
        "WAIT of a revoked identity kept",
        ((STATE, "        self._waits.revoke(identity)\n", ""),),
        REVOKED_TESTS + "test_waits_loads_and_uploads_of_a_revoked_identity_are_dropped",
        UNSEEN,
    ),
    Mutant(
        "parked request of a revoked identity answered",
        ((READS, "        if parked.withdrawn or parked.identity.revoked:\n", "        if parked.withdrawn:\n"),),
        REVOKED_TESTS + "test_waits_loads_and_uploads_of_a_revoked_identity_are_dropped",
        UNSEEN,
    ),
    Mutant(
        "upload of a revoked identity kept",
        ((MEMBERSHIPS, "            self._stages.end(session)\n            if", "            if"),),
        REVOKED_TESTS + "test_waits_loads_and_uploads_of_a_revoked_identity_are_dropped",
        "uploads are dropped with their sessions, a lease later",
    ),
    Mutant(
        "queued write of a revoked identity executed",
        ((WRITES, "        if not write.session.identity.revoked:\n            return False\n", "        if True:\n            return False\n"),),
        REVOKED_TESTS + "test_queued_writes_of_a_revoked_identity_are_not_executed",
        "for the history its outcome is unknown",
    ),
    Mutant(
        "withheld reply sent to a revoked identity",
        ((WRITES, "            if not write.session.identity.revoked:\n", "            if True:\n"),),
        REVOKED_TESTS + "test_a_deletion_of_a_revoked_identity_that_has_begun_goes_on_and_is_not_answered",
        UNSEEN,
    ),
    # ---- budgets
    Mutant(
        "budget taken by the many sessions of one identity",
        ((BUDGETS, "        return self.taken + size <= PEER_SHARE * self._budget.total\n", "        return True\n"),),
        BUDGET_TESTS + "test_one_identity_with_many_sessions_does_not_take_a_whole_budget",
        NO_LIMIT,
    ),
    Mutant(
        "places taken by one identity",
        (
            (
                MEMBERSHIPS,
                '            text = f"{share:,} Locals of {identity.name!r} are here, as many as one identity may "\n'
                '            raise Refuse(Refusal.BUSY, text + f"have; --max-clients is {most:,}")\n',
                "            pass\n",
            ),
        ),
        BUDGET_TESTS + "test_one_identity_takes_a_part_of_the_sessions_and_leaves_the_rest_to_others",
        NO_LIMIT,
    ),
    Mutant(
        "uploads taken by one identity",
        ((STAGES, "        if len(own) >= share_of(UPLOADS_MAX):\n", "        if False:\n"),),
        BUDGET_TESTS + "test_uploads_of_one_identity_leave_room_for_those_of_others",
        NO_LIMIT,
    ),
    Mutant(
        "memory reserved by the uploads of one identity",
        ((STAGES, "        if own and sum(own) + size > PEER_SHARE * self._engine.limit:\n", "        if False:\n"),),
        BUDGET_TESTS + "test_uploads_of_one_identity_reserve_a_part_of_the_memory",
        NO_LIMIT,
    ),
)  # fmt: skip
