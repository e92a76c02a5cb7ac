"""Directives in a prompt, and the errors for wrong ones."""

import dataclasses

import pytest

from service.sandbox.misbehaviour import DIRECTIVES, Misbehaviour, parse, without_marks


def test_a_prompt_without_a_mark_asks_for_nothing() -> None:
    assert parse("A lighthouse at dusk, [sic] in a sandbox: nice") == Misbehaviour()


def test_every_directive_is_a_field_and_every_field_a_directive() -> None:
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(Misbehaviour)}
    assert fields == set(DIRECTIVES)


@pytest.mark.parametrize("name", DIRECTIVES)
def test_every_directive_works_alone(name: str) -> None:
    minimum = DIRECTIVES[name].minimum
    value = True if minimum is None else minimum + 2
    mark = name if minimum is None else f"{name}={value}"
    expected = {**dataclasses.asdict(Misbehaviour()), name.replace("-", "_"): value}
    assert dataclasses.asdict(parse(f"x [sandbox: {mark}]")) == expected


def test_several_directives_may_be_combined_in_one_mark_or_in_more() -> None:
    misbehaviour = parse("[Sandbox: FAIL , duplicate = 3] A boat [sandbox:delay=0.5]")
    assert misbehaviour == Misbehaviour(fail=True, duplicate=3, delay=0.5)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("explode", "unknown sandbox directive 'explode'; known: fail, lose-callback, duplicate"),
        ("", "unknown sandbox directive ''"),
        ("fail=1", "fail takes no value"),
        ("delay=0, delay=50", "delay is given twice"),
        ("fail] A boat [sandbox: FAIL", "fail is given twice"),
        ("duplicate", "duplicate needs a number, for example duplicate=3"),
        ("duplicate=", "duplicate needs a number"),
        ("delay=soon", "delay needs a number"),
        ("delay=nan", "delay needs a number"),
        ("delay=-1", "delay needs a number"),
        ("delay=3601", "delay goes from 0 to 3600"),
        ("duplicate=1.5", "duplicate needs a whole number"),
        ("duplicate=21", "duplicate goes from 1 to 20"),
        ("error=200", "error goes from 300 to 599"),
    ],
)
def test_a_wrong_mark_is_refused(mark: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(f"x [sandbox: {mark}]")


def test_a_mark_that_is_never_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="not closed"):
        parse("A boat [sandbox: fail")


@pytest.mark.parametrize("mark", ["[sandbox fail]", "[Sandbox]", "[sandbox =fail", "[sandbox"])
def test_a_mark_without_its_colon_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match=r"needs a colon behind it"):
        parse(f"A boat {mark}")
    assert parse("A boat in a [sandboxes: fail]") == Misbehaviour()


def test_marks_are_cut_out_of_the_prompt() -> None:
    assert without_marks("[sandbox: fail] A  boat [sandbox: late=1]\nat sea") == "A boat at sea"
