"""The catalogue answers which models there are, and which of them is the cheapest."""

from pathlib import Path

import pytest

from tests.harness import opened

KINDS = {"imagen-4": "image", "kling-3": "video", "suno": "audio", "bg-remover": "tool"}


@pytest.mark.sqlite_only("the catalogue is in no database")
async def test_models_are_filtered_by_kind_and_callbacks_and_the_cheapest_come_first(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        every = (await world.get("/v1/models"))["data"]
        assert {m["family"]: m["kind"] for m in every if m["family"] in KINDS} == KINDS
        query = {"kind": "image", "callbacks": "true", "sort": "credits"}
        found = (await world.get("/v1/models", **query))["data"]
        assert {(each["kind"], each["callbacks"]) for each in found} == {("image", True)}
        expected = [each for each in every if each["kind"] == "image" and each["callbacks"]]
        assert found == sorted(expected, key=lambda each: (each["credits"], each["id"]))
        others = (await world.get("/v1/models", callbacks="false"))["data"]
        assert others == [each for each in every if not each["callbacks"]]
