"""rag on real servers with the local models: documents in and out, found, and answered from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from runtime.client import Client
from runtime.connection import connect
from runtime.identity import Identity
from runtime.settings import Settings
from stack import Stack, local
from store.database import Database
from subjects import gateway, jobs, rag
from subjects.contract import Code, Fault
from workers.cache.worker import WORKER as CACHE
from workers.gateway.worker import WORKER as GATEWAY
from workers.jobs.worker import WORKER as JOBS
from workers.rag import ingesting
from workers.rag import search as searching
from workers.rag.index import floats
from workers.rag.worker import WORKER as RAG
from workers.serving.boot import serving

FACT = "The lighthouse of Quillon has 542 steps, and its keeper is Ivo Brandt."
QUESTION = "How many steps does the lighthouse of Quillon have?"
HARBOUR = f"The harbour lies in a shallow bay. {FACT} The town has a market on Thursdays and two bakeries."
PUMP = "The pump of the cellar runs on diesel. Its filter is changed every spring."
TABLES = ("rag_documents", "rag_chunks", "rag_postings", "rag_terms")
LARGE_DOCUMENTS, LARGE_CHUNKS = 100, 6_000
FILL = """
INSERT INTO rag_documents (document_id, collection_id, source_id, metadata, chunks)
SELECT 'large' || i, $1, 'large' || i, jsonb_build_object('part', i), $3::int / $2::int
FROM generate_series(0, $2::int - 1) i;
"""
FILL_CHUNKS = """
INSERT INTO rag_chunks (collection_id, document_no, ordinal, start_at, end_at, heading, text, digest, embedding)
SELECT $1, d.document_no, o, 0, 4, '', 'rows', ''::bytea,
       (SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE d.document_no + o > 0)::vector
