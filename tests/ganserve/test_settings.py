from pathlib import Path

import pytest
from pydantic import ValidationError

from ganserve import doctor
from ganserve.errors import ConfigError
from ganserve.settings import Settings


def test_defaults_need_no_environment():
    """An empty environment gives the defaults."""
    assert Settings.from_env({}) == Settings()


def test_every_setting_has_its_variable():
    """Each field is read from GANSERVE_ and its name in capitals."""
    environ = {
        "GANSERVE_ARTIFACT": "artifacts/x",
        "GANSERVE_DEVICE": "cpu",
        "GANSERVE_PRECISION": "float16",
        "GANSERVE_WORKERS": "2",
        "GANSERVE_THREADS": "3",
        "GANSERVE_MAX_BATCH_ROWS": "64",
        "GANSERVE_MAX_QUEUE_ROWS": "2000",
        "GANSERVE_MAX_REQUEST_ROWS": "100",
        "GANSERVE_MAX_DELAY_MS": "1.5",
        "GANSERVE_SPIN_US": "25",
        "GANSERVE_DEADLINE_MS": "500",
        "GANSERVE_MAX_BODY_BYTES": "4096",
        "GANSERVE_MAX_BODIES_BYTES": "8192",
        "GANSERVE_BODY_TIMEOUT_MS": "250",
        "GANSERVE_DRAIN_MS": "750",
        "GANSERVE_HEADER_TIMEOUT_MS": "125",
        "GANSERVE_MAX_CONNECTIONS": "9",
        "GANSERVE_TOKEN": "correct-horse-battery",
        "GANSERVE_ACCESS_LOG": "true",
        "PATH": "/bin",
    }
    settings = Settings.from_env(environ)
    assert {name.upper() for name in Settings.model_fields} == {
        name.removeprefix("GANSERVE_") for name in environ if name != "PATH"
    }
    assert settings == Settings(
        drain_ms=750.0,
        header_timeout_ms=125.0,
        max_connections=9,
        token="correct-horse-battery",
        access_log=True,
        artifact="artifacts/x",
        device="cpu",
        precision="float16",
        workers=2,
        threads=3,
        max_batch_rows=64,
        max_queue_rows=2000,
        max_request_rows=100,
        max_delay_ms=1.5,
        spin_us=25.0,
        deadline_ms=500.0,
        max_body_bytes=4096,
        max_bodies_bytes=8192,
        body_timeout_ms=250.0,
    )


def test_misspelt_variable_is_refused_with_the_nearest():
    """A variable that does not exist stops the server and names the one that was meant."""
    with pytest.raises(ConfigError, match="GANSERVE_MAX_BATCH_ROW is not a setting") as caught:
        Settings.from_env({"GANSERVE_MAX_BATCH_ROW": "8"})
    assert caught.value.hint == "did you mean GANSERVE_MAX_BATCH_ROWS?"


def test_far_off_variable_points_at_the_list():
    """A variable like none that exists still says where the settings are listed."""
    with pytest.raises(ConfigError, match="GANSERVE_QQQ is not a setting") as caught:
        Settings.from_env({"GANSERVE_QQQ": "8"})
    assert "ganserve doctor" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "0"),
        ("WORKERS", "two"),
        ("WORKERS", "1.5"),
        ("THREADS", "-1"),
        ("MAX_BATCH_ROWS", "4097"),
        ("MAX_QUEUE_ROWS", ""),
        ("MAX_DELAY_MS", "-1"),
        ("MAX_DELAY_MS", "nan"),
        ("DEADLINE_MS", "0"),
        ("DEADLINE_MS", "inf"),
        ("MAX_BODY_BYTES", "10"),
        ("DEVICE", "gpu"),
        ("ARTIFACT", ""),
    ],
)
def test_wrong_value_is_refused_by_name(name, value):
    """A value out of its range or type is refused, and the message has the variable and the value."""
    with pytest.raises(ConfigError, match=f"GANSERVE_{name}: .*, got '{value}'"):
        Settings.from_env({f"GANSERVE_{name}": value})


