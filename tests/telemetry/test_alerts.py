"""`deploy/alerts.yaml`: promtool evaluates each alert over four processes; a page explains it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry import metrics
from tests import programs

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/alerts.yaml"
ALERTS: dict[str, str] = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
PAGE = (ROOT / "docs/operations.md").read_text("utf-8")
# Two processes that serve and two that work; a backlog is what all of them read from the database.
PROCESSES = {"a:1": "web", "b:1": "web", "c:1": "worker", "d:1": "worker"}
Series = dict[str, str]  # By what is within the braces besides job, instance and role.
QUIET: dict[str, dict[str, Series]] = {
    "up": {"": dict.fromkeys(PROCESSES, "1x90")},
    "genhook_shards": {"": {"a:1": "0x90", "b:1": "0x90", "c:1": "40x90", "d:1": "24x90"}},
    "genhook_write_queue": {"": dict.fromkeys(PROCESSES, "400x90")},
    "genhook_callbacks_total": {
        'verdict="not_stored"': {"a:1": "0x90"},
        'verdict="rejected"': {"a:1": "0+1x90", "b:1": "0x90"},
        'verdict="accepted"': {"a:1": "0+60x90", "b:1": "0x90"},
    },
    "genhook_generations_ended_total": {
        'status="succeeded"': {"c:1": "0+60x90", "d:1": "0+10x90"},
        'status="timed_out"': {"c:1": "0+1x90"},
    },
    "genhook_submissions_total": {'outcome="lost"': {"a:1": "0x90"}},
    "genhook_polls_total": {
        'outcome="processing"': {"c:1": "0+60x90", "d:1": "0+60x90"},
        'outcome="unwell"': {"c:1": "0+60x90"},
        'outcome="throttled"': {"d:1": "0x90"},
    },
    "genhook_unknown_words_total": {"": dict.fromkeys(PROCESSES, "0x90")},
    "genhook_troubled_routes_total": {"": dict.fromkeys(PROCESSES, "0x90")},
    "genhook_subscriber_oldest_undelivered_seconds": {
        'subscriber_id="sub_1"': dict.fromkeys(PROCESSES, "1200x90")
    },
    "genhook_attempts_total": {'outcome="dead"': {"c:1": "0x90"}},
    "genhook_log_lines_dropped_total": {"": dict.fromkeys(PROCESSES, "0x90")},
}
# What changes for an alert to fire, of one process only, and the labels of the alert.
LOUD: dict[str, tuple[str, str, Series, dict[str, str]]] = {
    "GenhookDown": ("up", "", {"b:1": "1x80 0x10"}, {"instance": "b:1", "role": ""}),
    "GenhookShardsFree": ("genhook_shards", "", {"d:1": "24x80 0x10"}, {}),
    "GenhookWriteQueueLong": (
        *("genhook_write_queue", "", {"a:1": "2000x90"}),
        {"instance": "a:1", "role": "web"},
    ),
    "GenhookCallbacksNotStored": (
        *("genhook_callbacks_total", 'verdict="not_stored"', {"a:1": "0x86 1x4"}),
        {},
    ),
    "GenhookCallbacksRejected": (
        *("genhook_callbacks_total", 'verdict="rejected"', {"b:1": "0+2x90"}),
        {},
    ),
    "GenhookCallbacksMissing": (
        *("genhook_callbacks_total", 'verdict="accepted"', {"a:1": "600x90"}),
        {},
    ),
    "GenhookSubmissionsLost": (
        *("genhook_submissions_total", 'outcome="lost"', {"a:1": "0x80 1x10"}),
        {},
    ),
    "GenhookUpstreamUnwell": (
        *("genhook_polls_total", 'outcome="throttled"', {"d:1": "0+100x90"}),
        {},
    ),
    "GenhookUpstreamChanged": ("genhook_troubled_routes_total", "", {"d:1": "0x80 1x10"}, {}),
    "GenhookGenerationsTimedOut": (
        *("genhook_generations_ended_total", 'status="timed_out"', {"c:1": "0+9x90"}),
        {},
    ),
    "GenhookSubscriberBehind": (
        "genhook_subscriber_oldest_undelivered_seconds",
        'subscriber_id="sub_1"',
        dict.fromkeys(PROCESSES, "3700x90"),
        {"subscriber_id": "sub_1"},
    ),
    "GenhookDeliveriesDead": (
        *("genhook_attempts_total", 'outcome="dead"', {"c:1": "0x86 1x4"}),
        {},
    ),
    "GenhookLogLinesDropped": (
        *("genhook_log_lines_dropped_total", "", {"d:1": "0x86 5x4"}),
        {"role": "worker"},
    ),
}


def series(name: str = "", labels: str = "", changed: Series | None = None) -> list[dict[str, str]]:
    """The samples of 90 minutes, one each, with those of one metric changed."""
    found = []
    for metric, by_labels in QUIET.items():
        for own, values in by_labels.items():
            is_changed = (metric, own) == (name, labels)
            for instance, value in (values | (changed or {} if is_changed else {})).items():
                role = f'role="{PROCESSES[instance]}"' if metric != "up" else ""
                parts = ['job="genhook"', f'instance="{instance}"', role, own]
                inner = ",".join(filter(None, parts))
                found.append({"series": f"{metric}{{{inner}}}", "values": value})
    return found


def case(alert: str, *, fires: bool) -> dict[str, Any]:
    name, labels, changed, own = LOUD[alert]
    expected = {"job": "genhook", **{label: value for label, value in own.items() if value}}
    return {
        "interval": "1m",
        "input_series": series(name, labels, changed) if fires else series(),
        "alert_rule_test": [
            {
                "eval_time": "90m",
                "alertname": alert,
                "exp_alerts": [{"exp_labels": expected}] if fires else [],
            }
        ],
    }


def promtool(folder: Path, cases: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    program = programs.find("promtool", package="prometheus")
    path = folder / "cases.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": cases}), "utf-8")
    line = [program, "test", "rules", str(path)]
    return subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603


def test_each_alert_fires_for_one_of_four_processes_and_is_quiet_otherwise(tmp_path: Path) -> None:
    assert LOUD.keys() == ALERTS.keys()
    cases = [case(alert, fires=fires) for alert in ALERTS for fires in (True, False)]
    done = promtool(tmp_path, cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_does_not_fire_fails_its_case(tmp_path: Path) -> None:
    silent = case("GenhookDown", fires=True) | {"input_series": series()}
    assert promtool(tmp_path, [silent]).returncode == 1


def names_of(metric: metrics.Numbers | metrics.Histogram) -> str:
    return f"{metric.name}_total" if metric.kind == "Counter" else metric.name


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_of_metrics_and_labels_that_there_are(alert: str) -> None:
    known = {names_of(metric): {*metric.labels, "role"} for metric in metrics._ALL}
    values = {
        value for one in metrics._ALL if isinstance(one, metrics.Numbers) for value in one.values
    }
    used = re.findall(r"(genhook_\w+)(?:\{(\w+)=~?\"([^\"]+)\"\})?", ALERTS[alert])
    assert used or alert == "GenhookDown"
    for name, label, wanted in used:
        assert name in known
        if label:
            assert label in known[name]
            assert {(value,) for value in wanted.split("|")} <= values


def test_the_queries_of_the_page_are_of_metrics_that_there_are(tmp_path: Path) -> None:
    [block] = re.findall(r"(?s)```promql\n(.*?)```", PAGE)
    queries = block.splitlines()
    known = {names_of(metric) for metric in metrics._ALL} | {"genhook_attempt_seconds_bucket"}
    assert set(re.findall(r"genhook_\w+", block)) <= known
    rules = [{"record": f"query:{at}", "expr": query} for at, query in enumerate(queries)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": rules}]}), "utf-8")
    line = [programs.find("promtool", package="prometheus"), "check", "rules", str(path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_says_of_each_alert_what_it_means_and_what_to_do() -> None:
    rows = re.findall(r"(?m)^\| `(Genhook\w+)` \| ([^|]+) \| ([^|]+) \|$", PAGE)
    assert [name for name, *_ in rows] == list(ALERTS)
    assert all(len(meaning) > 20 and len(act) > 20 for _, meaning, act in rows)


def test_a_counter_that_an_alert_reads_starts_at_zero() -> None:
    """The first sample of a series is no increase."""
    code = "from service.telemetry import metrics; print(metrics.render('web').decode())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    for expr in ALERTS.values():
        for name, label, values in re.findall(r"(genhook_\w+_total)\{(\w+)=~?\"([^\"]+)\"\}", expr):
            for value in values.split("|"):
                labels = ",".join(sorted((f'{label}="{value}"', 'role="web"')))
                assert f"{name}{{{labels}}} 0.0" in done.stdout
