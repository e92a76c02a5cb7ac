"""The sandbox takes what the catalogue allows, and calls back about the same models."""

import pytest

from service.sandbox import models, parameters
from service.upstream import catalogue
from tests.upstream.test_catalogue import EXAMPLES

# A route that answers at once, with lyrics and no file: the sandbox does not have it.
ABSENT = ("suno-timestamped-lyrics",)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {*ABSENT}))
def test_the_sandbox_takes_a_model_of_the_catalogue(name: str) -> None:
    model = catalogue.load()[name]
    twin = models.find(model.path, model.sent_as)
    parameters.check(twin, {**EXAMPLES[name][0], "callback_url": "https://genhook.example/c"})
    assert twin.callbacks == model.callbacks


def test_the_sandbox_has_no_model_that_the_catalogue_lacks() -> None:
    named = {name for path, name in models.MODELS if path in (models.IMAGES, models.VIDEOS)}
    songs = {name for path, name in models.MODELS if path == models.MUSIC}
    assert (named | songs) <= catalogue.load().keys()
