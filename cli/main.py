"""The commands and their options. Each imports what it needs when it runs, so that `faas --help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import DEMO_TENANT, work
from cli.options import Body, Json, Key, Operation, Tenant, Timeout, User

app = typer.Typer(
    name="faas",
    help="An AI back end on NATS. `faas up` starts everything; exit code 0, 1 on a fault, 2 on wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(work.jobs, name="jobs")
app.add_typer(work.dlq, name="dlq")


def main() -> None:
    """What the installed command runs. A Fault that no command foresaw, and a file that cannot be written, are told on
    a line and end with 1."""
    try:
        app()
    except OSError as error:
        print(f"{error.filename or 'faas'}: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        from cli import show
        from subjects.contract import Fault

        if not isinstance(error, Fault):
            raise
        show.fault(error)
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("motadata-faas"))
        except PackageNotFoundError:
            typer.echo("unknown: not installed")
        raise typer.Exit


@app.callback()
def faas(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def up(
    split: Annotated[bool, typer.Option("--split", help="A process of its own for each component.")] = False,
) -> None:
    """Start broker, database, cache, local models, workers and bridge; supervise them until Ctrl-C."""
    from cli import up as command

    raise typer.Exit(command.run(split=split))


@app.command()
def worker(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None) -> None:
    """Serve these components in this process; all of them when none is named."""
    from cli import serve

    serve.workers(names or [])


@app.command()
def bridge() -> None:
    """Serve HTTP in this process."""
    from cli import serve

    serve.bridge()


@app.command()
def migrate(json: Json = False) -> None:
    """Bring the database up to date and create the streams and consumers that are absent."""
    from cli import setup

    setup.migrate(json)


@app.command()
def doctor(json: Json = False) -> None:
    """Each setting with where it came from, and a check of every connection, stream and consumer."""
    from cli import doctor as command

    command.run(json)


@app.command()
def token(
    tenant: Tenant = DEMO_TENANT,
    user: Annotated[str, typer.Option("--user", "-u", help="The token's subject.")] = "developer",
    scopes: Annotated[str, typer.Option("--scopes", help="Separated by spaces: rag.query, rag.* or *.")] = "*",
    hours: Annotated[float, typer.Option("--hours", min=0.01, max=24, help="How long it is valid.")] = 12,
) -> None:
    """Print a token for the bridge, signed with this installation's secret."""
    from cli import tokens

    tokens.run(tenant, user, scopes=scopes, hours=hours)


@app.command()
def call(
    operation: Operation,
    body: Body = "{}",
    tenant: Tenant = DEMO_TENANT,
    user: User = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the pieces as they come.")] = False,
    key: Key = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Ask a component over NATS and print its answer."""
    from cli.operations import Asker

    Asker(tenant, user, as_json=json).call(operation, body, stream=stream, key=key, timeout_s=timeout)


@app.command()
def submit(
    operation: Operation,
    body: Body = "{}",
    tenant: Tenant = DEMO_TENANT,
    user: User = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the job has ended; 1 when it did not succeed.")] = False,
    key: Key = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Make a durable job of an operation."""
    from cli.operations import Asker

    Asker(tenant, user, as_json=json).submit(operation, body, wait=wait, key=key, timeout_s=timeout)


@app.command()
def tail(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Such as `evt.demo.>` or `out.demo.*`.")],
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    json: Json = False,
) -> None:
    """Print every message on the subjects of a pattern, until Ctrl-C."""
    from cli import watch

    watch.run(pattern, count, json)


@app.command()
def bench(
    operation: Operation = "cache.stats",
    body: Body = "{}",
    tenant: Tenant = DEMO_TENANT,
    in_flight: Annotated[int, typer.Option("--in-flight", "-n", min=1, max=1024, help="Askers at a time.")] = 16,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, max=3600, help="How long.")] = 5,
    json: Json = False,
) -> None:
    """Load one operation of the running platform, and print its rate and its times."""
    from cli import bench as command

    command.run(operation, body, tenant=tenant, in_flight=in_flight, seconds=seconds, as_json=json)


@app.command()
def contracts(
    format: Annotated[str, typer.Option("--format", help="jsonschema, openapi, asyncapi or proto.")] = "jsonschema",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, or a folder for proto, instead of standard output.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Write what is committed under schemas/ anew.")] = False,
    release: Annotated[bool, typer.Option("--release", help="The same, as what later changes may not break.")] = False,
) -> None:
    """Print every contract."""
    from cli import contracts as command

    command.run(format, output, update=update, release=release)


app.command()(work.replay)
