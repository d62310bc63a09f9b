# SPDX-License-Identifier: Apache-2.0
"""Serve an exported network with OpenVINO: single requests are gathered into batches that run side by side.

A sample waits at most ``--wait`` milliseconds for others, and a batch that is full leaves at once; when there is
little to do, batches are smaller. The clients here are threads that send one random sample after the other: put your
protocol in their place.

    python examples/openvino_server.py model.xml --batch-size 8 --clients 32
"""

import argparse
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from djpq_nncf import DjpqError, read_provenance
from djpq_nncf.benchmark import random_inputs

Array = NDArray[Any]
Job = tuple[Array, "Future[list[Array]]"]


class Server:
    """Answers single samples of a network with one input, from any number of threads.

    Args:
        path: OpenVINO IR, exported by djpq_nncf (its batch dimension is free).
        batch_size: most samples that run together.
        wait: seconds that a sample waits for others.
        requests: batches that run side by side; 0 lets OpenVINO choose.
    """

    def __init__(self, path: Path, *, batch_size: int, wait: float, requests: int = 0) -> None:
        # f32: float layers compute what verify_export compared, also where OpenVINO would take bf16
        options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        self._running = ov.AsyncInferQueue(ov.Core().compile_model(path, "CPU", options), requests)
        self._running.set_callback(_answer)
        self._batch_size, self._wait = batch_size, wait
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._gatherer = threading.Thread(target=self._gather)
        self.batches = 0

    def warm_up(self, sample: Array) -> None:
        """Let every request allocate what batches of each size need, before anybody waits for it."""
        for size in range(1, self._batch_size + 1):
            for _ in range(len(self._running)):
                self._running.start_async([np.stack([sample] * size)], [])
            self._running.wait_all()

    def submit(self, sample: Array) -> "Future[list[Array]]":
        """The outputs for one sample, all without the batch dimension. Check its shape before: batches share a fate."""
        answer: Future[list[Array]] = Future()
        self._waiting.put((sample, answer))
        return answer

    def __enter__(self) -> "Server":
        self._gatherer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._gatherer.join()
        self._running.wait_all()

    def _gather(self) -> None:
        """Form batches until ``None`` comes; start_async waits where all requests are busy."""
        while (job := self._waiting.get()) is not None:
            batch, deadline = [job], time.monotonic() + self._wait
            while len(batch) < self._batch_size:
                try:
                    job = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if job is None:
                    self._waiting.put(None)
                    break
                batch.append(job)
            samples, answers = zip(*batch, strict=True)
            self._running.start_async([np.stack(samples)], answers)
            self.batches += 1


def _answer(request: Any, answers: "tuple[Future[list[Array]], ...]") -> None:
    outputs = [np.array(tensor.data) for tensor in request.output_tensors]  # the request's memory is used again
    for position, answer in enumerate(answers):
        answer.set_result([output[position] for output in outputs])


def serve_clients(server: Server, samples: Array, *, clients: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each answer as its client saw it, and seconds of all; each client waits for one before the next."""

    def client(number: int) -> list[float]:
        taken = []
        for turn in range(number, requests, clients):
            start = time.perf_counter()
            server.submit(samples[turn % len(samples)]).result()
            taken.append(time.perf_counter() - start)
        return taken

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = [seconds for taken in pool.map(client, range(clients)) for seconds in taken]
    return latencies, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.xml")
    parser.add_argument("--batch-size", type=int, default=8, help="most samples that run together")
    parser.add_argument("--wait", type=float, default=2.0, help="milliseconds that a sample waits for others")
    parser.add_argument("--parallel", type=int, default=0, help="batches side by side; 0: as OpenVINO likes")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000, help="of all clients together")
    arguments = parser.parse_args()
    if min(arguments.batch_size, arguments.clients, arguments.requests) < 1:
        parser.error("--batch-size, --clients and --requests are at least 1")
    if arguments.model.suffix != ".xml":
        parser.error(f"{arguments.model} is no .xml file; export_model('model.xml') writes one")
    try:
        provenance = read_provenance(arguments.model)
        inputs = random_inputs(arguments.model, 64)
    except DjpqError as error:
        raise SystemExit(f"Error: {error}") from error
    if len(inputs) != 1:
        raise SystemExit(
            f"Error: {arguments.model} has {len(inputs)} inputs, and this example serves networks with one."
        )
    if provenance is not None:
        print(f"{arguments.model}, written by djpq_nncf {provenance.versions['djpq_nncf']}")

    (samples,) = inputs
    server = Server(
        arguments.model, batch_size=arguments.batch_size, wait=arguments.wait / 1000, requests=arguments.parallel
    )
    server.warm_up(samples[0])
    with server:
        latencies, seconds = serve_clients(server, samples, clients=arguments.clients, requests=arguments.requests)
    print(f"{len(latencies)} requests of {arguments.clients} clients in {server.batches} batches")
    print(f"throughput   {len(latencies) / seconds:,.1f} samples/s")
    for percent in (50, 90, 99):
        print(f"latency p{percent}  {1000 * np.percentile(latencies, percent):.2f} ms")


if __name__ == "__main__":
    main()
