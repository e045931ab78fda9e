"""The moment at which Global is next to be ticked."""

from __future__ import annotations

NEVER = float("inf")


class Alarm:
    """The earliest moment at which some part of the state has something to do.

    A part that schedules something brings the moment forward. So nothing has to be asked after
    each message when it is next due. Only a tick moves the alarm to a later moment.
    """

    __slots__ = ("moment",)

    def __init__(self) -> None:
        self.moment = NEVER

    def __repr__(self) -> str:
        return f"<Alarm {self.moment}>"

    def at(self, moment: float) -> None:
        """Make sure that a tick comes at ``moment`` or earlier."""
        if moment < self.moment:
            self.moment = moment
