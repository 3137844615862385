"""A parameter is declared once: every surface has its bounds, choices, default and description from there."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from deploy.write_openapi import PAGE_PARAMETERS, page_parameters
from service.cli.program import main
from service.declarations import read, schema_of
from service.errors import InvalidParameter
from service.output.pictures import check, draw
from service.output.pictures.colormaps import find_colormap
from service.output.pictures.files import FILES
from service.output.table import FORMATS
from service.parameters import Drawing, Reduction
from service.web import queries
from service.web.queries import FeaturesQuery, LayersQuery, RenderQuery
from service.web.static_files import FOLDER
from service.web.v2.schemas import OutputParameters, RequestParameters
from tests.output.pictures.maps import feature_map, layer

LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern")
DECLARED = {**schema_of(Reduction), **schema_of(Drawing)}
COMMANDS = {"layers": LayersQuery, "extract": FeaturesQuery, "render": RenderQuery}
OWN_TYPES = (click.Choice, click.IntRange, click.FloatRange)
# What a parameter needs beside it in a drawing.
ALSO: Mapping[str, Mapping[str, Any]] = {
    "channel": {"style": "channel"},
    "target": {"style": "cam"},
    "vmin": {"normalize": "fixed", "vmax": 0.0},
    "vmax": {"normalize": "fixed", "vmin": 0.0},
    "image_weight": {"style": "overlay"},
}


def bounds() -> list[tuple[str, float, float]]:
    """(name, bound, the next value outside) of every number of a drawing."""
    found = []
    for name, told in schema_of(Drawing).items():
        step = 1 if told.get("type") == "integer" else 1e30 if name.startswith("v") else 0.01
        found += [(name, told[key], told[key] + sign * step) for key, sign in SIGNS.items() if key in told]
    return found


SIGNS = {"minimum": -1, "maximum": 1}


@pytest.mark.parametrize(("name", "bound", "outside"), bounds())
def test_every_surface_has_the_same_bounds(name: str, bound: float, outside: float) -> None:
    also = ALSO.get(name, {})
    surfaces: list[Callable[[float], Any]] = [
        lambda value: read(RenderQuery, {name: str(value)}),
        lambda value: read(RenderQuery, {name: value}, strict=True),
        lambda value: check(layer(), Drawing(**{**also, name: value})),
    ]
    for surface in surfaces[:2]:
        surface(bound)
    for surface in surfaces:
        with pytest.raises(InvalidParameter, match=f"^{name}=") as refused:
            surface(outside)
        assert refused.value.extensions["parameter"] == name
    option = f"--{name.replace('_', '-')}={outside}"
    done = CliRunner().invoke(main, ["render", "small", "stem/relu", __file__, option])
    assert (done.exit_code, name in done.output) == (2, True)


def test_a_grid_is_drawn_at_the_bounds() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    assert draw(feature_map(values), Drawing(clip=99, columns=4096, scale=1)).body
    assert draw(feature_map(values), Drawing(clip=99, normalize="channel")).body


def query_classes() -> list[type]:
    return [kind for name, kind in vars(queries).items() if name.endswith("Query")]


@pytest.mark.parametrize("kind", [*query_classes(), RequestParameters, OutputParameters])
def test_no_operation_changes_a_declaration(kind: type) -> None:
    declared, groups = schema_of(kind).items(), list[Any]((Reduction, Drawing))
    for group in groups:
        if issubclass(kind, group):
            assert declared >= schema_of(group).items()


def resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with what it refers to, and without null."""
    parts = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    merged = {k: v for part in [schema, *parts, *schema.get("allOf", ())] for k, v in part.items()}
    if "$ref" in merged:
        merged |= document["components"]["schemas"][merged["$ref"].rsplit("/", 1)[1]]
    return merged


def documented(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(name, schema, declaration) of each parameter of a drawing or reduction in queries and bodies."""
    for path, operations in document["paths"].items():
        declared = schema_of(Drawing if path.endswith("/render") else FeaturesQuery)
        for operation in operations.values():
            for told in operation.get("parameters", ()):
                if told["in"] == "query" and told["name"] in DECLARED and "/filters" not in path:
                    yield told["name"], told["schema"], {**DECLARED, **declared}
    for body, kind in (("RenderBody", RenderQuery), ("FeaturesBody", FeaturesQuery)):
        for name, told in document["components"]["schemas"][body]["properties"].items():
            if name in schema_of(kind):
                yield name, told, schema_of(kind)


def test_openapi_has_the_declared_bounds_and_choices(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    found = list(documented(document))
    assert {name for name, _, _ in found} >= set(DECLARED)
    for name, schema, declared in found:
        shown = resolved(document, schema)
        for key in (*LIMITS, "enum"):
            assert shown.get(key) == declared[name].get(key), (name, key)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_the_command_say_and_allow_what_is_declared(command: str) -> None:
    options = {option.name: option for option in main.commands[command].params}
    declared = schema_of(COMMANDS[command])
    shared = declared.keys() & {name for name, option in options.items() if isinstance(option, click.Option)}
    assert shared >= declared.keys() - {"version", "timeout_s", "layer"}
    for name in shared:
        option = options[name]
        assert isinstance(option, click.Option)
        assert not isinstance(option.type, OWN_TYPES)
        # Not given is left to the declaration.
        assert option.to_info_dict()["default"] in (None, ())
        assert declared[name]["description"] in str(option.help)


def test_the_page_has_what_is_declared() -> None:
    assert PAGE_PARAMETERS.read_text("utf-8") == page_parameters(), "make openapi rewrites it"
    (drawing,) = re.findall(r"export const DRAWING = (\{.*?\n\});", page_parameters(), re.DOTALL)
    assert json.loads(drawing).keys() == schema_of(Drawing).keys()


@pytest.mark.parametrize("path", sorted((FOLDER / "page").glob("*.js")), ids=lambda path: path.name)
def test_a_script_of_the_page_has_no_bounds_or_choices_of_its_own(path: Any) -> None:
    if path == PAGE_PARAMETERS:
        return
    text = path.read_text("utf-8")
    assert re.findall(r"\b(?:min|max|minimum|maximum): *-?[\d.]", text) == []
    choices = {name: set(told["enum"]) for name, told in DECLARED.items() if "enum" in told}
    choices |= {"format": set(FORMATS), "colormap": set(schema_of(Drawing)["colormap"]["examples"])}
    for listed in re.findall(r"\[([^\[\]{}()]*)\]", text):
        words = set(re.findall(r'"([^"]*)"', listed))
        assert [name for name, allowed in choices.items() if len(words) > 1 and words <= allowed] == []


def test_each_choice_is_implemented() -> None:
    assert schema_of(FeaturesQuery)["format"]["enum"] == list(FORMATS)
    assert schema_of(Drawing)["format"]["enum"] == list(FILES)
    for name in schema_of(Drawing)["colormap"]["examples"]:
        assert find_colormap(name)


def test_an_unknown_name_is_refused_with_all_that_there_are() -> None:
    with pytest.raises(InvalidParameter, match=r"'vresion'; there are: version, layers, size$"):
        read(LayersQuery, {"vresion": "1"})
