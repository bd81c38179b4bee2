"""Kills `datagen instruct` with SIGKILL at random moments, against a local server with faults, and checks what is paid:

    python launch/bench/check_datagen.py --images 1000 --kills 20 [--batch] [--contexts=FILE] [--seed 0] [--folder=DIR]

The images are those of --contexts, filled up with synthetic scenes. A tenth of the replies is malformed, and of the
direct requests about 4 % fail with 429, 500, no answer at all or a cut connection. With --batch, the first batch of
each run expires and the second one fails. Checked, after an undisturbed run and a killed one:

- kept and rejected rows together are the images times the kinds, and the files of both runs are equal, byte for byte;
- no request is sent again whose reply is in the ledger; requests in flight when the process was killed are counted;
- everything that the server charged stays below --max-cost, also in a third run whose limit is half of what is needed;
- the API key is in no file.

Exit code 1 if anything fails.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from llava_jax.llm_client.cache import cache_key, read_replies  # noqa: E402
from tests.fixtures.fake_batch_server import FakeBatchServer  # noqa: E402
from tests.fixtures.fake_llm_server import USAGE, FakeServer  # noqa: E402
from tests.fixtures.fake_teacher import teach  # noqa: E402

KEY = "sk-check-datagen-0123456789abcdef"
MODEL, PRICES = "fake", (1.0, 100.0)  # US dollars per million input and output tokens
CONCURRENCY = 16
LONGEST = 0.015  # US dollars: 10,000 bytes of a prompt and 50 tokens
FILES = ("settings.json", "contexts.jsonl", "checks.jsonl", "instruct.json")
# Short waits, because the server is local; small batches, so that there are several.
PROGRAM = (
    "import sys; from llava_jax.__main__ import main; from llava_jax.llm_client import batch, client; "
    "client.FIRST_WAIT = batch.POLL = 0.05; batch.MAX_LINES = 400; sys.exit(main(sys.argv[1:]))"
)


def charge(usage: dict) -> float:
    """US dollars for the usage of a reply."""
    return (PRICES[0] * usage["prompt_tokens"] + PRICES[1] * usage["completion_tokens"]) / 1e6


class DirectServer(FakeServer):
    """The chat API with faults. charged: US dollars for every reply, also for those that the client never got."""

    def __init__(self, faulty: float):
        super().__init__(self.respond)
        self.faulty, self.tries, self.charged, self.sent = faulty, Counter(), 0.0, Counter()
        self.server.handle_error = lambda *_: None  # connections of killed processes

    def respond(self, call) -> None:
        body = call.body
        key = cache_key(body["model"], body["messages"], {n: body[n] for n in body if n not in ("model", "messages")})
        self.sent[key] += 1
        number = self.tries[key] = self.tries[key] + 1
        draw = int.from_bytes(hashlib.sha256(f"{key} {number}".encode()).digest()[:4]) / 2**32 / self.faulty
        if number < 4 and draw < 0.35:
            return call.fail(429, "slow down", Retry_After="0.02")
        if number < 4 and draw < 0.7:
            return call.fail(500, f"{call.key} oh")
        self.charged += charge(USAGE)  # from here on the work is done
        if number < 4 and draw < 0.95:
            return call.cut()
        if number < 4 and draw < 1:
            self.closing.wait(6)
        call.reply(*teach(body))

    @property
    def received(self) -> int:
        return len(self.calls)


class BatchServer(FakeBatchServer):
    """The Batch API, at half the price."""

    def __init__(self):
        super().__init__(teach, ["expired", "failed"])
        self.server.handle_error = lambda *_: None  # connections of killed processes

    @property
    def charged(self) -> float:
        return 0.5 * self.paid.total() * charge(USAGE)

    @property
    def sent(self) -> Counter:
        return self.paid

    @property
    def received(self) -> int:
        return self.requests


def write_contexts(path: Path, contexts: Path | None, images: int) -> None:
    from llava_jax.data.sources.scene_world import draw_scene
    from llava_jax.datagen.context_files import read_contexts
    from llava_jax.datagen.contexts import context_record
    from llava_jax.datagen.scene_contexts import scene_context

    given = read_contexts(contexts)[:images] if contexts else []
    scenes = [scene_context(draw_scene(0, i, False), 0, i, False) for i in range(images - len(given))]
    path.write_text("".join(json.dumps(context_record(c)) + "\n" for c in [*given, *scenes]), encoding="utf-8")


def start(contexts: Path, out: Path, url: str, args, max_cost: float) -> subprocess.Popen:
    limits = ["--input-price", str(PRICES[0]), "--output-price", str(PRICES[1]), "--max-cost", str(max_cost)]
    command = ["datagen", "instruct", str(contexts), str(out), "--model", MODEL, "--base-url", url, *limits]
    # Few tokens: every request in flight at a kill counts with its longest reply.
    command += [
        "--timeout",
        "5",
        "--concurrency",
        "16",
        "--max-tokens",
        "50",
        "--avoidance",
        "0.2",
        *(["--batch"] if args.batch else []),
    ]
    environment = {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    log = out.with_name(f"{out.name}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], env=os.environ | environment, stdout=log, stderr=log
    )


def killed_run(contexts: Path, out: Path, server, args, max_cost: float, seconds: float) -> tuple[int, int, int, int]:
    """Runs, kills and resumes until the run ends. Each kill comes after a random number of requests, or at a random
    moment of the `seconds` of a run, if that is earlier. Returns (exit code, kills of a running process, requests
    repeated although their reply was in the ledger, requests repeated in all)."""
    rng, repeated, kills = random.Random(args.seed), 0, 0
    for _ in range(args.kills):
        process = start(contexts, out, server.url, args, max_cost)
        target = server.received + rng.randint(1, 8 if args.batch else max(2, 6 * args.images // args.kills))
        latest = time.monotonic() + rng.uniform(0.2, 1) * seconds
        while process.poll() is None and server.received < target and time.monotonic() < latest:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        kills += process.poll() is None
        process.kill()
        process.wait()
        time.sleep(0.1)  # what was in flight arrives
        repeated += count_repeated(out, server)
    code = start(contexts, out, server.url, args, max_cost).wait()
    repeated += count_repeated(out, server, at_end=True)
    return code, kills, repeated, sum(count - 1 for count in server.sent.values() if count > 1)


ANSWERED: dict[str, int] = {}  # request -> how often it had been sent when its reply was first seen in the ledger


def count_repeated(out: Path, server, at_end: bool = False) -> int:
    """The number of requests that were sent again since their reply was in the ledger."""
    ledger = out / "ledger.jsonl"
    replies = read_replies(ledger)[0] if ledger.exists() else {}
    repeated = sum(server.sent[key] - count for key, count in ANSWERED.items())
    ANSWERED.clear()
    if not at_end:
        ANSWERED.update({key: server.sent[key] for key in replies})
    return repeated


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of each file; the server's port in settings.json is left out."""
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8")) | {"server": ""}
    files = {name: (out / name).read_bytes() for name in FILES} | {"settings.json": json.dumps(settings).encode()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--faulty", type=float, default=0.04)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--contexts", type=Path)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="check_datagen"))
    folder.mkdir(parents=True, exist_ok=True)
    contexts, faults = folder / "contexts.jsonl", []
    write_contexts(contexts, args.contexts, args.images)
    make_server = BatchServer if args.batch else lambda: DirectServer(args.faulty)

    def check(passed: bool, text: str) -> None:
        print(f"{'ok    ' if passed else 'FAILED'} {text}", flush=True)
        faults.extend([] if passed else [text])

    with make_server() as server:
        began = time.monotonic()
        code = start(contexts, folder / "undisturbed", server.url, args, 1e6).wait()
        seconds, needed = time.monotonic() - began, server.charged
        rows = [
            json.loads(line)
            for line in (folder / "undisturbed" / "checks.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        kept, reasons = sum(row["kept"] for row in rows), Counter(row["reason"] for row in rows if not row["kept"])
        check(code == 0, f"undisturbed run: exit code {code}, {seconds:.0f} s, {server.received:,} requests")
        text = f"{kept:,} kept + {len(rows) - kept:,} rejected = {args.images:,} images x 3 kinds"
        check(len(rows) == 3 * args.images and reasons.total() > 0, text)
        print("      ", ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common()))
        check("no reply" not in reasons, f"every request has a reply; the server charged ${needed:.4f}")
    with make_server() as server:
        # A kill may find every concurrent request in flight, and each then counts with its longest reply.
        cap = 2 * needed + args.kills * CONCURRENCY * LONGEST
        code, kills, repeated, in_flight = killed_run(contexts, folder / "killed", server, args, cap, seconds)
        check(code == 0, f"run with {kills} kills: exit code {code}")
        check(repeated == 0, f"{repeated} requests sent again although their reply was in the ledger")
        print(f"       {in_flight} requests sent again that had failed or were in flight, of {server.sent.total():,}")
        equal = contents(folder / "killed") == contents(folder / "undisturbed")
        check(equal, f"{', '.join(FILES)} are equal to those of the undisturbed run")
        check(server.charged <= cap, f"the server charged ${server.charged:.4f}, below --max-cost ${cap:.4f}")
    with make_server() as server:
        cap = needed / 2
        code, kills, repeated, _ = killed_run(contexts, folder / "limited", server, args, cap, seconds)
        check(code == 1, f"run with {kills} kills and half of the money: exit code {code}")
        check(repeated == 0, f"{repeated} requests sent again although their reply was in the ledger")
        check(server.charged <= cap, f"the server charged ${server.charged:.4f} of --max-cost ${cap:.4f}")
    secret = [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    check(not secret, f"the API key is in {len(secret)} of the files")
    print(f"{len(faults)} failed; the files are in {folder}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