FROM rag_documents d, generate_series(0, $2::int - 1) o WHERE d.source_id LIKE 'large%'
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(settings: Settings, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A client of rag with everything that it needs beside it."""
    models = await local.start(tmp_path_factory.mktemp("models"), port=None)
    changed = settings.model_copy(update={"local_models_url": models.url})
    connection = await connect(changed, name="test-rag")
    try:
        async with serving([RAG, GATEWAY, CACHE, JOBS], changed, connection):
            yield Client(connection, changed, source="test")
    finally:
        await connection.close()
        await models.stop()


@pytest.fixture
def who(tenant: str) -> Identity:
    return Identity.new(tenant)


@asynccontextmanager
async def _as_tenant(stack: Stack, tenant: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(stack.database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.tenant', $1, true)", tenant)
            yield connection
    finally:
        await connection.close()


async def _counts(stack: Stack, tenant: str) -> dict[str, int]:
    async with _as_tenant(stack, tenant) as database:
        found = {table: await database.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}  # noqa: S608
        sums = await database.fetchrow("SELECT sum(documents) d, sum(chunks) c, sum(length) l FROM rag_collections")
    assert sums is not None
    return {**found, **{f"sum of {name}": int(value) for name, value in sums.items()}}


async def _ingest(client: Client, who: Identity, text: str, source: str | None = None, **more: Any) -> rag.Ingested:
    return await client.call(rag.INGEST, rag.Ingest(text=text, source_id=source, **more), identity=who)


async def _search(client: Client, who: Identity, query: str, **more: Any) -> list[rag.Hit]:
    message = rag.Search.model_validate({"query": query, "cache": "off", **more})
    return (await client.call(rag.SEARCH, message, identity=who)).results


# --- documents ------------------------------------------------------------------------------------------------------


async def test_a_long_text_is_cut_in_a_process_of_its_own(
    client: Client, who: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"# Port\n\n{HARBOUR}\n\n{PUMP}\f{HARBOUR}" * 20
    here = await _ingest(client, who, text, "a")

    def on_the_loop(*_: object) -> None:
        raise AssertionError("cut on the event loop")

    monkeypatch.setattr(ingesting, "chunks", on_the_loop)
    monkeypatch.setattr(ingesting, "POOLED_FROM_CHARS", len(text))
    there = await _ingest(client, who, text, "b")
    assert (there.chunks, there.tokens) == (here.chunks, here.tokens)
    assert here.chunks > 1


async def test_a_document_changes_in_what_the_update_names(client: Client, who: Identity, stack: Stack) -> None:
    made = await _ingest(client, who, HARBOUR, "a", title="Harbour", metadata={"year": 1})

    async def update(**changes: Any) -> rag.Document:
        message = rag.UpdateDocument(document_id=made.document_id, **changes)
        return await client.call(rag.UPDATE_DOCUMENT, message, identity=who)

    unchanged = await update()
    assert (unchanged.version, unchanged.title, unchanged.metadata) == (1, "Harbour", {"year": 1})
    described = await update(metadata={"year": 2})
    assert (described.version, described.title, described.metadata) == (2, "Harbour", {"year": 2})
    titled = await update(title="Port")
    assert (titled.version, titled.title, titled.metadata, titled.characters) == (3, "Port", {"year": 2}, len(HARBOUR))
    rewritten = await update(text=PUMP)
    assert (rewritten.version, rewritten.title, rewritten.characters) == (4, "Port", len(PUMP))
    assert [hit.text for hit in await _search(client, who, "diesel")] == [PUMP]
    assert not [hit for hit in await _search(client, who, "lighthouse", mode="text") if "lighthouse" in hit.text]
    assert (await _counts(stack, who.tenant))["sum of d"] == 1
    await client.call(rag.DELETE_DOCUMENT, rag.DeleteDocument(document_id=made.document_id), identity=who)
    with pytest.raises(Fault, match="NOT_FOUND"):
        await update(title="Gone")


async def test_the_same_source_replaces_and_the_same_text_changes_nothing(client: Client, who: Identity) -> None:
    first = await _ingest(client, who, HARBOUR, "a", metadata={"year": 1})
    again = await _ingest(client, who, HARBOUR, "a", metadata={"year": 1})
    assert not first.unchanged
    assert again == first.model_copy(update={"unchanged": True})
    other = await _ingest(client, who, PUMP, "a")
    assert other.document_id == first.document_id
    document = await client.call(
        rag.GET_DOCUMENT, rag.GetDocument(document_id=first.document_id, include_text=True), identity=who
    )
    assert (document.text, document.version, document.chunks) == (PUMP, 2, 1)
    assert [hit.text for hit in await _search(client, who, "lighthouse steps", mode="text")] == []
    assert [hit.text for hit in await _search(client, who, "lighthouse steps")] == [PUMP]


async def test_readers_see_the_old_text_or_the_new_one(client: Client, who: Identity) -> None:
    texts = [f"{HARBOUR} Edition {number}. {PUMP}" for number in range(5)]
    await _ingest(client, who, texts[0], "a")
    seen: list[list[str]] = []

    async def read() -> None:
        while True:
            seen.append([hit.text for hit in await _search(client, who, "lighthouse", mode="text", top_k=50)])

    reader = asyncio.ensure_future(read())
    for text in texts[1:]:
        await _ingest(client, who, text, "a")
    reader.cancel()
    await asyncio.wait([reader])
    assert seen
    assert all(len(found) == 1 and found[0] in texts for found in seen)


async def test_deleting_leaves_no_row(client: Client, who: Identity, stack: Stack) -> None:
    made = await _ingest(client, who, f"{HARBOUR}\n\n{PUMP}" * 20, "a", chunking={"max_words": 40})
    assert made.chunks > 5
    delete = rag.DeleteDocument(document_id=made.document_id)
    assert (await client.call(rag.DELETE_DOCUMENT, delete, identity=who)).deleted
    assert not (await client.call(rag.DELETE_DOCUMENT, delete, identity=who)).deleted
    assert set((await _counts(stack, who.tenant)).values()) == {0}
    assert await _search(client, who, "lighthouse") == []


async def test_writers_of_the_same_documents_do_not_deadlock(client: Client, who: Identity, stack: Stack) -> None:
    async def write(source: int, turn: int) -> None:
        words = " ".join(f"{word} {turn}." for word in HARBOUR.split())
        made = await _ingest(client, who, words, f"s{source}")
        if turn % 2:
            message = rag.DeleteDocument(document_id=made.document_id)
            await client.call(rag.DELETE_DOCUMENT, message, identity=who)

    done = await asyncio.gather(*(write(s, t) for t in range(6) for s in range(4)), return_exceptions=True)
    faults = [each for each in done if each is not None]
    # A document that goes away under an ingest is told as such; nothing else may happen.
    assert all("being deleted" in str(each) for each in faults), faults
    listed = await client.call(rag.LIST_DOCUMENTS, rag.ListDocuments(), identity=who)
    async with _as_tenant(stack, who.tenant) as database:
        wrong = await database.fetch(
            "SELECT term, chunks, (SELECT count(*) FROM rag_postings p WHERE p.term = t.term AND p.collection_id = "
            "t.collection_id) AS counted FROM rag_terms t"
        )
    assert [row for row in wrong if row["chunks"] != row["counted"]] == []
    for document in listed.items:
        message = rag.DeleteDocument(document_id=document.document_id)
        await client.call(rag.DELETE_DOCUMENT, message, identity=who)
    assert set((await _counts(stack, who.tenant)).values()) == {0}


async def test_lists_by_cursor(client: Client, who: Identity) -> None:
    for number in range(5):
        await _ingest(client, who, f"{PUMP} {number}", f"s{number}", collection="even" if number % 2 == 0 else "odd")
    listed: list[str] = []
    cursor = None
    while True:
        message = rag.ListDocuments(limit=2, cursor=cursor)
        page = await client.call(rag.LIST_DOCUMENTS, message, identity=who)
        assert len(page.items) <= 2
        listed += [document.source_id for document in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert listed == ["s0", "s1", "s2", "s3", "s4"]
    odd = await client.call(rag.LIST_DOCUMENTS, rag.ListDocuments(collection="odd"), identity=who)
    assert [document.source_id for document in odd.items] == ["s1", "s3"]
    with pytest.raises(Fault) as raised:
        await client.call(rag.LIST_DOCUMENTS, rag.ListDocuments(cursor="1; DROP"), identity=who)
    assert raised.value.code is Code.INVALID


async def test_tenants_see_nothing_of_each_other(client: Client, who: Identity, stack: Stack) -> None:
    made = await _ingest(client, who, HARBOUR, "a")
    other = Identity.new(f"{who.tenant}x")
    await _ingest(client, other, PUMP, "b")
    before = await _counts(stack, who.tenant)
    assert [hit.source_id for hit in await _search(client, other, "lighthouse of Quillon")] == ["b"]
    assert [
        d.source_id for d in (await client.call(rag.LIST_DOCUMENTS, rag.ListDocuments(), identity=other)).items
    ] == ["b"]
    with pytest.raises(Fault) as raised:
        await client.call(rag.GET_DOCUMENT, rag.GetDocument(document_id=made.document_id), identity=other)
    assert raised.value.code is Code.NOT_FOUND
    gone = await client.call(rag.DELETE_DOCUMENT, rag.DeleteDocument(document_id=made.document_id), identity=other)
    assert not gone.deleted
    assert await _counts(stack, who.tenant) == before


async def test_a_job_tells_how_far_it_is(client: Client, who: Identity) -> None:
    text = "\n\n".join(f"{HARBOUR} Part {number}." for number in range(120))
    message = rag.Ingest(text=text, chunking=rag.Chunking(max_words=30))
    submitted = await client.submit(rag.INGEST, message, identity=who, key="one")
    job = await client.call(jobs.WAIT, jobs.WaitForJob(job_id=submitted.job_id, wait_s=30), identity=who)
    assert job.status == "succeeded", job
    assert job.progress is not None
    assert (job.progress.unit, job.progress.message) == ("chunks", "embedding")
    assert job.result is not None
    assert rag.Ingested.model_validate(job.result).chunks >= 120


async def test_a_text_without_words_is_invalid(client: Client, who: Identity) -> None:
    with pytest.raises(Fault) as raised:
        await _ingest(client, who, " \n\f ")
    assert raised.value.code is Code.INVALID


# --- search ---------------------------------------------------------------------------------------------------------


async def test_filters_keep_what_is_equal(client: Client, who: Identity) -> None:
    for number in range(4):
        await _ingest(client, who, f"{HARBOUR} {number}", f"s{number}", metadata={"year": number, "kind": "port"})
    for mode in ("hybrid", "text", "vector"):
        for filters, sources in (
            ({"year": 2}, {"s2"}),
            ({"kind": "port"}, {"s0", "s1", "s2", "s3"}),
            ({"year": 9}, set()),
        ):
            found = await _search(client, who, "lighthouse steps", mode=mode, filters=filters)
            assert {hit.source_id for hit in found} == sources, (mode, filters)


async def test_hits_are_verbatim_and_scored(client: Client, who: Identity) -> None:
    text = f"# Port\n\n{HARBOUR} {PUMP}\n\n{PUMP * 3}"
    await _ingest(client, who, text, "a", title="Guide", chunking={"max_words": 20})
    found = await _search(client, who, "lighthouse steps")
    assert FACT in found[0].text
    assert all(hit.text == text[hit.start : hit.end] for hit in found)
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


async def test_a_cached_answer_does_not_outlive_a_change(client: Client, who: Identity) -> None:
    await _ingest(client, who, HARBOUR, "a")
    message = rag.Search(query="lighthouse")
    first = await client.call(rag.SEARCH, message, identity=who)
    deadline = time.monotonic() + 5
    while not (again := await client.call(rag.SEARCH, message, identity=who)).cached:
        assert time.monotonic() < deadline
    assert again.results == first.results
    await _ingest(client, who, PUMP, "a")
    changed = await client.call(rag.SEARCH, message, identity=who)
    assert (changed.cached, [hit.text for hit in changed.results]) == (False, [PUMP])


class Large:
    """A tenant with more chunks than are searched exactly, and one with a single document."""

    def __init__(self, large: Identity, small: Identity, vector: Sequence[float]) -> None:
        self.large, self.small, self.vector = large, small, vector


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def large(client: Client, stack: Stack) -> Large:
    large, small = Identity.new("tlarge"), Identity.new("tsmall")
    for who in (large, small):
        await _ingest(client, who, HARBOUR, "a")
    async with _as_tenant(stack, large.tenant) as database:
        collection = await database.fetchval("SELECT collection_id FROM rag_collections")
        await database.execute(FILL, collection, LARGE_DOCUMENTS, LARGE_CHUNKS)
        await database.execute(FILL_CHUNKS, collection, LARGE_CHUNKS // LARGE_DOCUMENTS)
        await database.execute("UPDATE rag_collections SET chunks = chunks + $1", LARGE_CHUNKS)
    made = await client.call(gateway.EMBED, gateway.Embed(input=["stairs"], encoding="f32"), identity=large)
    return Large(large, small, floats(made.vectors[0]))


async def test_the_index_finds_ten_of_ten_behind_a_filter_of_one_percent(
    client: Client, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"query": "stairs", "mode": "vector", "filters": {"part": 7}}
    exact = [hit.chunk_id for hit in await _search(client, large.large, **asked)]
    monkeypatch.setattr(searching, "EXACT_UP_TO_CHUNKS", 0)
    found = [hit.chunk_id for hit in await _search(client, large.large, **asked)]
    assert len(exact) == len(found) == 10
    assert len(set(exact) & set(found)) >= 9


async def test_one_pooled_connection_serves_a_small_and_a_large_tenant(stack: Stack, large: Large) -> None:
    database = await Database.open(stack.database_url, min_size=1, max_size=1, name="test-rag")
    message = rag.Search(query="stairs of the lighthouse")
    try:
        for who in (large.small, large.large, large.small, large.large, large.large, large.small):
            async with database.transaction(who.tenant, search=True) as tx:
                collection = await searching.get_collection(tx, "default")
                assert collection is not None
                started = time.perf_counter()
                found = await searching.find(tx, collection, message, vector=large.vector)
                took = time.perf_counter() - started
            assert found[0].hit.source_id == "a"
            assert len(found) == (1 if who is large.small else 10)
            assert took < 0.5
    finally:
        await database.close()


# --- answers --------------------------------------------------------------------------------------------------------


async def test_an_answer_quotes_its_document_and_arrives_in_pieces(client: Client, who: Identity) -> None:
    made = await _ingest(client, who, HARBOUR, "a")
    pieces: list[str] = []
    async with client.stream(rag.QUERY, rag.Query(question=QUESTION), identity=who) as stream:
        async for chunk in stream:
            assert isinstance(chunk, rag.AnswerChunk)
            pieces.append(chunk.text)
    answer = stream.result
    assert answer.answered
    assert "542" in answer.answer
    assert "".join(pieces) == answer.answer
    best = answer.citations[0]
    assert best.document_id == made.document_id
    assert best.quote == FACT == HARBOUR[best.start : best.end]
    assert answer.usage.input > 0
    assert answer.usage.output > 0


@pytest.mark.parametrize("question", ["Who discovered penicillin?", "What is the capital of Mongolia?"])
async def test_what_the_documents_do_not_say_is_not_answered(client: Client, who: Identity, question: str) -> None:
    await _ingest(client, who, HARBOUR, "a")
    answer = await client.call(rag.QUERY, rag.Query(question=question, cache="off"), identity=who)
    assert not answer.answered
    assert answer.citations == []


async def test_a_collection_that_is_not_there_answers_nothing(client: Client, who: Identity) -> None:
    assert await _search(client, who, "anything", collection="none") == []
    answer = await client.call(rag.QUERY, rag.Query(question=QUESTION), identity=who)
    assert not answer.answered


async def test_another_models_vectors_are_not_mixed_in(client: Client, who: Identity, stack: Stack) -> None:
    await _ingest(client, who, HARBOUR, "a")
    async with _as_tenant(stack, who.tenant) as database:
        await database.execute("UPDATE rag_collections SET revision = 'another'")
    for ask in (_search(client, who, "lighthouse"), _ingest(client, who, PUMP, "b")):
        with pytest.raises(Fault) as raised:
            await ask
        assert raised.value.code is Code.CONFLICT