def test_all_faults_at_once():
    """Two wrong values are one message: nobody fixes them one start at a time."""
    with pytest.raises(ConfigError, match=r"GANSERVE_WORKERS.*; GANSERVE_DEADLINE_MS"):
        Settings.from_env({"GANSERVE_WORKERS": "x", "GANSERVE_DEADLINE_MS": "y"})


def test_request_that_no_queue_could_hold_is_refused():
    """A request limit above the queue's is a contradiction, named by both variables."""
    with pytest.raises(ConfigError, match=r"GANSERVE_MAX_REQUEST_ROWS \(20\) must not be above .*ROWS \(10\)"):
        Settings.from_env({"GANSERVE_MAX_REQUEST_ROWS": "20", "GANSERVE_MAX_QUEUE_ROWS": "10"})


def test_body_that_could_never_be_held_is_refused():
    """A body limit above that of all bodies together is a contradiction, named by both variables."""
    with pytest.raises(ConfigError, match=r"GANSERVE_MAX_BODY_BYTES \(4096\) must not be above .*BYTES \(2048\)"):
        Settings.from_env({"GANSERVE_MAX_BODY_BYTES": "4096", "GANSERVE_MAX_BODIES_BYTES": "2048"})


def test_variables_of_a_kubernetes_service_are_not_ours():
    """A Kubernetes service called "ganserve" puts GANSERVE_PORT into every pod; the server still starts."""
    injected = {
        "GANSERVE_SERVICE_HOST": "10.0.0.7",
        "GANSERVE_SERVICE_PORT": "3000",
        "GANSERVE_SERVICE_PORT_HTTP": "3000",
        "GANSERVE_PORT": "tcp://10.0.0.7:3000",
        "GANSERVE_PORT_3000_TCP": "tcp://10.0.0.7:3000",
        "GANSERVE_PORT_3000_TCP_PROTO": "tcp",
        "GANSERVE_PORT_3000_TCP_PORT": "3000",
        "GANSERVE_PORT_3000_TCP_ADDR": "10.0.0.7",
    }
    assert Settings.from_env(injected) == Settings()


def test_port_given_by_hand_is_refused():
    """GANSERVE_PORT=8080 is somebody's wish, and one that nothing here grants."""
    with pytest.raises(ConfigError, match="GANSERVE_PORT is not a setting"):
        Settings.from_env({"GANSERVE_PORT": "8080"})


def test_settings_cannot_change():
    """Settings are read once."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().workers = 2


@pytest.mark.parametrize("token", ["short", "", "with a blank in the middle", "ümlaut-is-not-ascii", "x" * 5000])
def test_weak_tokens_are_refused(token):
    """A token that could be guessed, or not be sent, is refused, and the message does not repeat it."""
    with pytest.raises(ConfigError, match="GANSERVE_TOKEN: 16 or more") as caught:
        Settings.from_env({"GANSERVE_TOKEN": token})
    assert not token or token not in str(caught.value)


def test_token_is_not_shown():
    """Whoever prints the settings does not print the token."""
    settings = Settings.from_env({"GANSERVE_TOKEN": "correct-horse-battery"})
    assert "correct" not in f"{settings} {settings!r} {settings.token}"


def test_the_documented_table_is_this_one(monkeypatch):
    """docs/http.md lists every setting with its default and description, in order, and the doctor prints as many."""
    monkeypatch.setattr("os.environ", {"PATH": "/bin"})
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    documented = [line for line in page.splitlines() if line.startswith("| `GANSERVE_")]
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `GANSERVE_{name.upper()}` | {default} | {field.description} |")
    assert documented == rows
    printed = [(name, value) for name, value, _ in doctor.examine().settings]
    assert printed == [
        (f"GANSERVE_{name.upper()}", "" if field.default is None else str(field.default))
        for name, field in Settings.model_fields.items()
    ]
