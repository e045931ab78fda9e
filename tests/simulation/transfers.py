"""Fetching and sending large values: the simulated counterpart of ``dstore.client.large``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dstore.core.local.cache import MappedBody
from dstore.core.local.steps import (
    FetchBody,
    ReceiveReply,
    SendBody,
    SendChunk,
    StepResult,
    TransferFailed,
    TransferStep,
    drive,
    take_step,
)
from dstore.core.local.transfer import download, upload
from dstore.protocol.messages import Reply
from tests.simulation.local import LocalProcess
from tests.simulation.loop import Loop
from tests.simulation.network import Connection

CHUNK = 3
"""Bytes of a chunk, so that a simulated value has several."""
POLL = 0.002
"""Seconds between two looks at a value that another thread is writing."""


Done = Callable[[MappedBody | None, TransferFailed | None], None]
"""Called with the value that was fetched (None if one was sent), or with the failure."""


class Mover(Protocol):
    """A thread that fetches or sends large values, over its own connection."""

    local: LocalProcess
    loop: Loop
    line: str
    channel: Connection


class LargeTransfer:
    """Fetches or sends one large value for a thread."""

    def __init__(self, client: Mover, step: FetchBody | SendBody, done: Done) -> None:
        self._client = client
        self._loop = client.loop
        self._host = client.local.host
        self._step = step
        self._token = step.stored.token
        self._received = bytearray(step.stored.size)
        self._done = done
        self._turn = 0
        self._over = False
        self._until = 0.0
        self._waiting: TransferStep | None = None
        if isinstance(step, SendBody):
            self._transfer = upload(
                step.envelope, step.stored, step.body, self._now(), step.stall_timeout, CHUNK
            )
            self._loop.at(self._loop.now, self._first, self._turn)
        else:
            self._transfer = download(
                step.envelope,
                step.key,
                step.stored,
                self._write,
                self._now(),
                step.stall_timeout,
                CHUNK,
            )
            self._loop.at(self._loop.now, self._fetch)

    def give_up(self) -> None:
        """Stop. Another thread may begin to write the value."""
        self._over = True
        self._turn += 1
        if self._host.writers.get(self._token) is self:
            del self._host.writers[self._token]

    def receive(self, reply: Reply) -> None:
        """Take a reply from the channel."""
        ours = reply.request == self._step.envelope[2]
        if ours and not self._over and isinstance(self._waiting, ReceiveReply):
            self._go_on(StepResult(self._now(), reply))

    # ---- fetching -------------------------------------------------------------------------

    def _fetch(self) -> None:
        """Look for the value, else begin to write it, else look again later."""
        if self._over:
            return
        body = self._host.copies.get(self._token) or self._client.local.of_global(self._token)
        if body is not None:
            self._end(MappedBody(memoryview(body), shared=True), None)
        elif self._token in self._host.writers:
            self._loop.later(POLL, self._fetch)
        else:
            self._host.writers[self._token] = self
            self._go_on(None)

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        self._received[offset : offset + len(data)] = data

    # ---- moving ---------------------------------------------------------------------------

    def _now(self) -> float:
        return self._client.local.clock()

    def _first(self, turn: int) -> None:
        if turn == self._turn:
            self._go_on(None)

    def _go_on(self, moved: StepResult | None) -> None:
        self._turn += 1
        try:
            finished = drive(self._transfer, take_step(self._transfer, moved), self.perform)
        except TransferFailed as failed:
            self._end(None, failed)
        else:
            if finished is not None:
                self._arrived()

    def perform(self, step: TransferStep) -> None:
        """Begin to wait for a step."""
        self._waiting = step
        self._until = self._client.local.true_time(step.until) + 1e-6
        self._try(self._turn)

    def _try(self, turn: int) -> None:
        """Send when there is a connection, or wait for a reply."""
        if turn != self._turn or self._over:
            return
        step = self._waiting
        if not isinstance(step, SendChunk):
            self._loop.at(self._until, self._expire, turn)
        elif self._client.channel.send_up(step.message):
            self._loop.at(self._loop.now, self._sent, turn, True)
        elif self._loop.now >= self._until:
            self._sent(turn, False)
        else:
            self._loop.later(POLL, self._try, turn)

    def _sent(self, turn: int, sent: bool) -> None:
        if turn == self._turn and not self._over:
            self._go_on(StepResult(self._now(), sent=sent))

    def _expire(self, turn: int) -> None:
        if turn != self._turn or self._over:
            return
        if self._client.local.held_up(self._client.line, self._expire, turn):
            return
        self._go_on(StepResult(self._now()))

    def _arrived(self) -> None:
        if isinstance(self._step, SendBody):
            self._end(None, None)
            return
        body = bytes(self._received)
        self._host.copies[self._token] = body
        self._end(MappedBody(memoryview(body), shared=True), None)

    def _end(self, body: MappedBody | None, failed: TransferFailed | None) -> None:
        self.give_up()
        self._done(body, failed)
