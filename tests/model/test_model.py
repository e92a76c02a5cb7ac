"""Transitions of a generation, and which subscriber receives which event."""

import itertools
from typing import Any, get_args

import pytest

from service.model.event import EVENT_TYPE_OF, EVENT_TYPES
from service.model.generation import OPEN, TERMINAL, TRANSITIONS, Generation, GenerationStatus
from service.model.subscriber import Filter, Subscriber

STATES = get_args(GenerationStatus)


def generation(**fields: Any) -> Generation:
    defaults: dict[str, Any] = {
        "id": "gen_1",
        "tenant": "default",
        "model": "imagen4",
        "status": "queued",
        "route": "callback",
        "input": {"prompt": "a harbour"},
        "metadata": {"order": "7"},
        "created_at": 0,
        "deadline_at": 3_600_000,
        "nonce": "n" * 22,
        "submission": "sending",
    }
    return Generation(**{**defaults, **fields})


def subscriber(**fields: Any) -> Subscriber:
    defaults: dict[str, Any] = {
        "id": "sub_1",
        "tenant": "default",
        "url": "https://example.com/",
        "retry_schedule_seconds": [0],
        "created_at": 0,
        "updated_at": 0,
    }
    return Subscriber(**{**defaults, **fields})


def test_every_state_is_open_or_terminal() -> None:
    assert sorted(STATES) == sorted((*OPEN, *TERMINAL)) == sorted(TRANSITIONS)


def test_success_and_failure_are_final() -> None:
    for now, then in itertools.product(("succeeded", "failed"), STATES):
        assert not generation(status=now).can_become(then)


def test_no_state_leads_to_itself_or_back_to_an_open_one() -> None:
    for now, next_states in TRANSITIONS.items():
        assert now not in next_states
        assert "queued" not in next_states
        if now in TERMINAL:
            assert not set(next_states) & set(OPEN)


def test_a_result_after_the_deadline_counts() -> None:
    late = generation(status="timed_out")
    assert [state for state in STATES if late.can_become(state)] == ["succeeded", "failed"]


def test_every_state_that_can_be_entered_has_its_event() -> None:
    entered = {state for next_states in TRANSITIONS.values() for state in next_states}
    assert entered == set(EVENT_TYPE_OF)
    assert set(EVENT_TYPE_OF.values()) <= set(EVENT_TYPES)


def test_the_view_of_a_generation_hides_its_nonce_and_due_times() -> None:
    view = generation(next_poll_at=5, submit_at=6).view()
    assert "n" * 22 not in repr(view)
    assert not {"nonce", "tenant", "submission", "next_poll_at", "submit_at"} & set(view)


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({}, True),
        ({"models": ["imagen4"]}, True),
        ({"models": ["flux-2"]}, False),
        ({"metadata": {"order": "7"}}, True),
        ({"metadata": {"order": "8"}}, False),
        ({"metadata": {"order": "7", "missing": ""}}, False),
        ({"models": ["imagen4"], "metadata": {"order": "8"}}, False),
    ],
)
def test_a_filter_matches_if_all_of_its_fields_do(fields: dict[str, Any], matches: bool) -> None:  # noqa: FBT001
    filtered = subscriber(filter=Filter(**fields))
    assert filtered.subscribes_to("generation.failed", generation()) is matches


def test_without_event_types_a_subscriber_receives_all() -> None:
    assert all(subscriber().subscribes_to(type_, generation()) for type_ in EVENT_TYPES)
    filtered = subscriber(event_types=["generation.failed"])
    types = [type_ for type_ in EVENT_TYPES if filtered.subscribes_to(type_, generation())]
    assert types == ["generation.failed"]


def test_a_notify_url_receives_outcomes_only() -> None:
    notify = subscriber(is_notify=True)
    types = [type_ for type_ in EVENT_TYPES[:4] if notify.subscribes_to(type_, generation())]
    assert types == ["generation.succeeded", "generation.failed", "generation.timed_out"]
    assert not notify.subscribes_to("subscriber.disabled", None)
