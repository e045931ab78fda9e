"""The physical limit: a bare DEALER/ROUTER echo between two processes, in Python.

Its messages are as long as those of dstore's GET of one key. Server and client use plain blocking
``recv_multipart`` and ``send_multipart``, which copy: that is best for short messages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import zmq

from benchmarks.peers.base import Client, Peer
from benchmarks.processes import CALL_TIMEOUT, Place, server
from benchmarks.settings import VALUE
from dstore.protocol import wire
from dstore.protocol.messages import Found, Get, GetReply, Stored

KEY = "miss/000000"


def request_and_reply(key: str = KEY, value: bytes = VALUE) -> tuple[bytes, bytes]:
    """Return a GET of one key and its reply, as dstore sends them."""
    epoch = 1 << 62
    found = Found(10_000, True, Stored(bytes(16), "bytes", value))
    request = wire.encode(Get(epoch, 10, 10_000, [key]))
    return request, wire.encode(GetReply.of((epoch, 10, 10_000), 10_000, [found]))


@contextmanager
def answering(reply: bytes, copy: bool = True) -> Iterator[Place]:
    """Answer every message with the same reply, in a thread."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    thread = threading.Thread(target=_answer, args=(router, reply, copy))
    thread.start()
    try:
        yield Place("127.0.0.1", port, os.getpid())
    finally:
        context.term()
        thread.join()


def _answer(router: zmq.Socket[bytes], reply: bytes, copy: bool) -> None:
    try:
        while True:
            route, _ = router.recv_multipart()
            router.send_multipart((route, reply), copy=copy)
    except zmq.ContextTerminated:
        router.close()


class EchoClient(Client):
    def __init__(self, place: Place) -> None:
        self._request = request_and_reply()[0]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.rcvtimeo = int(CALL_TIMEOUT * 1000)
        self._dealer.connect(f"tcp://{place.host}:{place.port}")
        self.get = self._round_trip

    def _round_trip(self, _: object) -> object:
        self._dealer.send_multipart((self._request,))
        return self._dealer.recv_multipart()

    def load(self, items: Mapping[str, bytes]) -> None:
        return None

    def delete(self, key: object) -> object:
        return self._round_trip(key)

    def close(self) -> None:
        self._dealer.close()
        self._context.term()


class Echo(Peer):
    name = "bare echo"
    workloads = frozenset({"miss", "clients", "delete", "join"})

    def serve(self) -> AbstractContextManager[Place]:
        return server(answering, request_and_reply()[1])

    def client(self, place: Place) -> EchoClient:
        return EchoClient(place)
