"""A document in, a question out, over HTTP: `FAAS_TOKEN=$(faas token) python examples/http_client.py "How far?"`.

Reads BRIDGE_URL and FAAS_TOKEN. See client/README.md.
"""

import asyncio
import sys

from client import Chunk, Done, ServiceClientManager, ServiceError
from subjects import rag

TEXT = "The lighthouse of Aster Point is 41 metres high. Its keeper is called Ines Tal."


async def main(question: str) -> None:
    async with ServiceClientManager() as services:
        client = services.get_client("rag")
        job = await client.submit("ingest", {"text": TEXT, "title": "Aster Point", "source_id": "aster"})
        print("indexed:", (await client.wait(job.job_id)).status)
        async with client.stream("query", {"question": question}) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    print(event.data["text"], end="", flush=True)
                elif isinstance(event, Done):
                    print("\ncited:", [each["quote"] for each in event.data["citations"]])
        found = await client.call(rag.SEARCH, rag.Search(query=question, top_k=1))  # typed
        print("best chunk:", found.results[0].text if found.results else "none")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Who keeps the lighthouse?"))
    except ServiceError as error:
        sys.exit(f"{error} (status {error.status}, retryable {error.retryable}, request {error.request_id})")
