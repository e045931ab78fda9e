"""Programs that gevent or eventlet patches, each for a process of its own.

    python -m tests.integration.green_programs gevent before waits tcp://127.0.0.1:50051

``before`` and ``after`` say whether dstore is imported before the patch, or after it; other words
are other ways to patch. A program that succeeds prints "fine"; one that hangs prints where.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0
"""Seconds; only a program that hangs takes them."""
CROWD = 50
"""Greenlets that wait at once: more than there are threads in the pools of gevent and eventlet."""
LARGE = "x" * 3_000_000


class Greenlets:
    """What both frameworks have, by one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = importlib.import_module(name)
        self.spawn: Callable[..., Any] = self.module.spawn
        self.sleep: Callable[[float], None] = self.module.sleep

    def result(self, greenlet: Any) -> Any:
        """What it returned, or what it raised, as a value."""
        try:
            return greenlet.get() if self.name == "gevent" else greenlet.wait()
        except Exception as error:
            return error

    def kill(self, greenlet: Any) -> None:
        greenlet.kill()

    def in_pool(self, do: Callable[[], Any]) -> Any:
        """Call it in a native thread of the pool."""
        if self.name == "gevent":
            return self.module.get_hub().threadpool.apply(do)
        return importlib.import_module("eventlet.tpool").execute(do)

    def meanwhile(self, do: Callable[[], Any]) -> int:
        """How many steps another greenlet takes while this one does something."""
        steps, over = 0, False

        def step() -> None:
            nonlocal steps
            while not over:
                steps += 1
                self.sleep(0)

        stepper = self.spawn(step)
        self.sleep(0)
        before = steps
        do()
        taken = steps - before
        over = True
        self.result(stepper)
        return taken


def patch(name: str, how: str) -> Greenlets:
    if how == "before":
        importlib.import_module("dstore")
    if name == "gevent":
        monkey = importlib.import_module("gevent.monkey")
        if how == "socket":
            monkey.patch_socket()
        else:
            monkey.patch_all(thread=how != "nothread")
    else:
        warnings.simplefilter("ignore")  # that eventlet is deprecated
        importlib.import_module("eventlet").monkey_patch()
    return Greenlets(name)


# ---- the programs -----------------------------------------------------------------------------


def calls(green: Greenlets, address: str) -> None:
    """Each method that waits for Global, while other greenlets run."""
    import dstore

    path = f"/tmp/dstore-green-{os.getpid()}"
    with dstore.Node(address, timeout=PATIENCE) as node:
        done: dict[str, Any] = {}

        def note(name: str, do: Callable[[], Any]) -> None:
            def run() -> None:
                done[name] = do()

            assert green.meanwhile(run) > 0, f"{name} stopped all other greenlets"

        node.join()
        note("set", lambda: node.set("k", 1, replace=True))
        note("delete", lambda: node.delete("k"))
        note("missing", lambda: node.get("k", None))
        note("set_many", lambda: node.set_many({"a": 1, "b": LARGE}, replace=True))
        note("get_many", lambda: node.get_many(["a", "b", "k"]))
        note("put", lambda: node.put(LARGE + "!"))
        note("set_file", lambda: node.set_file("f", __file__, replace=True))
        note("get_file", lambda: node.get_file("f", path))
        note("put_file", lambda: node.put_file(path))
        note("keys", lambda: list(node.keys("a")))
        note("stats", node.global_stats)
        note("delete_many", lambda: node.delete_many(["a", "b", "f", "k"]))
        note("contains", lambda: "a" in node)
        assert done["missing"] is None
        assert done["get_many"] == {"a": 1, "b": LARGE}
        assert done["keys"] == ["a"]
        assert set(done["delete_many"]) == {"a", "b", "f"}
        assert done["contains"] is False
        os.remove(path)
        node.set("hit", 1, replace=True)
        assert node.get("hit") == 1
        assert green.meanwhile(lambda: node.get("hit")) == 0, "a hit let others run"
        assert green.meanwhile(node.close) > 0
    try:
        node.get("hit")
    except dstore.NodeClosed:
        return
    raise AssertionError("it is not closed")


def waits(green: Greenlets, address: str) -> None:
    """Many wait for a key that one of them sets; they are killed, time out, and are closed."""
    import dstore

    node = dstore.Node(address, timeout=PATIENCE)
    crowd = [green.spawn(node.wait, "w") for _ in range(CROWD)]
    green.sleep(0)
    node.set("w", LARGE)
    assert [green.result(each) for each in crowd] == [LARGE] * CROWD
    node.delete("w")

    victim = green.spawn(node.wait, "w")
    green.sleep(0)
    green.kill(victim)
    timed = green.spawn(node.wait, "w", 0.05)
    assert isinstance(green.result(timed), dstore.WaitTimedOut)

    watch = node.watch("w")
    assert watch.take() == dstore.Event(None)
    assert watch.take(0.05) is None
    taker = green.spawn(watch.take)
    green.sleep(0)
    node.set("w", 1)
    node.delete("w")
    assert green.result(taker) == dstore.Event("w")
    ended = green.spawn(list, watch)
    green.sleep(0)
    watch.close()
    assert green.result(ended) == []

    crowd = [green.spawn(node.wait, f"never-{number}") for number in range(CROWD)]
    green.sleep(0)
    node.close()
    assert {type(green.result(each)) for each in crowd} == {dstore.NodeClosed}


