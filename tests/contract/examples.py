"""One valid message for each operation of the registry: a new operation has its line here, or a test fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from subjects import registry
from subjects.contract import AnyCall

Json = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What a tenant has, by its ids. By default nothing: the ids are well formed and name nothing."""

    tenant: str
    canary: str = "nothing"
    key: str = "key"
    source_id: str = "source"
    file_id: str = "fnothing"
    document_id: str = "dnothing"
    job_id: str = "jnothing"
    output_id: str = "onothing"


EXAMPLES: dict[str, Callable[[World], Json]] = {
    "cache.get": lambda w: {"key": w.key},
    "cache.get_many": lambda w: {"keys": [w.key, "other"]},
    "cache.set": lambda w: {"key": w.key, "value": {"n": 1}, "tags": ["tag"]},
    "cache.set_many": lambda w: {"entries": [{"key": w.key, "value": 1}, {"key": "other", "value": 2}]},
    "cache.delete": lambda w: {"key": w.key},
    "cache.invalidate": lambda w: {"all": True},
    "cache.get_or_lock": lambda w: {"key": w.key, "wait_s": 0},
    "cache.stats": lambda w: {},
    "gateway.generate": lambda w: {"prompt": "Say something."},
    "gateway.embed": lambda w: {"input": ["one", "two"]},
    "gateway.list_models": lambda w: {"kind": "chat"},
    "gateway.list_providers": lambda w: {},
    "ingestion.register": lambda w: {"file_id": w.file_id, "name": "a.txt", "size": 5, "sha256": "0" * 64},
    "ingestion.process": lambda w: {"file_id": w.file_id},
    "ingestion.get_file": lambda w: {"file_id": w.file_id},
    "ingestion.list_files": lambda w: {"limit": 200},
    "jobs.get": lambda w: {"job_id": w.job_id},
    "jobs.list": lambda w: {"limit": 200},
    "jobs.wait": lambda w: {"job_id": w.job_id, "wait_s": 0},
    "jobs.cancel": lambda w: {"job_id": w.job_id},
    "jobs.replay": lambda w: {"subject": "*", "first_sequence": 1, "dry_run": True},
    "jobs.list_dead_letters": lambda w: {"limit": 200},
    "jobs.get_dead_letter": lambda w: {"job_id": w.job_id},
    "jobs.redrive": lambda w: {"job_id": w.job_id},
    "jobs.purge_dead_letters": lambda w: {"job_id": w.job_id},
    "rag.ingest": lambda w: {"file_id": w.file_id, "source_id": w.source_id},
    "rag.query": lambda w: {"question": "What is the secret word?"},
    "rag.search": lambda w: {"query": "secret word", "top_k": 100},
    "rag.get_document": lambda w: {"document_id": w.document_id, "include_text": True},
    "rag.list_documents": lambda w: {"limit": 200},
    "rag.update_document": lambda w: {"document_id": w.document_id, "metadata": {"n": 1}},
    "rag.delete_document": lambda w: {"document_id": w.document_id},
}

CALLS: list[AnyCall] = list(registry.load().calls.values())
JOBS: list[AnyCall] = [call for call in CALLS if call.job]
MUTATING: list[AnyCall] = [call for call in CALLS if call.mutates]


def example(call: AnyCall, world: World) -> Json:
    return EXAMPLES[call.name](world)
