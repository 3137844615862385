"""From words to layers."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.selection import LayerTable
from service.errors import InvalidParameter, LayerNotFound
from service.values import Layer, ReceptiveField

NAMES = ("conv", "relu1", "/layer1/relu", "/layer1/add", "a,b", "all*", "op:Odd", "logits")


def layer(name: str, index: int, op: str = "Relu", reduction: int = 2, stage: int | None = None) -> Layer:
    pair = (Fraction(reduction), Fraction(reduction))
    return Layer(
        name=name,
        index=index,
        node=f"n{index}",
        op=op,
        shape=(1, 2, 3, 3),
        dtype="float32",
        layout="NCHW",
        channel_axis=1,
        batch_axis=0,
        channels=2,
        reduction=pair,
        receptive_field=ReceptiveField((1, 1), (0, 0), "exact"),
        centre=(Fraction(0), Fraction(0)),
        macs=0,
        params=0,
        cumulative_macs=0,
        bytes_per_image=72,
        stage=stage,
        after_activation=True,
    )


LAYERS = [
    layer("conv", 0, "Conv", 2),
    layer("relu1", 1, "Relu", 2, stage=0),
    layer("/layer1/relu", 2, "Relu", 4),
    layer("/layer1/add", 3, "Add", 4, stage=1),
    layer("a,b", 4, "Relu", 8),
    layer("all*", 5, "Relu", 8),
    layer("op:Odd", 6, "Odd", 16, stage=2),
    layer("logits", 7, "Gemm", 32),
]
TABLE = LayerTable(LAYERS, ["logits"], [layer("image", -1, "Input", 1)])


def names(*words: str) -> list[str]:
    return [found.name for found in TABLE.select(words)]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("relu1", ["relu1"]),
        ("relu1,conv", ["conv", "relu1"]),
        ("a,b", ["a,b"]),
        ("conv,a,b,logits", ["conv", "a,b", "logits"]),
        ("all*", ["all*"]),
        ("op:Odd", ["op:Odd"]),
        ("/layer1/*", ["/layer1/relu", "/layer1/add"]),
        ("*relu*", ["relu1", "/layer1/relu"]),
        ("relu?", ["relu1"]),
        ("index:0", ["conv"]),
        ("index:-1", ["logits"]),
        ("index:1..3", ["relu1", "/layer1/relu", "/layer1/add"]),
        ("index:-2..-1", ["op:Odd", "logits"]),
        ("op:Conv", ["conv"]),
        ("op:Conv,op:Gemm", ["conv", "logits"]),
        ("stages", ["relu1", "/layer1/add", "op:Odd"]),
        ("stage:0", ["relu1"]),
        ("stage:-1", ["op:Odd"]),
        ("stage:0..1", ["relu1", "/layer1/add"]),
        ("reduction:4", ["/layer1/relu", "/layer1/add"]),
        ("outputs", ["logits"]),
        ("all", list(NAMES)),
        ("image", ["image"]),
        ("image,logits", ["image", "logits"]),
        ("*", list(NAMES)),
    ],
)
def test_a_word_means_these_layers(word: str, expected: list[str]) -> None:
    assert names(word) == expected


def test_each_layer_comes_once_in_graph_order() -> None:
    assert names("logits", "conv,logits", "index:0") == ["conv", "logits"]


def test_brackets_are_no_special_characters_in_a_glob() -> None:
    table = LayerTable([layer("x[0]", 0), layer("x0", 1)], [])
    assert [found.name for found in table.select(["x[0]*"])] == ["x[0]"]


@pytest.mark.parametrize("word", ["index:", "index:x", "index:1..", "stage:a", "reduction:1.5", "", ","])
def test_an_ill_formed_word_is_refused(word: str) -> None:
    with pytest.raises(InvalidParameter):
        names(word)


@pytest.mark.parametrize(
    "word", ["index:8", "index:-9", "stage:3", "op:Nothing", "nothing*", "reduction:3", "Stages"]
)
def test_a_word_that_matches_nothing_is_not_found(word: str) -> None:
    with pytest.raises(LayerNotFound):
        names(word)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LayerNotFound) as refusal:
        names("relu9")
    assert refusal.value.extensions["suggestions"][0] == "relu1"
    assert "'relu9'" in refusal.value.detail


@pytest.mark.parametrize("words", [["a*"] * 65, ["conv"] * 4097, ["x" * 1025], ["," * 10_000_000]])
def test_endless_selections_are_refused(words: list[str]) -> None:
    with pytest.raises(InvalidParameter):
        names(*words)


@given(st.text(alphabet="ab*?[].", min_size=1, max_size=12))
def test_a_glob_agrees_with_a_regular_expression(pattern: str) -> None:
    candidates = ["a", "b", "ab", "ba", "[a]", "a.b", "aab", "b[ab]"]
    table = LayerTable([layer(name, i) for i, name in enumerate(candidates)], [])
    regex = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)
    expected = [c for c in candidates if regex.fullmatch(c)] if set("*?") & set(pattern) else [pattern]
    if pattern in candidates:
        expected = [pattern]
    try:
        found = [x.name for x in table.select([pattern])]
    except LayerNotFound:
        found = []
    assert found == [name for name in expected if name in candidates]


@given(st.lists(st.sampled_from(NAMES), min_size=1))
def test_any_list_of_names_gives_just_those(chosen: list[str]) -> None:
    assert set(names(*chosen)) == set(chosen)


@given(st.lists(st.sampled_from(NAMES), min_size=1))
def test_names_joined_by_commas_mean_the_same(chosen: list[str]) -> None:
    assert names(",".join(chosen)) == names(*chosen)
