"""Descriptors that ZeroMQ may close at any time."""

from __future__ import annotations

import os
import socket

import pytest

from dstore.transport import kernel


def test_a_duplicate_that_gets_the_number_of_what_was_closed_meanwhile_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ZeroMQ closes the descriptor while it is duplicated: its number is the lowest free one."""
    one, other = socket.socketpair()
    with other:
        number = one.detach()
        duplicate = os.dup

        def closed_meanwhile(fd: int) -> int:
            kept = duplicate(fd)
            os.close(fd)
            os.dup2(kept, fd)
            os.close(kept)
            return fd

        monkeypatch.setattr(os, "dup", closed_meanwhile)
        with kernel.opened(number) as sock:
            assert sock is not None
            assert sock.fileno() == number
        other.settimeout(10)
        assert other.recv(1) == b""  # nothing has the other end open any more


def test_without_a_descriptor_left_the_one_of_zeromq_is_borrowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: int) -> int:
        raise OSError(24, "Too many open files")

    one, other = socket.socketpair()
    with one, other:
        monkeypatch.setattr(os, "dup", none_left)
        with kernel.opened(one.fileno()) as sock:
            assert sock is not None
            assert sock.fileno() == one.fileno()
        one.send(b"x")  # it is open still
        assert other.recv(1) == b"x"
