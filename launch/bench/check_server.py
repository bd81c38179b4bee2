"""Checks a server as a program: many clients, clients that leave, hostile bodies, a soak at half load.

    python launch/bench/check_server.py [MODEL] [--clients 200] [--disconnects 100] [--minutes 30] [--seed 0]

Starts `serve` on a free port with a queue of 32; without MODEL, of a LLaVA with random weights. Every client must get
200, or 429 with Retry-After. After every disconnect the slot must be free, without a new thread or open file. Hostile
images and bodies must be refused, soon and without much memory. The soak asks at half of the rate that the clients
reached: memory may grow by 3 %, the 99th percentile of the latency by 10 %. Prints one line for each check; exit code 1
where one fails.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUEUE, SLOTS = 32, 8
IMAGE_SECONDS, IMAGE_MEMORY = 0.3, 150  # of each hostile image; MB of all
BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
)


def make_model(folder: Path) -> None:
    """Writes a LLaVA with random weights."""
    sys.path.insert(0, str(ROOT))
    from llava_jax.checkpoint.huggingface.export import save_hf
    from llava_jax.checkpoint.tokenizer import open_tokenizer
    from tests.fixtures.tiny_models import random_params, uneven

    config = uneven(llm=dict(vocab_size=512, max_positions=256))
    save_hf(folder, random_params(config, std=0.2), config, open_tokenizer("tiny"), "float32")


class Program:
    """The server in a process of its own."""

    def __init__(self, model: str, folder: Path):
        flags = ["--port=0", f"--queue={QUEUE}", f"--slots={SLOTS}", "--length=256", "--prefix-mib=8"]
        flags += ["--dtype=float32"]
        command = [sys.executable, "-m", "llava_jax", "serve", model, *flags]
        environment = {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": str(ROOT)}
        self.log = open(folder / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, encoding="utf-8", env=environment
        )
        line = self.process.stdout.readline()
        if not line.startswith("serving "):
            raise SystemExit(f"the server did not start: {Path(self.log.name).read_text(encoding='utf-8')}")
        self.port = int(line.split("http://127.0.0.1:")[1].split()[0])

    def memory(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    def handles(self) -> tuple[int, int]:
        """(threads, open files)"""
        folder = Path(f"/proc/{self.process.pid}")
        return len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir()))

    async def send(self, data: bytes) -> tuple[int, bytes]:
        """(status, the whole response)"""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            answer = await reader.read()
        except ConnectionError:
            answer = b""
        finally:
            writer.close()
        return int(answer[9:12] or 0), answer

    async def ask(self, tokens: int = 32, **fields) -> tuple[int, bytes, float]:
        """(status, the whole response, seconds) of a question."""
        start = time.monotonic()
        status, answer = await self.send(request(tokens, **fields))
        return status, answer, time.monotonic() - start

    async def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        _, answer = await self.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return float(next(line.split()[1] for line in answer.decode().splitlines() if line.startswith(f"{name} ")))


def request(tokens: int, **fields) -> bytes:
    """A question that is answered with `tokens` tokens, mostly."""
    text = f"what is it ? {random.random()}"
    message = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 1.5, **fields}
    body = json.dumps(message).encode()
    return BODY + b"Content-Length: %d\r\n\r\n" % len(body) + body


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def check_clients(program: Program, count: int) -> tuple[bool, float]:
    """All clients at once. Returns (whether each got an answer or a time to try again, answers per second)."""
    start = time.monotonic()
    results = await asyncio.gather(*(program.ask() for _ in range(count)))
    rate = sum(status == 200 for status, _, _ in results) / (time.monotonic() - start)
    accepted = [seconds for status, _, seconds in results if status == 200]
    refused = [answer for status, answer, _ in results if status == 429]
    others = [status for status, _, _ in results if status not in (200, 429)]
    is_fine = not others and all(b"retry-after: " in answer.lower() for answer in refused)
    print(
        f"{count} clients: {len(accepted)} answered, {len(refused)} refused with 429, other statuses {others}; seconds "
        f"of the answered: median {statistics.median(accepted):.2f}, 99 % {percentile(accepted, 0.99):.2f}; "
        f"{rate:.1f} a second"
    )
    return is_fine, rate


async def check_disconnects(program: Program, count: int) -> bool:
    """Clients that leave after the first event of a stream."""
    before, waits, tokens = program.handles(), [], []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
        writer.write(request(180, stream=True))
        await reader.readuntil(b"data: ")
        writer.close()
        start, first = time.monotonic(), await program.metric("vllm:generation_tokens_total")
        while await program.metric("vllm:num_requests_running"):
            await asyncio.sleep(0.001)
        waits.append(time.monotonic() - start)
        tokens.append(await program.metric("vllm:generation_tokens_total") - first)
    await asyncio.sleep(1)
    after = program.handles()
    print(
        f"{count} disconnects: slot free after at most {max(waits):.3f} s, at most {max(tokens):.0f} tokens between "
        f"the first look and the free slot; threads and files {before} before, {after} after"
    )
    return after <= before or (after[0] <= before[0] + 1 and after[1] <= before[1] + 2)


async def check_images(program: Program) -> bool:
    """Images that are damaged, too large, of other formats, or not in the request."""
    sys.path.insert(0, str(ROOT))
    from tests.serve.bad_images import bad_images

    async def ignore(_, writer) -> None:
        connections.append(1)
        writer.close()

    connections, seconds, statuses = [], {}, []
    listener = await asyncio.start_server(ignore, "127.0.0.1", 0)
    memory = peak = program.memory()
    for name, url in bad_images(listener.sockets[0].getsockname()[1]).items():
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it ?"}]
        data = request(2, messages=[{"role": "user", "content": content}])
        start = time.monotonic()
        status, _ = await program.send(data)
        seconds[name] = time.monotonic() - start
        statuses.append(status)
        peak = max(peak, program.memory())
    listener.close()
    slowest = max(seconds, key=seconds.get)
    print(
        f"{len(seconds)} hostile images: statuses {sorted(set(statuses))}, {len(connections)} connections to their "
        f"hosts; the slowest ({slowest}) took {seconds[slowest]:.3f} s; memory {memory:.0f} MB before, {peak:.0f} MB "
        "at most after one"
    )
    is_refused = all(400 <= status < 500 for status in statuses) and not connections
    return is_refused and seconds[slowest] < IMAGE_SECONDS and peak - memory < IMAGE_MEMORY


async def check_bodies(program: Program) -> bool:
    """Large, deep, wide and slow bodies."""
    memory, statuses = program.memory(), []
    chunk = b"100000\r\n" + b"[" * (1 << 20) + b"\r\n"
    bodies = {
        "100 MB": BODY + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 100 + b"0\r\n\r\n",
        "Content-Length of 100 MB": BODY + b"Content-Length: 104857600\r\n\r\n{}",
        "10,000 headers": BODY + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
    }
    for name, body in {
        "10,000 levels": b"[" * 10_000,
        "1,000,000 messages": b'{"messages":[' + b"{}," * 1_000_000 + b"{}]}",
        "1,000,000 stops": json.dumps({"messages": [], "stop": ["a"] * 1_000_000}).encode(),
        "30 MB of text": json.dumps({"messages": [{"role": "user", "content": "a" * 30_000_000}]}).encode(),
    }.items():
        bodies[name] = BODY + b"Content-Length: %d\r\n\r\n" % len(body) + body
    peak = memory
    for name, data in bodies.items():
        start = time.monotonic()
        status, _ = await program.send(data)
        peak = max(peak, program.memory())
        statuses.append(status)
        print(f"  {name}: {status or 'closed'} in {time.monotonic() - start:.2f} s")
    print(f"hostile bodies: memory {memory:.0f} MB before, {peak:.0f} MB at most after one")
    status, _, _ = await program.ask()
    return status == 200 and all(400 <= value < 500 or value == 0 for value in statuses) and peak - memory < 200


async def soak(program: Program, minutes: float, rate: float) -> bool:
    """Questions at random times, a tenth of them from clients that leave."""
    end, latencies, tasks, memory = time.monotonic() + 60 * minutes, [], set(), []
    start, statuses = time.monotonic(), []

    async def visit() -> None:
        status, _, seconds = await program.ask(random.randint(4, 60))
        statuses.append(status)
        latencies.append((time.monotonic() - start, seconds))

    while time.monotonic() < end:
        task = asyncio.create_task(visit())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if random.random() < 0.1:
            asyncio.get_running_loop().call_later(0.05, task.cancel)
        memory.append(program.memory())
        await asyncio.sleep(random.expovariate(rate))
    await asyncio.gather(*tasks, return_exceptions=True)
    fifth = 12 * minutes
    early = [seconds for at, seconds in latencies if fifth <= at < 2 * fifth]  # the first fifth warms up
    late = [seconds for at, seconds in latencies if at >= 4 * fifth]
    warm = statistics.median(memory[len(memory) // 5 : len(memory) * 2 // 5])
    last = statistics.median(memory[-len(memory) // 5 :])
    drift = percentile(late, 0.99) / percentile(early, 0.99) - 1
    print(
        f"soak of {minutes:g} minutes at {rate:.1f} a second: {len(statuses)} ended, statuses {sorted(set(statuses))}; "
        f"memory {warm:.0f} -> {last:.0f} MB ({last / warm - 1:+.1%}); 99 % of latencies {percentile(early, 0.99):.3f} "
        f"-> {percentile(late, 0.99):.3f} s ({drift:+.1%})"
    )
    return set(statuses) == {200} and last < 1.03 * warm and drift < 0.1


async def check(program: Program, args: argparse.Namespace) -> bool:
    await asyncio.gather(*(program.ask() for _ in range(8)))
    is_fine, rate = await check_clients(program, args.clients)
    results = [is_fine, await check_images(program), await check_bodies(program)]
    results.append(await check_disconnects(program, args.disconnects))
    if args.minutes:
        results.append(await soak(program, args.minutes, rate / 2))
    running = [asyncio.create_task(program.ask(200)) for _ in range(SLOTS)]
    await asyncio.sleep(0.2)
    program.process.send_signal(signal.SIGTERM)
    statuses = [status for status, _, _ in await asyncio.gather(*running)]
    code = program.process.wait(60)
    print(f"SIGTERM: running requests ended with {statuses}, exit code {code}")
    return all([*results, statuses == [200] * SLOTS, code == 143])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--disconnects", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.model is None:
            make_model(folder / "random")
        program = Program(args.model or str(folder / "random"), folder)
        try:
            return 0 if asyncio.run(check(program, args)) else 1
        finally:
            program.process.kill()
            log = Path(program.log.name).read_text(encoding="utf-8")
            print(f"log of the server: {len(log.splitlines())} lines, {log.count('Traceback')} tracebacks")


if __name__ == "__main__":
    sys.exit(main())
