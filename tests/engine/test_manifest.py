"""`model.toml`: what it may say, and what the defaults are."""

from pathlib import Path

import numpy as np
import pytest

from service.engine.manifest import (
    at_size,
    constants,
    digest,
    preprocessing,
    read_labels,
    read_manifest,
    served_size,
)
from service.errors import ModelFailed
from service.values import Preprocessing, TensorSpec

FLOAT = TensorSpec("image", "float32", (None, 3, None, None), "NCHW")


def recipe(folder: Path, text: str | None, spec: TensorSpec = FLOAT) -> Preprocessing:
    if text is not None:
        (folder / "model.toml").write_text(text, "utf-8")
    manifest, first = read_manifest(folder), 2 if spec.layout == "NCHW" else 1
    assert spec.shape is not None
    wanted = manifest.input.size if manifest.input else None
    return preprocessing(manifest, spec, served_size(wanted, spec.shape[first : first + 2], 224))


def test_without_the_file_pixels_are_stretched_and_divided_by_255(tmp_path: Path) -> None:
    assert recipe(tmp_path, None) == Preprocessing(
        size=(224, 224),
        fit="stretch",
        resize=None,
        pad_value=114,
        pad_at="centre",
        interpolation="bilinear",
        color="rgb",
        scale=1 / 255,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        source="default",
    )


def test_the_graphs_fixed_size_is_the_served_size(tmp_path: Path) -> None:
    spec = TensorSpec("image", "float32", (1, 240, 320, 3), "NHWC")
    assert recipe(tmp_path, None, spec).size == (240, 320)


def test_uint8_inputs_take_pixels_as_they_are(tmp_path: Path) -> None:
    assert recipe(tmp_path, None, TensorSpec("image", "uint8", (1, 3, 8, 8), "NCHW")).scale == 1


def test_one_channel_is_gray(tmp_path: Path) -> None:
    spec = TensorSpec("image", "float32", (1, 1, 28, 28), "NCHW")
    assert (recipe(tmp_path, None, spec).color, recipe(tmp_path, None, spec).mean) == ("gray", (0.0,))


def test_resize_means_crop(tmp_path: Path) -> None:
    given = recipe(tmp_path, "[input]\nsize = [224, 224]\nresize = 256\nmean = [1, 2, 3]\n")
    assert (given.fit, given.resize, given.mean, given.source) == ("crop", 256, (1.0, 2.0, 3.0), "model.toml")


def test_another_size_keeps_the_proportion_of_the_crop(tmp_path: Path) -> None:
    given = recipe(tmp_path, "[input]\nsize = [224, 224]\nresize = 256\n")
    assert at_size(given, (448, 448)).resize == 512


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colour = 'rgb'", "colour"),
        ("[input]\nsizes = [1, 2]", "sizes"),
        ("[input]\nsize = [0, 2]", "size"),
        ("[input]\nstd = 0", "std"),
        ("[input]\nscale = inf", "scale"),
        ("[input]\nmean = [1, 2]", "mean has 2 values for 3 channels"),
        ("[input]\ncolor = 'gray'", "color 'gray' does not fit an input of 3 channels"),
        ("[input]\nresize = 100", "resize 100 is smaller than the crop"),
        ("[input]\nresize = 256\nfit = 'stretch'", "resize is for fit = 'crop'"),
        ("[input", "TOML"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ModelFailed) as refusal:
        recipe(tmp_path, text)
    assert reason in refusal.value.detail


def test_a_size_that_contradicts_the_graph_is_refused(tmp_path: Path) -> None:
    spec = TensorSpec("image", "float32", (1, 3, 32, 32), "NCHW")
    with pytest.raises(ModelFailed, match="contradicts"):
        recipe(tmp_path, "[input]\nsize = [64, 64]", spec)


