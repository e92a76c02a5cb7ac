"""Settings: read from the environment once, refused loudly and without quoting secrets."""

import ipaddress

import certifi
import pytest

from service.model.errors import SettingsError
from service.settings import VARIABLES, Settings, read_settings, unknown_variables
from service.telemetry.redact import REDACTED, Redactor

KEY = "0123456789abcdef" * 2
OTHER_KEY = "fedcba9876543210" * 3
BASE = {"GENHOOK_SECRET_KEYS": KEY}


def test_a_secret_key_is_all_that_must_be_given() -> None:
    assert read_settings(BASE) == Settings(secret_keys=(KEY,))


def test_without_a_secret_key_the_service_does_not_start() -> None:
    with pytest.raises(SettingsError, match="GENHOOK_SECRET_KEYS is not set"):
        read_settings({})
    with pytest.raises(SettingsError, match="GENHOOK_SECRET_KEYS is not set"):
        read_settings({"GENHOOK_SECRET_KEYS": ""})


GOOD = {
    "GENHOOK_DATABASE_URL": ("sqlite:////var/lib/genhook.db", "/var/lib/genhook.db"),
    "GENHOOK_DATABASE_CONNECTIONS": ("5", 5),
    "GENHOOK_PUBLIC_URL": ("https://hooks.example/base/", "https://hooks.example/base"),
    "GENHOOK_SECRET_KEYS": (f"{KEY}, {OTHER_KEY}", (KEY, OTHER_KEY)),
    "GENHOOK_ADMIN_KEY": (f"ghk_{OTHER_KEY}", f"ghk_{OTHER_KEY}"),
    "GENHOOK_UPSTREAM_URL": ("https://up.example", "https://up.example/api/v1"),
    "GENHOOK_UPSTREAM_API_KEY": ("aio_1234", "aio_1234"),
    "GENHOOK_CALLBACK_TRUST": ("body", "body"),
    "GENHOOK_SAFETY_POLL_SECONDS": ("0.5", 0.5),
    "GENHOOK_SUBMIT_WAIT_SECONDS": ("0", 0.0),
    "GENHOOK_WORKER": ("off", "off"),
    "GENHOOK_WORK_PORT": ("9100", 9100),
    "GENHOOK_ALLOW_HTTP": ("TRUE", True),
    "GENHOOK_ALLOW_NETWORKS": (
        "127.0.0.0/8, ::1/128",
        (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")),
    ),
    "GENHOOK_HTTP_PROXY": ("http://proxy.example:3128", "http://proxy.example:3128"),
    "GENHOOK_CA_FILE": (certifi.where(), certifi.where()),
    "GENHOOK_HOST": ("0.0.0.0", "0.0.0.0"),  # noqa: S104
    "PORT": ("0", 0),
    "GENHOOK_LOG_LEVEL": ("debug", "debug"),
    "GENHOOK_OPEN_DOCS": ("no", False),
    "GENHOOK_OPEN_METRICS": ("0", False),
    "GENHOOK_CALLBACK_BODY_BYTES": ("1024", 1_024),
    "GENHOOK_REQUEST_BODY_BYTES": ("67108864", 67_108_864),
    "GENHOOK_UPSTREAM_BODY_BYTES": ("2048", 2_048),
    "GENHOOK_UPSTREAM_TIMEOUT_SECONDS": ("0.1", 0.1),
    "GENHOOK_WRITE_QUEUE": ("1", 1),
    "GENHOOK_POLL_RATE_PER_SECOND": ("0.01", 0.01),
    "GENHOOK_DEADLINE_SECONDS": ("60", 60),
    "GENHOOK_ATTEMPT_TIMEOUT_SECONDS": ("120", 120.0),
    "GENHOOK_MAX_IN_FLIGHT": ("1", 1),
    "GENHOOK_CONNECTIONS_MAX": ("16", 16),
    "GENHOOK_HEAD_SECONDS": ("0.1", 0.1),
    "GENHOOK_BODY_SECONDS": ("600", 600.0),
    "GENHOOK_DRIVE_SECONDS": ("0", 0.0),
    "GENHOOK_SHUTDOWN_SECONDS": ("0", 0.0),
    "GENHOOK_RETENTION_DAYS": ("1", 1),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_value_is_read(name: str) -> None:
    text, value = GOOD[name]
    field = VARIABLES[name]
    assert getattr(read_settings({**BASE, name: text}), field) == value


def test_every_setting_has_a_variable_and_the_other_way_round() -> None:
    assert set(VARIABLES.values()) == set(Settings.__struct_fields__)
    pairs = {"GENHOOK_UPSTREAM_SIGNATURE", "GENHOOK_UPSTREAM_SIGNATURE_SECRET"}  # Shown below.
    assert set(VARIABLES) == set(GOOD) | pairs


BAD = [
    ("GENHOOK_DATABASE_URL", "mysql://x/y"),
    ("GENHOOK_DATABASE_URL", "sqlite:///"),
    ("GENHOOK_DATABASE_URL", "genhook.db"),
    ("GENHOOK_DATABASE_URL", "sqlite:///:memory:"),
    ("GENHOOK_CA_FILE", "/nowhere/ca.pem"),
    ("GENHOOK_CA_FILE", __file__),
    ("GENHOOK_PUBLIC_URL", "hooks.example"),
    ("GENHOOK_PUBLIC_URL", "ftp://hooks.example"),
    ("GENHOOK_PUBLIC_URL", "https://user:hush-hush@hooks.example"),
    ("GENHOOK_PUBLIC_URL", "https://:hush-hush@hooks.example"),
    ("GENHOOK_PUBLIC_URL", "https://hooks.example/?a=1"),
    ("GENHOOK_PUBLIC_URL", "https://hooks.example/#a"),
    ("GENHOOK_PUBLIC_URL", "https://hooks.example:99999"),
    ("GENHOOK_PUBLIC_URL", "https://hooks.example/a b"),
    ("GENHOOK_PUBLIC_URL", "https://[::1"),
    ("GENHOOK_PUBLIC_URL", "http://hooks.example"),
    ("GENHOOK_PUBLIC_URL", "http://127.hooks.example"),
    ("GENHOOK_UPSTREAM_URL", "http://up.example/api/v1"),
    ("GENHOOK_UPSTREAM_URL", "HTTP://up.example/api/v1"),
    ("GENHOOK_PUBLIC_URL", "hTTp://hooks.example"),
    ("GENHOOK_SECRET_KEYS", "hush-hush"),
    ("GENHOOK_SECRET_KEYS", f"{KEY},hush-hush"),
    ("GENHOOK_SECRET_KEYS", f"{KEY},"),
    ("GENHOOK_SECRET_KEYS", "k" * 64),
    ("GENHOOK_SECRET_KEYS", f"{KEY},{'hush-hu' * 9}"),
    ("GENHOOK_ADMIN_KEY", "ghk_" + "k" * 64),
    ("GENHOOK_DATABASE_URL", "postgresql://app:hush-hush@[::1/genhook"),
    ("GENHOOK_DATABASE_URL", "postgres://app:hush-hush@db:port/genhook"),
    ("GENHOOK_DATABASE_URL", "postgres://app:hush-hush#1@db/genhook"),
    ("GENHOOK_DATABASE_URL", "postgres://app:hush-hush/1@db/genhook"),
    ("GENHOOK_DATABASE_URL", "postgresql://app:hush-hush@a:1,b:port/genhook"),
    ("GENHOOK_DATABASE_URL", "postgresql://app:hush-hush@a,b/genhook?target_session_attrs=standby"),
    ("GENHOOK_DATABASE_URL", "postgresql://app:hush-hush@x@a:1,b:2/genhook"),
    ("GENHOOK_ADMIN_KEY", "hush-hush" * 9),
    ("GENHOOK_ADMIN_KEY", "ghk_hush-hush"),
    ("GENHOOK_ADMIN_KEY", "ghk_hush-hush" + "ä" * 40),
    ("GENHOOK_ADMIN_KEY", "ghk_hush-hush" + "a" * 40 + "\n"),
    ("GENHOOK_UPSTREAM_API_KEY", "aio_hush-hush\r\nx: y"),
    ("GENHOOK_UPSTREAM_API_KEY", "aio_123"),
    ("GENHOOK_UPSTREAM_SIGNATURE_SECRET", "hush-hu"),
    ("GENHOOK_UPSTREAM_SIGNATURE", "rot13"),
    ("GENHOOK_CALLBACK_TRUST", "blind"),
    ("GENHOOK_SAFETY_POLL_SECONDS", "nan"),
    ("GENHOOK_SAFETY_POLL_SECONDS", "0"),
    ("GENHOOK_SAFETY_POLL_SECONDS", "soon"),
    ("GENHOOK_SUBMIT_WAIT_SECONDS", "-1"),
    ("GENHOOK_WORKER", "on"),
    ("GENHOOK_ALLOW_HTTP", "maybe"),
    ("GENHOOK_ALLOW_NETWORKS", "10.0.0.1/8"),
    ("GENHOOK_ALLOW_NETWORKS", "here"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "८०"),
    ("GENHOOK_LOG_LEVEL", "loud"),
    ("GENHOOK_CALLBACK_BODY_BYTES", "1023"),
    ("GENHOOK_WRITE_QUEUE", "0"),
    ("GENHOOK_POLL_RATE_PER_SECOND", "inf"),
    ("GENHOOK_DEADLINE_SECONDS", "1.5"),
    ("GENHOOK_UPSTREAM_URL", "https://a..b"),
    ("GENHOOK_UPSTREAM_URL", f"https://{'a' * 70}"),
]
NO_NUMBERS = [
    "1_0",
    "\u0661\u0662",
    " 20\n",
    "20\n",
    " 20",
    "+20",
    "2e1",
    "20.",
    ".5",
    "0x14",
    "20,0",
]
NUMBERS = [name for name, (_, value) in GOOD.items() if type(value) in (int, float)]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_refused_in_a_sentence_that_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings({**BASE, name: text})
    said = str(refusal.value)
    assert said.startswith(f"{name} must ")
    assert "hush-hush" not in said
    assert said.endswith(".")
    assert "could not convert" not in said


@pytest.mark.parametrize("name", NUMBERS)
def test_only_ascii_digits_with_a_fraction_are_a_number(name: str) -> None:
    for text in NO_NUMBERS:
        with pytest.raises(SettingsError, match=f"^{name} must be a"):
            read_settings({**BASE, name: text})


def test_every_wrong_variable_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings({**BASE, "PORT": "x", "GENHOOK_MAX_IN_FLIGHT": "0"})
    named = [problem.split()[0] for problem in refusal.value.problems]
    assert named == ["PORT", "GENHOOK_MAX_IN_FLIGHT"]
    assert str(refusal.value) == " ".join(refusal.value.problems)


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert read_settings({**dict.fromkeys(VARIABLES, ""), **BASE}) == read_settings(BASE)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:80"])
def test_plain_http_is_good_enough_for_this_machine(url: str) -> None:
    assert read_settings({**BASE, "GENHOOK_PUBLIC_URL": url}).public_url == url


def test_plain_http_elsewhere_has_to_be_allowed() -> None:
    environ = {**BASE, "GENHOOK_PUBLIC_URL": "http://hooks.example", "GENHOOK_ALLOW_HTTP": "yes"}
    assert read_settings(environ).public_url == "http://hooks.example"


def test_a_signature_and_its_secret_go_together() -> None:
    scheme = {"GENHOOK_UPSTREAM_SIGNATURE": "standard"}
    secret = {"GENHOOK_UPSTREAM_SIGNATURE_SECRET": "whsec_aHVzaC1odXNo"}
    for half in (scheme, secret):
        with pytest.raises(SettingsError, match="go together"):
            read_settings({**BASE, **half})
    assert read_settings({**BASE, **scheme, **secret}).upstream_signature == "standard"


def test_the_admin_key_must_not_be_a_secret_key_too() -> None:
    key = f"ghk_{OTHER_KEY}"
    keys = {"GENHOOK_SECRET_KEYS": f"{KEY},{key}", "GENHOOK_ADMIN_KEY": key}
    with pytest.raises(SettingsError, match="GENHOOK_ADMIN_KEY is also one of"):
        read_settings(keys)


def test_no_password_of_a_postgresql_url_is_shown() -> None:
    url = "postgresql://app:hush-%68ush@db:1/genhook?password=second-one&sslpassword=third-one"
    settings = read_settings({**BASE, "GENHOOK_DATABASE_URL": url})
    assert settings.is_postgres
    assert settings.database_name == "postgresql://db:1/genhook"
    assert {"hush-hush", "second-one", "third-one"} <= set(settings.secrets)
    assert "hush" not in repr(settings)


def test_a_short_password_of_the_database_is_not_cut_out_of_results() -> None:
    url = "postgresql://app:test@db/genhook?password=example&sslpassword=latest-"
    settings = read_settings({**BASE, "GENHOOK_DATABASE_URL": url})
    redactor = Redactor(settings.secrets, settings.public_url)
    output = {"files": [{"url": "https://cdn.example/latest/1.png"}]}
    assert redactor.json(output) == output
    assert redactor.text("test example latest-") == "test example latest-"
    assert redactor.text(KEY) == REDACTED


def test_no_password_of_a_url_with_several_hosts_is_shown() -> None:
    url = "postgresql://app:hush-%40hush@a:1,[::1]:2,c/genhook?target_session_attrs=read-write"
    settings = read_settings({**BASE, "GENHOOK_DATABASE_URL": url})
    assert settings.database_name == "postgresql://a:1,[::1]:2,c/genhook"
    assert "hush-@hush" in settings.secrets
    assert "hush" not in repr(settings)


def test_a_url_for_another_library_is_told_what_it_must_look_like() -> None:
    with pytest.raises(SettingsError, match="must look like sqlite"):
        read_settings({**BASE, "GENHOOK_DATABASE_URL": "postgresql+asyncpg://db/genhook"})


def test_overrides_come_before_the_environment() -> None:
    assert read_settings({**BASE, "PORT": "1"}, port=2).port == 2
    assert read_settings({}, secret_keys=(KEY,)).secret_keys == (KEY,)


def test_settings_shown_by_accident_show_no_secret() -> None:
    shown = repr(
        read_settings(
            {
                **BASE,
                "GENHOOK_ADMIN_KEY": f"ghk_{OTHER_KEY}",
                "GENHOOK_UPSTREAM_API_KEY": "aio_hush-hush",
                "GENHOOK_UPSTREAM_SIGNATURE": "kie",
                "GENHOOK_UPSTREAM_SIGNATURE_SECRET": "hush-hush",
            }
        )
    )
    assert "genhook.db" in shown
    for secret in (KEY, OTHER_KEY, "hush-hush"):
        assert secret not in shown


def test_a_slip_of_the_pen_is_noticed() -> None:
    environ = {**BASE, "GENHOOK_PUBLIC_UR": "x", "GENHOOK_ALOW_HTTP": "1", "HOME": "/", "PORT": "1"}
    environ |= {"GENHOOK_URL": "x", "GENHOOK_API_KEY": "x"}  # The command line reads these.
    assert unknown_variables(environ) == ["GENHOOK_ALOW_HTTP", "GENHOOK_PUBLIC_UR"]
