"""What an operator may set, where, and what is refused."""

from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.settings import PREFIX, Settings, read_settings, service_links


def test_without_anything_all_have_their_defaults() -> None:
    assert read_settings({}, {}) == Settings()


def test_the_command_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('port = 1\nhost = "::1"\nmax_images = 3\n')
    environ = {"FEATUREMAPS_PORT": "2", "FEATUREMAPS_HOST": "127.0.0.2", "FEATUREMAPS_CONFIG": str(config)}
    settings = read_settings({"port": "3"}, environ)
    assert (settings.port, settings.host, settings.max_images) == (3, "127.0.0.2", 3)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_can_be_given_in_the_environment(name: str) -> None:
    default = getattr(Settings(), name)
    somewhere = "http://somewhere" if name == "trace_endpoint" else "somewhere"
    text = str(default) if default not in ((), "") else somewhere
    expected = (Path(text),) if name == "models" else {(): (text,), "": text}.get(default, default)
    assert getattr(read_settings({}, {PREFIX + name.upper(): text}), name) == expected


def test_an_address_in_the_environment_is_taken_as_any_other_value() -> None:
    """Only FEATUREMAPS_PORT with an address is Kubernetes' own."""
    store = "redis://cache:6379/0"
    assert read_settings({}, {"FEATUREMAPS_IMAGE_STORE": store}).image_store == store


def test_several_repositories_stand_in_one_variable() -> None:
    assert read_settings({}, {"FEATUREMAPS_MODELS": "/a:/b"}).models == (Path("/a"), Path("/b"))


@pytest.mark.parametrize(("value", "models"), [("", ()), (":", ()), ("/a::", (Path("/a"),))])
def test_nothing_given_is_not_the_working_directory(value: str, models: tuple[Path, ...]) -> None:
    """As a compose file with `${MODELS:-}` gives it."""
    assert read_settings({}, {"FEATUREMAPS_MODELS": value}).models == models


@pytest.mark.parametrize("variable", ["FEATUREMAPS_PROT", "FEATUREMAPS_MAX_BODY", "FEATUREMAPS_"])
def test_a_misspelt_variable_is_an_error(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        read_settings({}, {variable: "1"})


def test_the_key_that_a_client_sends_is_no_setting() -> None:
    assert read_settings({}, {"FEATUREMAPS_KEY": "featuremaps_token"}) == Settings()


def test_keys_as_they_are_stored_under_the_name_of_a_clients_are_not_passed_over() -> None:
    stored = f"ann:infer:{'0' * 64}"
    with pytest.raises(ConfigurationError, match="FEATUREMAPS_KEYS") as refusal:
        read_settings({}, {"FEATUREMAPS_KEY": stored})
    assert stored not in str(refusal.value)


def test_a_misspelt_key_of_the_file_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("prot = 1\n")
    with pytest.raises(ConfigurationError, match="prot"):
        read_settings({"config": config}, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "tcp"),
        ("max_images", "0"),
        ("max_timeout_s", "inf"),
        ("load", "sometimes"),
    ],
)
def test_a_value_out_of_bounds_is_an_error_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"setting {name}") as refusal:
        read_settings({name: value}, {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "variable",
    [
        "FEATUREMAPS_SERVICE_HOST",
        "FEATUREMAPS_SERVICE_PORT_HTTP",
        "FEATUREMAPS_PORT_8000_TCP",
        "FEATUREMAPS_PORT_8000_TCP_ADDR",
        "FEATUREMAPS_PREDICTOR_SERVICE_HOST",
        "FEATUREMAPS_REDIS_SERVICE_PORT_CLIENT",
        "FEATUREMAPS_REDIS_PORT_6379_TCP_PROTO",
    ],
)
def test_kubernetes_service_links_are_ignored(variable: str) -> None:
    assert read_settings({}, {variable: "10.0.0.1"}) == Settings()
    assert service_links({variable: "10.0.0.1", "FEATUREMAPS_PORT": "1", "PATH": ""}) == [variable]


@pytest.mark.parametrize(
    "variable", ["FEATUREMAPS_SERVICE_NAME", "FEATUREMAPS_PORT_NAME", "FEATUREMAPS_REDIS_PORT"]
)
def test_what_only_resembles_a_service_link_is_no_setting(variable: str) -> None:
    with pytest.raises(ConfigurationError, match="is no setting"):
        read_settings({}, {variable: "8000"})


def test_a_service_link_that_looks_like_the_port_is_ignored() -> None:
    ports = ("FEATUREMAPS_PORT", "FEATUREMAPS_REDIS_PORT")
    assert read_settings({}, dict.fromkeys(ports, "tcp://10.0.0.1:9000")).port == 8000


@pytest.mark.parametrize("content", ["port = ", b"\xff"])
def test_a_file_that_is_no_toml_is_an_error(tmp_path: Path, content: str | bytes) -> None:
    config = tmp_path / "settings.toml"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match="TOML"):
        read_settings({"config": str(config)}, {})
