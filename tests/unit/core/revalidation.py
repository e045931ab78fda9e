"""Sessions that end, and offers in the next ones, in the world of the tests."""

from __future__ import annotations

from dstore.protocol.messages import Offer, Offered, Refusal, Refused
from tests.unit.core.world import Member, World


def restart(world: World, *members: Member) -> None:
    """A new life of Global; these find out by a renewal that it has another epoch."""
    world.start_global()
    for member in members:
        member.state.renew(world.now)
    world.settle()


def lost(member: Member) -> None:
    """Global has forgotten the session, and says so."""
    state = member.state
    member.receive(Refused(state.epoch, state.session, 0, Refusal.UNKNOWN_SESSION, ""))


def offered(member: Member) -> Offer:
    """The offer that a Local makes when its next session has begun. It is not delivered."""
    lost(member)
    member.tick()
    member.send()
    member.listen()
    (offer,) = (each for each in member.tick() if isinstance(each, Offer))
    member.outgoing.remove(offer)
    return offer


def answer(world: World, member: Member, offer: Offer) -> Offered:
    world.deliver(member.route, offer)
    reply = member.control.pop()
    assert isinstance(reply, Offered)
    return reply
