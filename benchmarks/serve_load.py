"""`vlrep serve` under many clients at once: errors, latencies, throughput.

    pip install -e '.[serve,quickstart]' httpx
    python benchmarks/serve_load.py INDEX --clients=50 --seconds=20

Starts a server of the index and asks it from this machine, first by one client, then by many. A
client sends its next request when it has the answer to its last: texts (no two alike), pictures
of the index as examples, uploads of their files, and thumbnails, at 5 : 2 : 2 : 1. The clients are
one more process, which takes its share of the cores.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import httpx
import numpy as np
from emoji import EMOJI_DATA

KINDS = {"text": 5, "like": 2, "upload": 2, "thumbnail": 1}


class Load:
    """What clients ask, and how long each answer took."""

    def __init__(self, http, pictures, files, seed):
        self._http, self._pictures, self._files = http, pictures, files
        self._rng = random.Random(seed)
        self._words = sorted(
            data["en"].strip(":").replace("_", " ") for data in EMOJI_DATA.values()
        )
        self.seconds, self.errors = defaultdict(list), []

    async def client(self, end):
        while time.perf_counter() < end:
            (kind,) = self._rng.choices(list(KINDS), KINDS.values())
            started = time.perf_counter()
            try:
                answer = await self._ask(kind)
                if answer.status_code != 200:
                    self.errors.append(f"{kind}: {answer.status_code} {answer.text[:100]}")
            except httpx.HTTPError as error:
                self.errors.append(f"{kind}: {error!r}")
            self.seconds[kind].append(time.perf_counter() - started)

    def _ask(self, kind):
        if kind == "text":
            text = f"{self._rng.choice(self._words)} and {self._rng.choice(self._words)}"
            return self._http.get("/api/search", params={"text": text})
        if kind == "upload":
            files = {"image": ("picture", self._rng.choice(self._files))}
            return self._http.post("/api/search", files=files)
        picture = self._rng.choice(self._pictures)
        if kind == "like":
            return self._http.get("/api/search", params={"like": picture["id"]})
        return self._http.get(picture["thumbnail"])


async def measured(address, clients, seconds):
    """(latencies by kind, errors) of so many clients."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as http:
        pictures = (await http.get("/api/pictures", params={"limit": 100})).json()["results"]
        files = [(await http.get(picture["original"])).content for picture in pictures[:30]]
        load = Load(http, pictures, files, seed=clients)
        end = time.perf_counter() + seconds
        await asyncio.gather(*(load.client(end) for _ in range(clients)))
    return load.seconds, load.errors


def cpu_seconds(pid):
    """What a process has used of the processors; Linux tells."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def report(clients, seconds, latencies, errors, cpu_s):
    total = sum(map(len, latencies.values()))
    rate = f"{total:,} answers, {total / seconds:,.0f} a second, {len(errors)} errors; "
    rate += f"{total / cpu_s:,.0f} a CPU second of the server"
    print(f"{clients} {'client' if clients == 1 else 'clients'}: {rate}")
    print(f"  {'':10}{'answers':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'worst':>9}")
    for kind in KINDS:
        if latencies[kind]:
            ms = 1000 * np.array(latencies[kind])
            parts = [*np.percentile(ms, (50, 95, 99)), ms.max()]
            print(f"  {kind:10}{len(ms):8,}" + "".join(f"{part:9.1f}" for part in parts))
    for error in errors[:5]:
        print(f"  {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--batch", type=int, default=16, help="of vlrep serve")
    args = parser.parse_args()
    program = "from vlrep_jax import cli; cli.main()"
    server = subprocess.Popen(
        [sys.executable, "-c", program, "serve", args.index, "--port=0", f"--batch={args.batch}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = server.stdout.readline()
        print(line, end="")
        address = line.split(" at ")[1].split()[0]
        asyncio.run(measured(address, 4, 2))  # what is slow only at first
        failed = False
        for clients in (1, args.clients):
            before = cpu_seconds(server.pid)
            latencies, errors = asyncio.run(measured(address, clients, args.seconds))
            report(clients, args.seconds, latencies, errors, cpu_seconds(server.pid) - before)
            failed |= bool(errors)
    finally:
        server.terminate()
        server.wait(30)
    sys.exit(failed)


if __name__ == "__main__":
    main()
