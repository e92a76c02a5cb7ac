"""The files in `deploy/` and the Dockerfile: what is here of what they need is tried for real."""

import configparser
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml

from service.cli import main
from service.settings import VARIABLES
from tests import engine, programs
from tests.cli.test_serve import ADMIN_KEY, KEYS, Running, ended, started, surroundings
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
TOKEN = "a-token-that-no-log-shows"
HOST = "genhook.example.com"
KEY = {"authorization": f"Bearer {ADMIN_KEY}"}


def replaced(text: str, **changes: str) -> str:
    """Return the text of a file with what depends on the machine replaced, each once or more."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def proxied(folder: Path, genhook: str, **further: str) -> Iterator[httpx.Client]:
    """Run nginx with the file of `deploy/` in front of genhook; yield a client of it.

    further: what else is replaced in the file.
    """
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert(HOST, "127.0.0.1")
    pem, key = folder / "genhook.pem", folder / "genhook.key"
    pem.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    changes = {
        "/etc/ssl/genhook.pem": str(pem),
        "/etc/ssl/genhook.key": str(key),
        "/var/log/nginx": str(folder),
        "listen 443": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8000": genhook.removeprefix("http://"),
        **further,
    }
    site = replaced((DEPLOY / "nginx.conf").read_text("utf-8"), **changes)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    own = f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;"
    conf = folder / "nginx.conf"
    conf.write_text(f"{own} events {{}} http {{ {temporary}\n{site} }}", "utf-8")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with subprocess.Popen([programs.find("nginx"), "-p", folder, "-c", conf]) as process:  # noqa: S603
        transport = httpx.HTTPTransport(verify=context, retries=10)  # Until it listens.
        try:
            with httpx.Client(
                transport=transport,
                base_url=f"https://127.0.0.1:{port}",
                headers={"host": HOST},
                timeout=20,
            ) as client:
                yield client
        finally:
            process.terminate()


def logs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.glob("*.log")}


def test_nginx_passes_requests_on_and_keeps_tokens_out_of_its_logs(tmp_path: Path) -> None:
    programs.find("nginx")
    folder = tmp_path / "nginx"
    folder.mkdir()
    with started(tmp_path, "serve", "--port", "0", **KEYS) as genhook:
        with proxied(folder, genhook.url) as client:
            assert client.get("/readyz").json()["status"] == "ready"
            body = {"url": "https://receiver.example/", "description": "x" * 100}
            assert client.post("/v1/subscribers", json=body, headers=KEY).status_code == 201
            callback = f"/callbacks/apiinone/{TOKEN}"
            assert client.post(callback, json={}).json()["code"] == "token_invalid"
            # genhook's own limit, which it explains, and that of nginx, which spares it the bytes.
            own = client.post("/v1/subscribers", content=b"x" * 1_500_000, headers=KEY)
            assert (own.status_code, own.json()["code"]) == (413, "body_too_large")
            assert client.post(callback, content=b"x" * 3_000_000).status_code == 413
            assert client.get(callback).status_code == 405
            genhook.end()
            assert client.post(callback, json={}).status_code == 502
            assert client.get("/readyz").status_code == 502
        lines = logs(folder)
    assert "POST /callbacks/... 404" in lines["genhook.log"]
    assert "GET /readyz 502" in lines["genhook.log"]
    assert "/readyz" in lines["genhook-error.log"]
    assert TOKEN not in "".join(lines.values())


@pytest.mark.parametrize("path", ["", "/hooks"])
def test_nginx_keeps_tokens_out_of_its_logs_below_any_path_and_however_they_are_spelled(
    tmp_path: Path, path: str
) -> None:
    programs.find("nginx")
    folder = tmp_path / "nginx"
    folder.mkdir()
    stripped = {"# rewrite": "rewrite"} if path else {}
    spellings = ["callbacks", "%63allbacks", "callback%73", "callbacks%2Fapiinone", "/callbacks"]
    spellings += ["v1/../callbacks", "%2e/callbacks", "hooks/callbacks", "v1/callbacks"]
    spellings += ["%0A/callbacks", "callbacks/%0A"]
    with started(tmp_path, "serve", "--port", "0", **KEYS) as genhook:
        with proxied(folder, genhook.url, **stripped) as client:
            assert client.get(f"{path}/readyz").json()["status"] == "ready"
            callback = client.post(f"{path}/callbacks/apiinone/{TOKEN}", json={})
            assert callback.json()["code"] == "token_invalid"
            genhook.end()
            for spelling in spellings:
                url = f"{client.base_url}{path}/{spelling}/apiinone/{TOKEN}"
                assert client.post(url, json={}).status_code == 502
                assert client.post(url, content=b"x" * 3_000_000).status_code == 413
            assert client.get(f"{path}/readyz").status_code == 502
            assert client.get(f"{path}/v1/callbacks/cb_1").status_code == 502
        lines = logs(folder)
    assert lines["genhook.log"].count("POST /callbacks/... 502") == len(spellings)
    assert f"{path}/readyz" in lines["genhook-error.log"]
    assert f"{path}/v1/callbacks/cb_1" in lines["genhook-error.log"]
    assert "GET /v1/callbacks/cb_1 502" in lines["genhook.log"]
    assert TOKEN not in "".join(lines.values())


@contextmanager
def behind_caddy(folder: Path, genhook: str) -> Iterator[httpx.Client]:
    """Run Caddy with the file of `deploy/` in front of genhook, without TLS; yield a client."""
    url = f"http://127.0.0.1:{free_port()}"
    text = (DEPLOY / "Caddyfile").read_text("utf-8")
    changes = {"/var/log/caddy": str(folder), "same path.\n{": "same path.\n{\n\tadmin off"}
    (folder / "Caddyfile").write_text(replaced(text, **changes), "utf-8")
    environ = {**surroundings(), "DOMAIN": url, "ADDRESS": genhook.removeprefix("http://")}
    environ |= dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
    line = [programs.find("caddy"), "run", "--config", "Caddyfile"]
    with subprocess.Popen(line, cwd=folder, env=environ) as process:  # noqa: S603
        try:
            transport = httpx.HTTPTransport(retries=10)  # Until it listens.
            with httpx.Client(transport=transport, base_url=url, timeout=20) as client:
                yield client
        finally:
            process.terminate()


def test_caddy_passes_requests_on_and_keeps_tokens_out_of_its_logs(tmp_path: Path) -> None:
    programs.find("caddy")
    folder = tmp_path / "caddy"
    folder.mkdir()
    paths = ("callbacks", "%63allbacks", "callback%73", "callbacks%2Fapiinone", "hooks/callbacks")
    with started(tmp_path, "serve", "--port", "0", **KEYS) as genhook:
        with behind_caddy(folder, genhook.url) as client:
            assert client.get("/readyz?a=%20").json()["status"] == "ready"
            for path in paths:
                answer = client.post(f"/{path}/apiinone/{TOKEN}%0A", json={})
                assert answer.status_code in (404, 405)
            genhook.end()
            for path in paths:
                assert client.post(f"/{path}/apiinone/{TOKEN}", json={}).status_code == 502
        lines = logs(folder)
    for shown in ("/callbacks/...", "/%...", "/callback%...", "/callbacks%..."):
        assert f'"uri":"{shown}"' in lines["genhook.log"]
    assert '"uri":"/readyz?a=%20"' in lines["genhook.log"]
    assert '"uri":"/callbacks/..."' in lines["caddy.log"]
    assert TOKEN not in "".join(lines.values())


def test_the_unit_of_systemd_is_sound(tmp_path: Path) -> None:
    program = programs.find("systemd-analyze", package="systemd")
    text = (DEPLOY / "genhook.service").read_text("utf-8")
    unit = tmp_path / "genhook.service"
    unit.write_text(replaced(text, **{"/opt/genhook/bin/genhook": sys.executable}), "utf-8")
    done = subprocess.run(  # noqa: S603
        [program, "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert "genhook.service" not in done.stderr, done.stderr


def test_systemd_never_gives_up_to_restart_the_service() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # Keep the case of names.
    unit.read_string((DEPLOY / "genhook.service").read_text("utf-8"))
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


# The image.


def dockerfile() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def environment() -> dict[str, str]:
    [text] = [rest for word, rest in dockerfile() if word == "ENV"]
    return dict(pair.split("=", 1) for pair in shlex.split(text))


def test_the_image_copies_what_is_there_and_sets_what_there_is() -> None:
    copied = [rest.split()[:-1] for word, rest in dockerfile() if word == "COPY"]
    names = [name for line in copied for name in line if not line[0].startswith("--from")]
    assert all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {f"!{name}" for name in names} <= {*ignored}
    assert set(environment()) - {"PATH", "PYTHONDONTWRITEBYTECODE"} <= set(VARIABLES)
    assert [rest for word, rest in dockerfile() if word == "USER"] == ["10001"]


def test_the_health_check_of_the_image_says_whether_the_process_answers(tmp_path: Path) -> None:
    [text] = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    command = json.loads(text.partition(" CMD ")[2])
    assert command[0] == "python"
    command[-1] = replaced(command[-1], **{"timeout=2": "timeout=60"})  # The machine is busy.

    def check(url: str) -> int:
        port = url.rpartition(":")[2]
        line = [sys.executable, *command[1:]]
        environ = {**surroundings(), "PORT": port}
        done = subprocess.run(line, env=environ, capture_output=True, check=False)  # noqa: S603
        return done.returncode

    with started(tmp_path, "serve", "--port", "0", **KEYS) as genhook:
        url = genhook.url
        assert check(url) == 0
        genhook.end()
    assert check(url) == 1


def test_the_image_serves_and_writes_nothing_but_its_volume(tmp_path: Path) -> None:
    [text] = [rest for word, rest in dockerfile() if word == "CMD"]
    line = json.loads(text)
    assert line[0] == "genhook"
    volume, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    volume.mkdir()
    elsewhere.mkdir(mode=0o500)
    environ = {**KEYS, **environment(), "PORT": "0", "PATH": os.defpath}
    environ["GENHOOK_DATABASE_URL"] = f"sqlite:///{volume}/genhook.db"
    with started(elsewhere, *line[1:], **environ) as genhook:
        local = genhook.lines[-1].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        genhook.lines[-1] = local
        with genhook.client() as client:
            assert client.get("/readyz").status_code == 200
        genhook.end()
    assert list(elsewhere.iterdir()) == []
    assert (volume / "genhook.db").exists()


def compose(name: str) -> dict[str, dict[str, Any]]:
    services = yaml.safe_load((DEPLOY / name).read_text("utf-8"))["services"]
    return {name: service for name, service in services.items() if "build" in service}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.sqlite.yaml"])
def test_compose_sets_what_there_is_and_stops_later_than_genhook(name: str) -> None:
    for service in compose(name).values():
        assert set(service["environment"]) <= set(VARIABLES)
        assert service["read_only"]
        [seconds] = re.findall(r"(\d+)s", service["stop_grace_period"])
        assert int(seconds) > 20


def test_compose_on_one_machine_keeps_the_database_in_a_volume() -> None:
    [service] = compose("compose.sqlite.yaml").values()
    assert service["volumes"] == ["genhook:/var/lib/genhook"]


def test_the_processes_of_compose_serve_and_work_on_one_postgresql(
    tmp_path: Path, postgres: engine.Schemas
) -> None:
    services = compose("compose.yaml")
    image = re.findall(r"image: postgres:(\d+)", (DEPLOY / "compose.yaml").read_text("utf-8"))
    assert image == [engine.version(engine.program("postgres").parent)]
    assert {service["deploy"]["replicas"] for service in services.values()} == {2}
    url = postgres.database_of(tmp_path, is_new=True)
    work = services["worker"]["command"]
    web, worker = (services[name]["environment"] for name in ("web", "worker"))
    check_pairs(tmp_path, url, (["genhook", "serve"], web), (work, worker))


Part = tuple[list[str], dict[str, str]]  # A command and what its environment has besides secrets.


def check_pairs(folder: Path, url: str, web: Part, worker: Part) -> None:
    """Two processes that serve and two that work on one database: all are ready."""

    def run(part: Part, port: str) -> Running:
        line, environ = part
        own = {
            **KEYS,
            "GENHOOK_DATABASE_URL": url,
            "GENHOOK_UPSTREAM_API_KEY": "aio_0123456789",
            "GENHOOK_PUBLIC_URL": "https://here.example",
            port: "0",
        }
        assert line[0] == "genhook"
        return stack.enter_context(started(folder, *line[1:], **{**environ, **own}))

    with ExitStack() as stack:
        webs = [run(web, "PORT") for _ in range(2)]
        workers = [run(worker, "GENHOOK_WORK_PORT") for _ in range(2)]
        for each in (*webs, *workers):
            with each.client() as client:
                assert client.get("/healthz").status_code == 200
                assert client.get("/readyz").status_code == 200
        for each in webs:
            with each.client() as client:
                body = {"url": "https://receiver.example/"}
                assert client.post("/v1/subscribers", json=body, headers=KEY).status_code == 201
        with webs[0].client() as client:
            assert len(client.get("/v1/subscribers", headers=KEY).json()["data"]) == 2


# Kubernetes.


def cluster() -> dict[str, dict[str, Any]]:
    """The resources for several pods, by kind and name."""
    text = (DEPLOY / "kubernetes.yaml").read_text("utf-8")
    return {f"{one['kind']} {one['metadata']['name']}": one for one in yaml.safe_load_all(text)}


def pods() -> dict[str, dict[str, Any]]:
    """The templates of pods, by what they do."""
    specs = [one.get("spec", {}) for one in cluster().values()]
    templates = [spec["template"] for spec in specs if "template" in spec]
    return {one["metadata"]["labels"]["part"]: one for one in templates}


def test_the_pods_of_kubernetes_run_what_there_is_with_settings_that_there_are() -> None:
    resources = cluster()
    given = {**resources["Secret genhook"]["stringData"], **resources["ConfigMap genhook"]["data"]}
    assert given.keys() <= {*VARIABLES}
    assert given["GENHOOK_DATABASE_URL"].startswith("postgresql://")
    assert pods().keys() == {"migrate", "web", "worker"}
    for part, pod in pods().items():
        [container] = pod["spec"]["containers"]
        line = container["command"]
        assert line[0] == "genhook"
        assert main.parser(line[1]).parse_args(line[1:]).run
        names = {next(iter(one.values()))["name"] for one in container["envFrom"]}
        assert names == {"genhook"}
        assert {one["name"] for one in container.get("env", [])} <= {*VARIABLES}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001
        if part != "migrate":
            assert pod["spec"]["terminationGracePeriodSeconds"] > 20
            assert container["ports"] == [{"name": "http", "containerPort": 8000}]


def test_the_selectors_of_kubernetes_choose_the_pods_that_they_mean() -> None:
    labels = {part: pod["metadata"]["labels"] for part, pod in pods().items()}
    resources = cluster()
    for part in ("web", "worker"):
        spec = resources[f"Deployment genhook-{part}"]["spec"]
        assert spec["selector"]["matchLabels"] == labels[part]
        budget = resources[f"PodDisruptionBudget genhook-{part}"]["spec"]
        assert budget["selector"]["matchLabels"] == labels[part]
        assert budget["minAvailable"] < spec["replicas"]
    assert resources["Service genhook"]["spec"]["selector"] == labels["web"]
    # What is applied before the others, by the selector that the page shows.
    first = {name for name, one in resources.items() if "labels" in one["metadata"]}
    assert first == {"Secret genhook", "ConfigMap genhook", "Job genhook-migrate-0-1-0"}
    parts = {resources[name]["metadata"]["labels"]["part"] for name in first}
    assert f"part in ({', '.join(sorted(parts, reverse=True))})" in "".join(blocks("sh"))
    assert "job/genhook-migrate-0-1-0" in "".join(blocks("sh"))


def test_the_pods_of_kubernetes_migrate_serve_and_work_on_one_postgresql(
    tmp_path: Path, postgres: engine.Schemas
) -> None:
    url = postgres.database_of(tmp_path, is_new=True)
    parts: dict[str, Part] = {}
    for part, pod in pods().items():
        [container] = pod["spec"]["containers"]
        environ = {one["name"]: one["value"] for one in container.get("env", [])}
        parts[part] = container["command"], environ
    line, _ = parts["migrate"]
    status, err = ended(tmp_path, *line[1:], **KEYS, GENHOOK_DATABASE_URL=url)
    assert status == 0, err
    check_pairs(tmp_path, url, parts["web"], parts["worker"])


def test_the_procfiles_start_what_the_command_line_has() -> None:
    for path in (ROOT / "Procfile", DEPLOY / "Procfile.postgres"):
        for line in path.read_text("utf-8").splitlines():
            _, _, command = line.partition(": genhook ")
            words = shlex.split(command)
            assert main.parser(words[0]).parse_args(words)


# What docs/deploying.md shows.


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs/deploying.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_files_that_the_documentation_shows_are_well_formed() -> None:
    [fly] = [tomllib.loads(text) for text in blocks("toml")]
    assert fly["mounts"]["destination"] == "/var/lib/genhook"
    assert fly["http_service"]["internal_port"] == 8000
    [cluster] = [list(yaml.safe_load_all(text)) for text in blocks("yaml")]
    kinds = {resource["kind"]: resource for resource in cluster}
    assert kinds["StatefulSet"]["spec"]["replicas"] == 1
    [container] = kinds["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "database", "mountPath": "/var/lib/genhook"} in container["volumeMounts"]
    assert kinds["Secret"]["stringData"].keys() <= {*VARIABLES}


def test_the_documentation_sets_only_what_there_is() -> None:
    text = (ROOT / "docs/deploying.md").read_text("utf-8")
    assert set(re.findall(r"\bGENHOOK_[A-Z_]+", text)) <= {*VARIABLES}


def test_the_documented_package_of_lambda_has_the_driver_of_its_database() -> None:
    [commands] = [text for text in blocks("sh") if "pip install --target" in text]
    assert '"GENHOOK_DATABASE_URL": "postgresql://' in commands
    assert "[lambda,postgres]" in commands
