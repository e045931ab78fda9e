"""Histories that are linearizable, and histories that are not, by what is wrong with them."""

from __future__ import annotations

GOOD = {
    "nothing": "",
    "one life of a value": """
        A 0 1 get -> missing
        A 2 3 set v -> stored
        B 4 5 get -> v
        B 6 7 set w -> occupied v
        A 8 9 delete -> deleted
        B 10 11 delete -> missing
        B 12 13 get -> missing""",
    "a read during a write may see either": """
        A 0 9 set v -> stored
        B 1 2 get -> missing
        B 3 4 get -> v""",
    "a read during a deletion may see either": """
        A 0 1 set v -> stored
        A 2 9 delete -> deleted
        B 3 4 get -> v
        C 5 6 get -> missing""",
    "equal times are concurrent": """
        A 0 1 set v -> stored
        A 2 3 delete -> deleted
        B 3 3 get -> v
        B 4 4 get -> missing""",
    "two deletions at once, one of which joins": """
        A 0 1 set v -> stored
        B 2 5 delete -> deleted
        C 3 5 delete -> missing""",
    "three writers at once, seen in another order than they started": """
        A 0 9 replace a -> replaced
        B 1 9 replace b -> replaced
        C 2 9 replace c -> stored
        D 3 4 get -> c
        D 5 6 get -> b
        D 7 8 get -> a
        D 10 11 get -> a""",
    "an unknown SET that happened": """
        A 0 ? set v -> unknown
        B 5 6 get -> v""",
    "an unknown SET that happened late": """
        A 0 ? set v -> unknown
        B 5 6 get -> missing
        B 7 8 get -> v""",
    "an unknown SET that never happened": """
        A 0 ? set v -> unknown
        B 5 6 get -> missing
        B 7 8 set w -> stored""",
    "an unknown SET that nobody saw explains a deletion": """
        A 0 ? set v -> unknown
        B 5 6 delete -> deleted""",
    "an unknown deletion that happened between two reads": """
        A 0 1 set v -> stored
        B 2 ? delete -> unknown
        C 3 4 get -> v
        C 5 6 get -> missing""",
    "an unknown deletion much later": """
        A 0 1 set v -> stored
        B 2 ? delete -> unknown
        C 100 101 get -> v
        C 102 103 set w -> stored""",
    "an unknown replacement that nobody saw explains a second SET's refusal": """
        A 0 ? replace v -> unknown
        B 1 2 get -> missing
        B 3 4 set w -> occupied""",
    "an unknown deletion is needed late, and could have been used before": """
        A 2 4 replace v -> stored
        B 4 4 replace w -> written
        C 1 ? delete -> unknown
        D 8 13 get -> missing""",
    "an unknown SET is needed late, and could have been used before": """
        A 1 4 replace v -> written
        B 0 4 replace w -> replaced
        C 5 6 delete -> deleted
        D 1 ? set x -> unknown
        E 8 12 set y -> occupied""",
    "unknown reads say nothing": """
        A 0 ? get -> unknown
        B 1 2 get -> missing""",
    "a deletion not waited for takes effect later": """
        A 0 1 set v -> stored
        B 2 3 delete -> pending
        C 4 5 get -> v
        C 6 7 get -> missing""",
    "a stale read is not judged here": """
        A 0 1 set v -> stored
        A 2 3 delete -> deleted
        B 4 5 stale -> v""",
    "a replacement that was not told what it found": """
        A 0 1 replace v -> written
        A 2 3 replace w -> written
        B 4 5 get -> w""",
}

