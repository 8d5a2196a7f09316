"""Typed messages and a descriptor over a channel: workers without calls, and without pickle.

Prints:

    worker got Job(id=1, path='first')
    worker got Job(id=2, path='second')
    worker refused: message is not of the expected type: Object missing required field `path`
    results: ['first has 5 bytes', 'second has 6 bytes']
"""

from __future__ import annotations

import threading

import msgspec

import hostline


class Job(msgspec.Struct):
    id: int
    path: str


def work() -> None:
    with hostline.connect_channel("./jobs.sock", max_fds=1) as channel:
        while True:
            try:
                job, files = channel.recv_fds(Job, timeout=5.0)
            except hostline.InvalidMessageError as error:  # this message only; the next is intact
                print("worker refused:", str(error).partition(" - at")[0])
                continue
            except hostline.EndOfStream:
                return
            print("worker got", job)
            with files[0].open() as file:
                channel.send(f"{job.path} has {len(file.read())} bytes")


with hostline.listen_channel("./jobs.sock", max_fds=1) as listener:
    worker = threading.Thread(target=work)
    worker.start()
    with listener.accept(timeout=5.0) as channel:
        for number, name in enumerate(("first", "second"), start=1):
            with open(name, "w+", encoding="ascii") as file:
                file.write(name)
                file.seek(0)
                channel.send(Job(number, name), fds=[file], timeout=5.0)
        channel.send({"id": 3})
        channel.shutdown()
        results = list(channel.messages(str, timeout=5.0))
    worker.join()
    print("results:", results)