def test_labels_stand_in_a_file_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("labels = 'names.txt'")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert read_labels(tmp_path, read_manifest(tmp_path)) == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("\ufeffcat\ndog\x0cwolf\n", ("cat", "dog\x0cwolf")),
        ("a\u2028b\r\nc\x85d\n\n", ("a\u2028b", "c\x85d")),
        ("one\n\nthree", ("one", "", "three")),
        ("", ()),
    ],
)
def test_a_label_is_a_line_whatever_else_breaks_lines(
    tmp_path: Path, content: str, labels: tuple[str, ...]
) -> None:
    """Each label more or less would give every class after it another's name."""
    (tmp_path / "model.toml").write_text("labels = 'names.txt'")
    (tmp_path / "names.txt").write_bytes(content.encode())
    assert read_labels(tmp_path, read_manifest(tmp_path)) == labels


def constant(folder: Path, text: str, dtype: str, shape: tuple[int | None, ...] | None) -> np.ndarray:
    (folder / "model.toml").write_text(f"[constants]\nk = {text}\n")
    return constants(read_manifest(folder), [TensorSpec("k", dtype, shape, None)])["k"]


@pytest.mark.parametrize(
    ("text", "dtype", "shape", "value"),
    [
        ("2", "float32", (), np.float32(2)),
        ("0.1", "float32", (), np.float32(0.1)),
        ("[1, 2]", "int64", (None,), np.array([1, 2])),
        ("inf", "float32", (), np.float32(np.inf)),
        ("true", "bool", (), np.True_),
        ("1", "bool", None, np.True_),
        ('["a"]', "str", (1,), np.array(["a"])),
        ("[[1.0, 2.0]]", "float16", (None, 2), np.array([[1, 2]], np.float16)),
    ],
)
def test_a_constant_is_what_is_written(
    tmp_path: Path, text: str, dtype: str, shape: tuple[int | None, ...] | None, value: np.ndarray
) -> None:
    found = constant(tmp_path, text, dtype, shape)
    assert (found.shape, found.dtype) == (value.shape, value.dtype)
    assert np.array_equal(found, value)


@pytest.mark.parametrize(
    ("text", "dtype", "shape", "says"),
    [
        ("[3.7]", "int64", (1,), "k is \\[3.7\\], which no int64 holds"),
        ("300", "uint8", (), "no uint8 holds"),
        ("1e300", "float32", (), "no float32 holds"),
        ("0.5", "bool", (), "no bool holds"),
        ('"7"', "int64", (), "no int64 holds"),
        ("7", "str", (), "no str holds"),
        ("[[1], [1, 2]]", "float32", None, "no float32 holds"),
        ("99999999999999999999", "int64", (), "no int64 holds"),
        ("2", "float32", (1,), "k has shape \\[\\] and takes \\[1\\]"),
        ("[1, 2, 3, 4]", "float32", (1,), "k has shape \\[4\\]"),
        ("[1, 2]", "float32", (None, 2), "takes \\['any', 2\\]"),
    ],
)
def test_a_constant_that_the_graph_cannot_take_is_named(
    tmp_path: Path, text: str, dtype: str, shape: tuple[int | None, ...] | None, says: str
) -> None:
    with pytest.raises(ModelFailed, match=says):
        constant(tmp_path, text, dtype, shape)


@pytest.mark.parametrize(
    "line", ["mean = nan", "mean = [0.0, inf, 0.0]", "std = inf", "std = [1.0, nan, 1.0]"]
)
def test_what_would_make_every_map_nothing_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ModelFailed, match=f"input.{line.split()[0]}"):
        recipe(tmp_path, f"[input]\n{line}\n")


@pytest.mark.parametrize("path", ["../names.txt", "/etc/passwd", "missing.txt"])
def test_labels_lie_in_the_models_own_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "names.txt").write_text("cat")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.toml").write_text(f"labels = '{path}'")
    with pytest.raises(ModelFailed, match="labels"):
        read_labels(tmp_path / "model", read_manifest(tmp_path / "model"))


def test_the_digest_changes_with_what_the_network_sees(tmp_path: Path) -> None:
    manifest = read_manifest(tmp_path)
    first = recipe(tmp_path, None)
    assert digest(first, manifest) != digest(at_size(first, (32, 32)), manifest)