BAD = {
    "stale read after a confirmed deletion": """
        A 0 1 set v -> stored
        B 2 3 delete -> deleted
        C 4 5 get -> v""",
    "stale read after a replacement": """
        A 0 1 set v -> stored
        B 2 3 replace w -> replaced
        C 4 5 get -> v""",
    "stale read after another process saw the key gone": """
        A 0 1 set v -> stored
        B 2 9 delete -> deleted
        C 3 4 get -> missing
        D 5 6 get -> v""",
    "stale read after another process saw the new value": """
        A 0 1 set v -> stored
        B 2 9 replace w -> replaced
        C 3 4 get -> w
        D 5 6 get -> v""",
    "read of a value never written": """
        A 0 1 set v -> stored
        B 2 3 get -> x""",
    "read of a value whose SET was refused": """
        A 0 1 set v -> stored
        A 2 3 set w -> occupied v
        B 4 5 get -> w""",
    "read before the write started": """
        A 0 1 get -> v
        B 2 3 set v -> stored""",
    "missing while bound": """
        A 0 1 set v -> stored
        B 2 3 get -> missing""",
    "missing while bound, between two reads of the same value": """
        A 0 1 set v -> stored
        B 2 3 get -> v
        B 4 5 get -> missing
        B 6 7 get -> v""",
    "missing while a key is being replaced": """
        A 0 1 set v -> stored
        A 2 9 replace w -> replaced
        B 3 4 get -> missing""",
    "deletion that found nothing while the key was being replaced": """
        A 0 1 set v -> stored
        A 2 9 replace w -> replaced
        B 3 4 delete -> missing
        B 5 6 get -> v""",
    "two SETs stored without a deletion between them": """
        A 0 1 set v -> stored
        B 2 3 set w -> stored""",
    "two concurrent SETs both stored": """
        A 0 2 set v -> stored
        B 1 3 set w -> stored""",
    "replacement that says it was the first, of a bound key": """
        A 0 1 set v -> stored
        B 2 3 replace w -> stored""",
    "replacement of a missing key that says it replaced": """
        A 0 1 replace w -> replaced""",
    "deletion of a missing key": """
        A 0 1 delete -> deleted""",
    "one value deleted twice": """
        A 0 1 set v -> stored
        B 2 3 delete -> deleted
        C 4 5 delete -> deleted""",
    "one value deleted twice, at once": """
        A 0 1 set v -> stored
        B 2 5 delete -> deleted
        C 3 4 delete -> deleted""",
    "deletion that found nothing while bound": """
        A 0 1 set v -> stored
        B 2 3 delete -> missing""",
    "pending deletion of a missing key": """
        A 0 1 get -> missing
        B 2 3 delete -> pending""",
    "occupied on a missing key": """
        A 0 1 set v -> occupied""",
    "occupied after a confirmed deletion": """
        A 0 1 set v -> stored
        A 2 3 delete -> deleted
        B 4 5 set w -> occupied""",
    "occupied by a value that is gone": """
        A 0 1 set v -> stored
        A 2 3 replace w -> replaced
        B 4 5 set x -> occupied v""",
    "occupied by the very value that was refused": """
        A 0 1 set v -> stored
        B 2 3 set w -> occupied w""",
    "replacement lost": """
        A 0 1 set v -> stored
        A 2 3 replace w -> replaced
        A 4 5 get -> v
        B 6 7 get -> w""",
    "replacement lost for good": """
        A 0 1 set v -> stored
        A 2 3 replace w -> replaced
        B 4 5 delete -> deleted
        B 6 7 set x -> stored
        B 8 9 get -> w""",
    "value resurrected after its deletion": """
        A 0 1 set v -> stored
        A 2 3 delete -> deleted
        B 4 5 get -> missing
        B 6 7 get -> v""",
    "value resurrected over a newer one": """
        A 0 1 set v -> stored
        A 2 3 delete -> deleted
        A 4 5 set w -> stored
        B 6 7 get -> w
        B 8 9 get -> v""",
    "unknown SET that takes effect twice": """
        A 0 ? set v -> unknown
        B 1 2 get -> v
        B 3 4 delete -> deleted
        C 5 6 get -> missing
        C 7 8 get -> v""",
    "unknown SET that takes effect before and after another value": """
        A 0 ? set v -> unknown
        B 1 2 get -> v
        B 3 4 replace w -> replaced
        C 5 6 get -> w
        C 7 8 get -> v""",
    "unknown SET that overwrites": """
        A 0 1 set v -> stored
        B 2 ? set w -> unknown
        C 3 4 get -> v
        C 5 6 get -> w
        C 7 8 delete -> deleted""",
    "one unknown SET for two deletions": """
        A 0 ? set v -> unknown
        B 1 2 delete -> deleted
        B 3 4 delete -> deleted""",
    "one unknown deletion for two SETs": """
        A 0 1 set u -> stored
        B 2 ? delete -> unknown
        C 3 4 set v -> stored
        C 5 6 set w -> stored""",
    "unknown deletion that takes effect before it started": """
        A 0 1 set v -> stored
        B 2 3 get -> missing
        C 4 ? delete -> unknown""",
    "unknown replacement whose victim comes back": """
        A 0 1 set v -> stored
        B 2 ? replace w -> unknown
        C 3 4 get -> w
        C 5 6 get -> v""",
    "own write is missing": """
        A 0 1 get -> missing
        A 2 3 set v -> stored
        A 4 5 get -> missing
        B 6 7 get -> v""",
    "reads go old, new, old": """
        A 0 1 set v -> stored
        B 2 20 replace w -> replaced
        C 3 4 get -> v
        D 5 6 get -> w
        E 7 8 get -> v""",
    "reads go present, missing, present during one SET": """
        A 0 20 set v -> stored
        B 1 2 get -> v
        C 3 4 get -> missing
        D 5 6 get -> v""",
    "two readers see two writes in opposite orders": """
        A 0 20 replace v -> written
        B 0 20 replace w -> written
        C 1 2 get -> v
        C 5 6 get -> w
        C 9 10 get -> v""",
    "read that began after the deletion, though another that ended later is right": """
        A 0 1 set v -> stored
        A 2 4 delete -> deleted
        B 3 9 get -> v
        C 5 6 get -> v""",
    "SET stored while another value was read all the time": """
        A 0 1 set v -> stored
        B 2 9 get -> v
        C 3 4 set w -> stored
        B 10 11 get -> v""",
    "pending deletion that takes effect twice": """
        A 0 1 set u -> stored
        B 2 3 delete -> pending
        C 4 5 set v -> stored
        C 6 7 set w -> stored""",
}