def threads(green: Greenlets, address: str) -> None:
    """Background threads are real, also for callbacks, and a thread of a pool blocks."""
    import dstore
    from dstore.runtime import native

    main = native.get_ident()
    heard: list[tuple[str, int]] = []
    told = native.ThreadEvent()

    def on_event(event: dstore.Event) -> None:
        heard.append(("watch", native.get_ident()))
        if event.key == "t":
            told.set()

    def on_deletion(key: str | bytes) -> None:
        heard.append(("on_deletion", native.get_ident()))

    with dstore.Node(address, timeout=PATIENCE, on_deletion=on_deletion) as node:
        with node.watch("t", callback=on_event):
            node.set("t", 1)
            assert node.get("t") == 1
            node.delete("t")
            assert told.wait(PATIENCE), "the greenlets of this thread stand still meanwhile"
        assert {name for name, _ in heard} == {"watch", "on_deletion"}
        assert main not in {number for _, number in heard}

        node.set("t", 2)
        other = dstore.Node(address, timeout=PATIENCE)
        assert green.in_pool(lambda: (other.get("t"), node.get("t"))) == (2, 2)
        assert green.meanwhile(lambda: green.in_pool(lambda: node.delete("t"))) > 0
        green.in_pool(other.close)


def late(green: Greenlets, address: str) -> None:
    """:func:`made` has been given a Node that is older than the patch."""
    node = made[0]
    waiting = green.spawn(node.wait, "late")
    green.sleep(0)
    assert green.meanwhile(lambda: node.set("late", 1, replace=True)) > 0
    assert green.result(waiting) == 1
    assert node.get("old") == "old"
    node.delete("late")
    node.close()


def forks(green: Greenlets, address: str) -> None:
    """A child has a Node of its own; calls that were under way are the parent's."""
    import dstore

    with dstore.Node(address, timeout=PATIENCE) as node:
        node.set("f", 1, replace=True)
        waiting = green.spawn(node.wait, "forked")
        watch = node.watch()
        watch.take()
        taking = green.spawn(watch.take)
        green.sleep(0.01)
        faulthandler.cancel_dump_traceback_later()
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE))
            if green.name == "eventlet":
                importlib.import_module("eventlet.hubs").use_hub()  # eventlet asks for that
            else:
                assert isinstance(green.result(waiting), dstore.NodeClosed)
                assert green.result(taking) is None
            assert node.get("f") == 1
            other = green.spawn(node.wait, "of the child")
            green.sleep(0)
            node.set("of the child", 2, replace=True)
            assert green.result(other) == 2
            node.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert node.get("of the child") == 2
        node.set("forked", 3, replace=True)
        assert green.result(waiting) == 3
        node.delete("forked")
        assert green.result(taking) == dstore.Event("forked")


def signals(green: Greenlets, address: str) -> None:
    """A handler may use a Node while a greenlet waits; Ctrl-C ends the wait of the main one."""
    import dstore

    with dstore.Node(address, timeout=PATIENCE) as node:
        seen: list[Any] = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(node.get("sig", "none")))
        waiting = green.spawn(node.wait, "sig")
        green.sleep(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not seen:
            green.sleep(0.001)
        node.set("sig", 1, replace=True)
        assert green.result(waiting) == 1
        assert seen == ["none"]

        def interrupt() -> None:
            os.kill(os.getpid(), signal.SIGINT)

        green.spawn(interrupt)
        try:
            node.wait("never")
        except KeyboardInterrupt:
            pass
        assert node.get("sig") == 1


def embeds(green: Greenlets, address: str) -> None:
    """A Global in a patched process serves in a thread of the system, large values too."""
    import dstore

    with dstore.Global("tcp://127.0.0.1:0", shm="") as embedded:
        with dstore.Node(embedded.address, shm="", timeout=PATIENCE) as one:
            one.set("large", LARGE)
            with dstore.Node(embedded.address, shm="", timeout=PATIENCE) as two:
                assert two.get("large") == LARGE
                assert one.delete("large").confirmed == 2
        assert green.meanwhile(embedded.close) > 0

    running = dstore.Global("tcp://127.0.0.1:0")
    running.bind()
    server = green.spawn(running.run)
    green.sleep(0)
    with dstore.Node(running.address, timeout=PATIENCE) as node:
        node.set("k", 1)
    running.stop()
    assert green.result(server) is None


def logs(green: Greenlets, address: str) -> None:
    """A greenlet that rests while it has the lock of a handler does not stop a thread of dstore."""
    import dstore

    lines: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "program":
                node.delete("log")  # not before the other thread has something to say
            lines.append(record.name)

    def fail(key: str | bytes) -> None:
        raise ValueError(key)

    logging.getLogger().addHandler(Slow())
    with dstore.Node(address, timeout=PATIENCE, on_deletion=fail) as node:
        for _ in range(3):
            node.set("log", 1)
            assert node.get("log") == 1
            logging.getLogger("program").warning("a line")
        while lines.count("dstore.local") < 3:
            green.sleep(0.001)
    assert lines.count("program") == 3


def asyncs(green: Greenlets, address: str) -> None:
    """An event loop in a patched process."""
    import asyncio

    import dstore

    async def run() -> None:
        async with dstore.AsyncNode(address, timeout=PATIENCE) as node:
            waiting = asyncio.ensure_future(node.wait("async"))
            await node.set("async", 1, replace=True)
            assert await waiting == 1
            await node.delete("async")

    asyncio.run(run())


def exits(green: Greenlets, address: str) -> None:
    """Nobody closes the Node: it says goodbye when Python exits."""
    import dstore

    node = dstore.Node(address, timeout=PATIENCE)
    node.set("exit", 1, replace=True)
    green.spawn(node.wait, "never")
    green.sleep(0)


made: list[Any] = []


def main(name: str, how: str, program: str, address: str) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    if program == "late":
        import dstore

        made.append(dstore.Node(address, timeout=PATIENCE))
        made[0].set("old", "old", replace=True)
    green = patch(name, how)
    globals()[program](green, address)
    print("fine", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
