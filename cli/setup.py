"""migrate: the database's schema, the streams and the bucket; creates what is absent, changes nothing else."""

from __future__ import annotations

from cli import session, show
from runtime import streams
from runtime.settings import Settings
from store.migrate import migrate as migrate_database
from subjects.contract import Code, Fault


def migrate(as_json: bool) -> None:
    show.value(session.run(prepare(session.load())), as_json=as_json)


async def prepare(settings: Settings) -> dict[str, list[str]]:
    """What was applied and created now, by name. Raises Fault(INVALID | UNAVAILABLE | CONFLICT)."""
    if settings.database_owner_url is None:
        raise Fault(Code.INVALID, "set DATABASE_OWNER_URL: only the owner's role may change the schema")
    applied = await migrate_database(settings.database_owner_url)
    async with session.connected(settings) as connection:
        return {"migrations": applied, "streams": await streams.ensure(connection, settings)}
