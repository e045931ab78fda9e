"""A pool of workers predicts with one shared model, and never with one that has been replaced.

The model is a classifier in plain NumPy: random cosine features and a ridge regression on them. It
is stored under one key for each of its arrays, which all workers of a machine read from the same
memory, and a key that names the current version. Better versions, trained on more data, are
released while the workers are busy: first the arrays, then the name, for all workers at once.
Once ``set(..., replace=True)`` of the name has returned, no prediction that begins afterwards uses
an older version: the times noted here prove it. The arrays of the older version can then be deleted
at once. (A worker that had read the old name just before finds them missing, and reads the name
again.)

    python examples/shared_model.py [--address tcp://HOST:PORT] [--workers 4]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import dstore

for library in ("OMP", "OPENBLAS", "MKL"):  # the processes already share the cores
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

try:
    import numpy as np
except ImportError:
    raise SystemExit("this example needs NumPy: pip install 'dstore[numpy]'") from None

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]
    Model = dict[str, Array]

INPUTS, FEATURES, CLASSES = 20, 600, 5
TRAINED_ON = [100, 1000, 5000]
"""The number of samples that version 0, 1, 2 is trained on."""
BATCH = 50
PARTS = ("frequencies", "phases", "weights")


# The model ----------------------------------------------------------------------------------


def samples(count: int, seed: int) -> tuple[Array, Array]:
    """Return inputs, and the class of each: the random wave that is highest there."""
    inputs = np.random.default_rng(seed).standard_normal((count, INPUTS))
    waves = np.random.default_rng(1).standard_normal((INPUTS, CLASSES)) / INPUTS**0.5
    return inputs, np.sin(inputs @ waves).argmax(axis=1)


def features(model: Model, inputs: Array) -> Array:
    result: Array = np.cos(inputs @ model["frequencies"] + model["phases"])
    return result


def train(count: int) -> Model:
    """Fit the weights to ``count`` samples: a ridge regression, solved exactly."""
    random = np.random.default_rng(2)
    model: Model = {
        "frequencies": random.standard_normal((INPUTS, FEATURES)) / INPUTS**0.5,
        "phases": random.uniform(0, 2 * np.pi, FEATURES),
    }
    inputs, classes = samples(count, seed=3)
    known = features(model, inputs)
    wanted = np.eye(CLASSES)[classes]
    model["weights"] = np.linalg.solve(known.T @ known + np.eye(FEATURES), known.T @ wanted)
    return model


def predict(model: Model, inputs: Array) -> Array:
    """Return a score for each class; the highest one is the prediction."""
    scores: Array = features(model, inputs) @ model["weights"]
    return scores


def accuracy(model: Model) -> float:
    inputs, classes = samples(2000, seed=4)
    return float((predict(model, inputs).argmax(axis=1) == classes).mean())


# Sharing it ---------------------------------------------------------------------------------


def release(node: dstore.Node, run: str, version: int, model: Model) -> None:
    """Make the workers use this version. After the return they use no other one."""
    node.set_many({f"{run}/{version}/{part}": array for part, array in model.items()})
    node.set(f"{run}/current", version, replace=True)


def current(node: dstore.Node, run: str) -> tuple[int, Model] | None:
    """Return the current version and its model, or None after the last one was deleted."""
    while (version := node.get(f"{run}/current", None)) is not None:
        keys = {f"{run}/{version}/{part}": part for part in PARTS}
        arrays = node.get_many(keys)
        if len(arrays) == len(PARTS):
            return version, {keys[key]: array for key, array in arrays.items()}
    return None


def work(address: str, run: str, number: int, pipe: Connection) -> None:
    """Predict until there is no model any more. Report when each version was last chosen."""
    inputs, _ = samples(BATCH, seed=100 + number)
    last_chosen: dict[int, int] = {}
    scores: dict[int, Array] = {}
    count = 0
    with dstore.Node(address, label="predictor") as node:
        while True:
            start = time.monotonic_ns()  # one clock for all processes of a machine
            found = current(node, run)
            if found is None:
                break
            version, model = found
            result = predict(model, inputs)
            last_chosen[version] = start
            count += 1
            if version not in scores:
                scores[version] = result
                pipe.send(version)
    print(f"worker {number}: {count * BATCH:,} predictions\n", end="", flush=True)  # one write
    pipe.send((last_chosen, scores))


def improve_while_they_work(
    node: dstore.Node, run: str, models: list[Model], pipes: list[Connection]
) -> list[int]:
    """Release the next version when all workers use the last. Return when each was replaced."""
    replaced = []
    for version, count in enumerate(TRAINED_ON):
        if version > 0:
            models.append(train(count))
            release(node, run, version, models[version])
            replaced.append(time.monotonic_ns())
            node.delete_many([f"{run}/{version - 1}/{part}" for part in PARTS])
        for pipe in pipes:
            assert pipe.recv() == version
        print(f"all workers use version {version}: {accuracy(models[-1]):.0%} right", flush=True)
    node.delete(f"{run}/current")
    return [*replaced, time.monotonic_ns()]


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    parser = argparse.ArgumentParser(description="share a model that gets better")
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    run, context = f"shared-model/{uuid.uuid4().hex}", multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    with some_global(args.address) as address, dstore.Node(address, label="trainer") as node:
        models = [train(TRAINED_ON[0])]
        release(node, run, 0, models[0])
        for number in range(args.workers):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(address, run, number, theirs), daemon=True).start()
            theirs.close()  # so that a worker that dies ends its pipe
            pipes.append(ours)
        replaced = improve_while_they_work(node, run, models, pipes)
        reports = [pipe.recv() for pipe in pipes]
        for process in multiprocessing.active_children():
            process.join()
        node.delete_many(list(node.keys(f"{run}/")))

    for number, (last_chosen, scores) in enumerate(reports):
        inputs, _ = samples(BATCH, seed=100 + number)
        for version, model in enumerate(models):
            if not np.allclose(scores[version], predict(model, inputs)):
                raise SystemExit(f"worker {number} has made other predictions")
            if last_chosen[version] > replaced[version]:
                raise SystemExit(f"version {version} was used after it had been replaced")
    print(f"{len(models)} versions, and none was used for a prediction after it was replaced")


if __name__ == "__main__":
    main()
