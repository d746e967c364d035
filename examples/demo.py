"""The spine in one run: a PDF is uploaded over HTTP, and a question about it is answered over HTTP and over NATS.

`make demo`. Starts a platform of its own in a folder of its own under the checkout, and ends it. Exit code 0 when the
document was quoted and answered from, 1 when not. `--seed N` repeats a document; `--answer-optional` checks the quotes
alone, for a model that may phrase the number as it likes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgpack  # type: ignore[import-untyped]
import nats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.platform import Platform
from cli.tokens import sign
from examples import pdf
from stack import StackError
from subjects.contract import Fault

TENANT = "demo"
TIMEOUT_S = 120.0
POLL_S = 20
ANY_FREE_PORT = 0
PORTS = dict.fromkeys(("nats", "postgres", "valkey", "models"), ANY_FREE_PORT)

PLACES = ("Brackwater", "Hollenmoor", "Vesterholm", "Carnavor", "Oldenfeld", "Tresmere", "Quillon", "Aldermouth")
PEOPLE = ("Marta Olsen", "Ivo Brandt", "Selma Reyes", "Tobias Kern", "Noor Haddad", "Petra Lindqvist", "Jonas Vale")
PROSE = """\
The harbour of {place} lies where the river meets a shallow bay. For two centuries its people lived on herring, salt
and the repair of wooden boats. When the railway came, most of the trade moved inland, and the quays grew quiet.

The old lighthouse stands on the northern mole. It was built of granite that came by sea, and its lamp was first lit on
a stormy evening in autumn. {fact} The house beside it is a museum today, open on Sundays and holidays. Visitors are
asked not to lean over the rail.

The town itself is small. It has a market on Thursdays, a school, two bakeries and a library in the former customs
house. The library keeps the logbooks of the pilots, which go back to the first steamships. Students come to read them,
and some stay for the whole summer.

In winter the bay freezes along its edges. Children skate near the shore, and the ferry runs only twice a day. The mayor
has promised a new breakwater, but the money is not there yet."""


@dataclass(frozen=True)
class Story:
    """The sentence that only this document holds, and the question that asks for its number."""

    fact: str
    question: str
    number: str
    lines: list[str]


def story(seed: int) -> Story:
    """A page of prose with a random place, keeper and number in it."""
    chance = random.Random(seed)
    place, keeper = chance.choice(PLACES), chance.choice(PEOPLE)
    number = str(chance.randint(112, 986))
    fact = f"The lighthouse of {place} has {number} steps, and its keeper is {keeper}."
    paragraphs = PROSE.format(place=place, fact=fact).split("\n\n")
    lines = [line for text in paragraphs for line in [*textwrap.wrap(text.replace("\n", " "), 84), ""]]
    return Story(fact, f"How many steps does the lighthouse of {place} have?", number, lines)


async def over_http(http: httpx.AsyncClient, question: str) -> dict[str, Any]:
    reply = await http.post("/api/v1/rag/query", json={"question": question})
    reply.raise_for_status()
    answer: dict[str, Any] = reply.json()
    return answer


async def over_nats(url: str, question: str) -> dict[str, Any]:
    broker = await nats.connect(url)
    try:
        reply = await broker.request(
            f"req.{TENANT}.rag.query", msgpack.packb({"question": question}), timeout=TIMEOUT_S
        )
    finally:
        await broker.close()
    if reply.headers and "Nats-Service-Error-Code" in reply.headers:
        raise RuntimeError(f"rag.query failed: {reply.headers}")
    answer: dict[str, Any] = msgpack.unpackb(reply.data)
    return answer


async def upload(http: httpx.AsyncClient, path: Path) -> None:
    """Upload and wait until the file's text is indexed: the upload's job, then the one it started."""
    with path.open("rb") as file:
        reply = await http.post("/api/v1/ingestion/upload", files={"file": (path.name, file, "application/pdf")})
    reply.raise_for_status()
    uploaded = reply.json()
    print(f"uploaded {path.name}: file {uploaded['file_id']}, job {uploaded['job_id']}")
    job = await _ended(http, uploaded["job_id"])
    print(f"job {job['status']}: {job.get('result') or job.get('fault')}")
    if job["status"] != "succeeded":
        raise RuntimeError("the job did not succeed")


async def _ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        reply = await http.post("/api/v1/jobs/wait", json={"job_id": job_id, "wait_s": POLL_S})
        reply.raise_for_status()
        job: dict[str, Any] = reply.json()
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
    raise TimeoutError(f"job {job_id} has not ended after {TIMEOUT_S:g} s")


def check(told: Story, answer: dict[str, Any], way: str, *, number_matters: bool) -> bool:
    """Print the answer with its citation; whether it quotes the sentence and names the number."""
    quotes = [" ".join(citation["quote"].split()) for citation in answer["citations"]]
    quoted = [quote for quote in quotes if told.fact in quote]
    named = told.number in answer["answer"]
    print(f"\n{way}\n  answer    {answer['answer'].strip()}")
    for quote in quoted[:1] or quotes[:1]:
        print(f"  citation  “{quote}”")
    if not quoted:
        print(f"  no citation quotes: {told.fact}")
    if not named:
        print(f"  the answer does not name {told.number}")
    return bool(quoted) and (named or not number_matters)


async def run(seed: int, home: Path, *, number_matters: bool) -> bool:
    told = story(seed)
    print(f"seed {seed}: a page of prose that holds the sentence “{told.fact}”")
    path = home / "lighthouse.pdf"
    pdf.write(path, told.lines)
    platform = Platform(home, port=ANY_FREE_PORT, ports=PORTS, report=lambda line: print(f"  {line}"))
    try:
        async with platform:
            headers = {"Authorization": f"Bearer {sign(platform.settings(), TENANT)}"}
            async with httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=TIMEOUT_S) as http:
                await upload(http, path)
                print(f"\nquestion    {told.question}")
                answers = {
                    "HTTP, JSON": await over_http(http, told.question),
                    "NATS, msgpack": await over_nats(platform.stack.nats_url, told.question),
                }
            good = [check(told, answer, way, number_matters=number_matters) for way, answer in answers.items()]
            print("\nstopping")
    finally:
        platform.stack.abandon()
    return all(good)


async def main() -> int:
    options = argparse.ArgumentParser(description="One document in, one question answered.")
    options.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    options.add_argument("--answer-optional", action="store_true")
    options.add_argument("--keep", action="store_true", help="Leave the folder, to look at its logs.")
    given = options.parse_args()
    home = _fresh_home()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    good = False
    try:
        good = await run(given.seed, home, number_matters=not given.answer_optional)
    except asyncio.CancelledError:
        print("interrupted")
    except (httpx.HTTPError, StackError, Fault, RuntimeError, TimeoutError) as error:
        print(f"failed: {error}; see {home / 'logs'}")
    finally:
        if not given.keep:
            if not good:
                _show_logs(home)
            shutil.rmtree(home, ignore_errors=True)
    print("demo passed" if good else "demo failed")
    return 0 if good else 1


def _fresh_home() -> Path:
    base = Path(__file__).resolve().parent.parent / ".faas"
    base.mkdir(mode=0o700, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="demo-", dir=base))


def _show_logs(home: Path) -> None:
    """The last lines of each log: the folder is about to be deleted."""
    for log in sorted((home / "logs").glob("*.log")):
        print(f"--- {log.name}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-8:]))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
