"""A client that a public generator makes of openapi.yaml works with the service that runs."""

import importlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli import test_serve
from tests.cli.test_serve import ADMIN_KEY, END_SECONDS, Running
from tests.contract.contract import PROBLEM, examples_of, operations, resolve

service, inbox = test_serve.service, test_serve.inbox
PACKAGE = "generated_client"
DOCUMENT = Path(__file__).parents[2] / "openapi.yaml"
CONFIG = "post_hooks: []\n"  # They would format the code, which nobody reads.
# What this generator leaves out, and no client of ours calls.
LEFT_OUT = {
    "POST /callbacks/{upstream}/{token}": "a body of any type",
    "GET /openapi.yaml": "an answer in YAML",
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the client, and what the generator said."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yaml").write_text(CONFIG)
    line = ["generate", "--path", str(DOCUMENT), "--output-path", str(folder / PACKAGE)]
    line += ["--meta", "none", "--config", str(folder / "config.yaml")]
    done = subprocess.run(  # noqa: S603  our own arguments
        [sys.executable, "-m", "openapi_python_client", *line],
        capture_output=True,
        check=True,
        text=True,
    )
    sys.path.insert(0, str(folder))
    yield folder / PACKAGE, done.stdout + done.stderr
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


class Client:
    """The generated client of a service; its models are at `models`."""

    def __init__(self, url: str) -> None:
        package = importlib.import_module(PACKAGE)
        self.models: Any = importlib.import_module(f"{PACKAGE}.models")
        self.connection = package.AuthenticatedClient(base_url=url, token=ADMIN_KEY)

    def call(self, operation: str, *path: str, **arguments: Any) -> Any:
        """Call an operation, such as `generations.get_generation`; return the decoded answer."""
        return self.module(operation).sync(*path, client=self.connection, **arguments)

    def module(self, operation: str) -> Any:
        return importlib.import_module(f"{PACKAGE}.api.{operation}")


@pytest.fixture
def client(generated: tuple[Path, str], service: Running) -> Iterator[Client]:
    client = Client(service.url)
    with client.connection:
        yield client


def test_the_generator_takes_the_whole_document(generated: tuple[Path, str]) -> None:
    folder, said = generated
    assert set(re.findall(r"WARNING parsing (\S+ \S+) ", said)) == set(LEFT_OUT)
    assert "Unable to" not in said
    made = {path.stem for path in folder.glob("api/*/*.py")} - {"__init__"}
    assert made == {snake(each["operationId"]) for _, each in operations()}


def test_a_generation_is_created_awaited_and_found_with_its_events_and_deliveries(
    client: Client, inbox: tuple[str, list[Any]]
) -> None:
    models = client.models
    new = models.SubscriberCreate(url=inbox[0], payload=models.PayloadForm.FULL)
    subscriber = client.call("subscribers.create_subscriber", body=new)
    assert (subscriber.status, subscriber.secret[:6]) == ("active", "whsec_")
    generation = client.call("generations.create_generation", body=request_of(models))
    while generation.status in ("queued", "processing"):
        generation = client.call("generations.get_generation", generation.id, wait=30)
    assert (generation.status, generation.metadata["order_id"]) == ("succeeded", "1042")
    assert generation.output.files[0].media_type == "image/png"

    query = {"generation_id": generation.id, "order": models.ListEventsOrder.ASC}
    events = client.call("events.list_events", **query)
    types = ["generation.submitted", "generation.succeeded"]
    assert [event.type_ for event in events.data] == types
    assert all(isinstance(event, models.GenerationEvent) for event in events.data)
    assert events.data[1].data.output == generation.output
    deliveries = delivered(client, subscriber.id, count=2)
    assert {each.event_id for each in deliveries} == {event.id for event in events.data}
    attempts = client.call("deliveries.get_delivery", deliveries[0].id).attempts
    assert [attempt.status_code for attempt in attempts] == [204]
    assert {headers["webhook-id"] for headers, _ in inbox[1]} == {e.id for e in events.data}


def test_a_refusal_is_a_problem_of_the_client(client: Client) -> None:
    models = client.models
    wrong = request_of(models, aspect_ratio="16x9")
    problem = client.call("generations.create_generation", body=wrong)
    assert isinstance(problem, models.Problem)
    assert (problem.status, problem.code) == (422, "invalid_request")
    assert [error.pointer for error in problem.errors] == ["/input/aspect_ratio"]


def test_the_client_loses_no_field_of_an_answer_that_the_document_shows(client: Client) -> None:
    """Generators differ in what they make of `allOf`: one read deliveries without attempts."""
    compared = 0
    for name, status, media_type, shown in answers_shown():
        if name in LEFT_OUT or (name, media_type) == ("GET /readyz", PROBLEM):
            continue  # It knows one type of answer for each status.
        operation = dict(operations())[name]
        module = client.module(f"{operation['tags'][0]}.{snake(operation['operationId'])}")
        reply = httpx.Response(status, json=shown)
        decoded = module._parse_response(client=client.connection, response=reply)
        assert shape(decoded.to_dict()) == shape(shown), (name, status)
        # What the client takes for no field of the schema is kept there, without a name.
        assert not getattr(decoded, "additional_properties", {}), (name, status)
        compared += 1
    assert compared > 400


def answers_shown() -> Iterator[tuple[str, int, str, Any]]:
    """Each example of a JSON answer, with its operation, status and media type."""
    for name, operation in operations():
        for status, response in operation["responses"].items():
            for media_type, media in resolve(response).get("content", {}).items():
                for shown in examples_of(media) if media_type.endswith("json") else ():
                    yield name, int(status), media_type, shown


def shape(value: Any) -> Any:
    """The names of all fields; a time may be spelled in another way."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else None


def snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def request_of(models: Any, **more: str) -> Any:
    values = {"prompt": "A harbour [sandbox: delay=0]", **more}
    return models.GenerationCreate(
        model="imagen4-fast",
        input_=models.GenerationCreateInput.from_dict(values),
        metadata=models.Metadata.from_dict({"order_id": "1042"}),
    )


def delivered(client: Client, subscriber_id: str, count: int) -> list[Any]:
    """The deliveries to a subscriber, once so many have arrived."""
    ends_at = time.monotonic() + END_SECONDS
    query = {"subscriber_id": subscriber_id, "status": client.models.DeliveryStatus.DELIVERED}
    while True:
        page = client.call("deliveries.list_deliveries", **query)
        if len(page.data) >= count or time.monotonic() > ends_at:
            assert len(page.data) == count
            return list(page.data)
