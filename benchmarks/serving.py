"""Latency and requests a second of the service of docs/serve.md.

    python -m pinjax.train --config=configs/pinnerformer.py --workdir=work/pinnerformer
    python -m pinjax.export --workdir=work/pinnerformer --out=exports/pinnerformer
    python -m benchmarks.serving --workdir=work/pinnerformer --export=exports/pinnerformer

First the user tower in this process: as exported, and as `pinjax.open` runs it, through jit with a
batch that is padded to `evaluate.batch`. Then the service, in a process of its own on the cores of
its clients, who each send one request after the other: as it is, where each request is computed
alone, and with the users of requests that arrive meanwhile embedded together. Requests have full
histories, of random items. Processor time is that of the service alone, not of its clients.
"""

import concurrent.futures
import http.client
import json
import multiprocessing
import os
import pathlib
import queue
import threading
import time

import numpy as np
import uvicorn
from absl import app, flags

from pinjax.serving import exported as exported_lib
from pinjax.serving import run as run_lib
from pinjax.serving import service

_WORKDIR = flags.DEFINE_string("workdir", None, "of a run of PinnerFormer", required=True)
_EXPORT = flags.DEFINE_string("export", None, "the export of it", required=True)
_SECONDS = flags.DEFINE_float("seconds", 10, "of each measurement")

CLIENTS = (1, 4, 16)
MOST = 16  # requests that are computed together


class Together:
    """An exported run that embeds the users of several threads at once."""

    def __init__(self, exported):
        self._exported, self._waiting = exported, queue.SimpleQueue()
        for power in range(MOST.bit_length()):  # each number of rows is compiled
            exported.embed_users([[]] * 2**power)
        threading.Thread(target=self._work, daemon=True).start()

    def __getattr__(self, name):
        return getattr(self._exported, name)

    def __contains__(self, item):
        return item in self._exported

    def embed_users(self, histories, as_of=None):
        del as_of
        done = concurrent.futures.Future()
        self._waiting.put((histories[0], done))
        return done.result()[None]

    def _work(self):
        while True:
            some = [self._waiting.get()]
            while len(some) < MOST and not self._waiting.empty():
                some.append(self._waiting.get())
            vectors = self._exported.embed_users([history for history, _ in some])
            for (_, done), vector in zip(some, vectors, strict=True):
                done.set_result(vector)


def serve(directory, together, port):
    """Runs the service in this process, and tells the port."""
    if together:
        load = exported_lib.load
        exported_lib.load = lambda directory: Together(load(directory))
    server = uvicorn.Server(uvicorn.Config(service.create(directory), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port.put(server.servers[0].sockets[0].getsockname()[1])
    thread.join()


def client(port, bodies, until):
    """Sends requests until a time; returns the seconds of each."""
    connection, seconds = http.client.HTTPConnection("127.0.0.1", port), []
    while time.perf_counter() < until:
        body = bodies[len(seconds) % len(bodies)]
        started = time.perf_counter()
        connection.request("POST", "/recommend", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        items = json.loads(answer.read())["items"]
        assert len(items) == 10
        seconds.append(time.perf_counter() - started)
    return seconds


def processor_seconds(process):
    """The processor time of another process, in seconds."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def clients(number, process, port, bodies, seconds):
    """The seconds of each request of several clients, requests a second, processor time of one."""
    until, before = time.perf_counter() + seconds, processor_seconds(process)
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        parts = [pool.submit(client, port, bodies[n:], until) for n in range(number)]
        taken = [second for part in parts for second in part.result()]
    return taken, len(taken) / seconds, (processor_seconds(process) - before) / len(taken)


def line(name, taken, rate, processor):
    p50, p99 = 1000 * np.percentile(taken, [50, 99])
    print(f"{name:<36}{p50:>9.2f}{p99:>9.2f}{rate:>9.1f}{1000 * processor:>15.2f}", flush=True)


def alone(embed, histories, seconds):
    """As `clients`, of calls one after the other in this process; the first few not counted."""
    for history in histories[:3]:
        embed(history)
    taken, until, before = [], time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until:
        started = time.perf_counter()
        embed(histories[len(taken) % len(histories)])
        taken.append(time.perf_counter() - started)
    return taken, len(taken) / sum(taken), (time.process_time() - before) / len(taken)


def histories_of(exported, number, actions):
    rng, now = np.random.default_rng(0), int(time.time())
    names = exported.manifest["inputs"]["users"]
    return [
        [
            {
                "item": item,
                "time": now - 3600 * (actions - n),
                "action": str(rng.choice(names["actions"])),
                "surface": str(rng.choice(names["surfaces"])),
                "duration": float(rng.integers(60)),
            }
            for n, item in enumerate(rng.choice(exported.item_ids, actions).tolist())
        ]
        for _ in range(number)
    ]


def padded(run, exported, length):
    """(history) -> its embedding, through jit, padded to `evaluate.batch`."""
    rows, spec = {item: n for n, item in enumerate(exported.item_ids)}, run.dataset.spec
    embed = run.system.serve(run.params, run.as_of).users

    def of_history(history):
        batch = {
            "item": np.array([rows[x["item"]] for x in history], np.int32),
            "time": np.array([x["time"] for x in history], np.uint32),
            "duration": np.array([x["duration"] for x in history], np.float32),
            "action": np.array([spec.actions.index(x["action"]) for x in history], np.uint8),
            "surface": np.array([spec.surfaces.index(x["surface"]) for x in history], np.uint16),
            "request_time": np.full(length, int(time.time()), np.uint32),
        }
        return embed([{name: x[None] for name, x in batch.items()}])[0]

    return of_history


def main(_):
    exported = exported_lib.load(_EXPORT.value)
    length = exported.manifest["inputs"]["users"]["length"]
    histories = histories_of(exported, 256, length)
    run = run_lib.open_run(_WORKDIR.value)
    by_jit = padded(run, exported, length)
    now = int(time.time())
    expected = by_jit(histories[0])
    found = exported.embed_users([histories[0]], now)[0]
    print(f"largest difference between the two towers: {np.abs(found - expected).max():.1e}")
    print(f"{len(exported.item_ids):,} items, histories of {length} actions\n")
    print(f"{'':<36}{'p50, ms':>9}{'p99, ms':>9}{'a second':>9}{'processor, ms':>15}")
    seconds = _SECONDS.value
    line("tower as exported", *alone(lambda x: exported.embed_users([x]), histories, seconds))
    line(f"tower by jit, padded to {run.config.evaluate.batch}", *alone(by_jit, histories, seconds))
    bodies = [json.dumps({"history": history}).encode() for history in histories]
    context = multiprocessing.get_context("spawn")
    for together in (False, True):
        port = context.SimpleQueue()
        process = context.Process(target=serve, args=(_EXPORT.value, together, port), daemon=True)
        process.start()
        found = port.get()
        clients(max(CLIENTS), process, found, bodies, 5)  # which warms it up
        for number in CLIENTS:
            kind = "together" if together else "one by one"
            name = f"service, {kind}, {number} client{'s' * (number > 1)}"
            line(name, *clients(number, process, found, bodies, seconds))
        process.terminate()
        process.join()


if __name__ == "__main__":
    app.run(main)
