"""What is built and run for a request: no more than its layers need."""

import functools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from benchmarks.resnet import random_resnet50, relus
from service.engine.extent import MODEL_LIMITS
from service.engine.graph import Graph
from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.nodes import Network
from service.engine.onnx_file import OnnxFile, open_onnx
from service.engine.plan_cache import FUSE_AFTER, PlanCache
from service.engine.runner import Runtime, Session, Stop, Stopped
from service.engine.tables import TABLES_KEPT
from service.errors import ModelFailed, ShapeMismatch
from service.output.reduce import apply
from service.parameters import Reduction
from service.syntax import Channels, Region
from service.values import FeatureMap, Window
from tests.builders import model as make
from tests.builders import put, reshaping_cnn, small_cnn
from tests.oracles import UncutGraph


class Watched(Runtime):
    """The real runtime, which also keeps what it was given to compile."""

    def __init__(self, optimization: Any = "all", *, bind: bool = False) -> None:
        super().__init__(optimization=optimization, bind=bind)
        self.compiled: list[bytes] = []

    def compile(self, model: bytes, folder: Path, **given: Any) -> Session:
        self.compiled.append(model)
        return super().compile(model, folder, **given)


class AtOnce(Executor):
    """Builds in the caller's thread what else is built in the background."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Described(Graph):
    """The real graph, which also counts how often it is described, and waits at one size until it may."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__(file)
        self.described: Counter[tuple[int, ...]] = Counter()
        self.slow: tuple[int, ...] | None = None
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def network(self, shapes: Mapping[str, Sequence[int]]) -> Network:
        size = tuple(shapes.get("image", ()))
        self.described[size] += 1
        if size == self.slow:
            self.has_begun.set()
            assert self.may_end.wait(20)
        return super().network(shapes)


def described(folder: Path) -> tuple[LoadedModel, Described]:
    file = put(folder, "m", small_cnn())
    graph = Described(open_onnx(file, MODEL_LIMITS))
    return load("m", "1", file, folder / "m", Runtime(), PlanCache(1 << 20), read=lambda _: graph), graph


def loaded(file: Path, optimization: str = "all", budget: int = 1 << 30) -> tuple[LoadedModel, Watched]:
    runtime = Watched(optimization)
    return load("m", "1", file, file.parent, runtime, PlanCache(budget, AtOnce())), runtime


def nodes(model: bytes) -> int:
    return len(onnx.ModelProto.FromString(model).graph.node)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_resnet50(tmp_path_factory.mktemp("resnet50") / "resnet50.onnx")


def test_an_early_layer_builds_a_few_nodes_of_resnet_50(resnet50: Path) -> None:
    model, runtime = loaded(resnet50)
    at_load = len(runtime.compiled)
    second = model.layers().select([relus(resnet50)[1]])
    values = model.run(np.zeros((1, 3, 224, 224), np.float32), second)
    assert values[relus(resnet50)[1]].shape == (1, 64, 56, 56)
    assert [nodes(part) for part in runtime.compiled[at_load:]] == [7]  # Conv BN Relu MaxPool Conv BN Relu


def test_loading_compiles_every_node_once(resnet50: Path) -> None:
    _, runtime = loaded(resnet50)
    assert len(runtime.compiled) > 5
    assert sum(nodes(part) for part in runtime.compiled) == len(onnx.load(resnet50).graph.node)


def test_a_layer_deep_inside_builds_a_part_of_its_own_segment_only(resnet50: Path) -> None:
    model, runtime = loaded(resnet50)
    at_load = len(runtime.compiled)
    layer = model.layers().by_name[relus(resnet50)[-2]]
    model.run(np.zeros((1, 3, 224, 224), np.float32), [layer])
    assert [nodes(part) < 15 for part in runtime.compiled[at_load:]] == [True]


def test_what_is_asked_again_and_again_gets_a_session_of_its_own(resnet50: Path) -> None:
    model, runtime = loaded(resnet50)
    at_load = len(runtime.compiled)
    layers = [model.layers().by_name[relus(resnet50)[-1]]]
    image = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    values = [model.run(image, layers)[layers[0].name] for _ in range(FUSE_AFTER + 2)]
    assert [nodes(part) > 150 for part in runtime.compiled[at_load:]][-1]
    largest = np.abs(values[0]).max()
    assert np.abs(values[0] - values[-1]).max() <= 1e-5 * largest
    compiled = len(runtime.compiled)
    model.run(image, layers)
    assert len(runtime.compiled) == compiled


def test_many_sets_asked_in_turn_do_not_push_each_other_out(resnet50: Path) -> None:
    """A budget for one fused session: a second set, asked as often, is answered by segments."""
    model, runtime = loaded(resnet50, budget=230 << 20)
    image = np.zeros((1, 3, 224, 224), np.float32)
    first, second = ([model.layers().by_name[relus(resnet50)[i]]] for i in (-1, -4))
    for _ in range(3 * FUSE_AFTER):
        model.run(image, first)
        model.run(image, second)
    assert sum(nodes(part) > 100 for part in runtime.compiled) == 1


def test_asking_again_builds_nothing(tmp_path: Path) -> None:
    model, runtime = loaded(put(tmp_path, "m", small_cnn()))
    layers = model.layers().select(["stem/relu"])
    model.run(np.zeros((1, 3, 32, 32), np.float32), layers)
    compiled = len(runtime.compiled)
    for _ in range(3):
        model.run(np.zeros((1, 3, 32, 32), np.float32), layers)
    assert len(runtime.compiled) == compiled


def test_the_input_alone_runs_nothing(tmp_path: Path) -> None:
    model, runtime = loaded(put(tmp_path, "m", small_cnn()))
    compiled = len(runtime.compiled)
    tensor = np.ones((1, 3, 8, 8), np.float32)
    assert model.run(tensor, model.layers().select(["image"]))["image"] is tensor
    assert len(runtime.compiled) == compiled


@pytest.mark.parametrize(("layer", "batched"), [("relu", True), ("vector", False)])
def test_a_fixed_batch_is_freed_only_where_it_gives_what_single_runs_give(
    tmp_path: Path, layer: str, batched: bool
) -> None:
    file = put(tmp_path, "m", reshaping_cnn())
    model, _ = loaded(file, "off")
    layers = model.layers().select([layer])
    if layers[0].batch_axis is None:
        pytest.fail("the batch axis of this layer is known")
    images = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    values = model.run(images, layers)[layer]
    alone = [UncutGraph(file, [layer]).run({"image": image[None]})[layer] for image in images]
    assert np.array_equal(values, np.concatenate(alone))
    examples = functools.partial(model._examples, (3, 8, 8))
    assert model._execution.is_separable((layer,), (3, 8, 8), examples) is batched


@pytest.mark.parametrize("layer", ["features", "best"])
def test_statistics_over_the_batch_are_found_out_whatever_the_layer_looks_like(
    tmp_path: Path, layer: str
) -> None:
    """MeanVarianceNormalization's default axes include the batch; ArgMax gives one integer an image."""
    node = helper.make_node
    nodes = [
        node("MeanVarianceNormalization", ["image"], ["normalised"]),
        node("GlobalMaxPool", ["normalised"], ["pool"]),
        node("Flatten", ["pool"], ["features"]),
        node("ArgMax", ["features"], ["best"], axis=1, keepdims=0),
    ]
    model, _ = loaded(put(tmp_path, "m", make(nodes, {"image": ["n", 3, 8, 8]}, ["best"])), "off")
    examples = functools.partial(model._examples, (3, 8, 8))
    assert not model._execution.is_separable((layer,), (3, 8, 8), examples)


def test_finding_out_whether_a_batch_is_right_ends_when_nobody_waits(tmp_path: Path) -> None:
    model, _ = loaded(put(tmp_path, "m", reshaping_cnn()), "off")
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        model._execution.is_separable(("relu",), (3, 8, 8), lambda: model._examples((3, 8, 8)), stop)


def gained() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["out"]),
    ]
    return make(nodes, {"image": [1, 3, 8, 8], "gain": [1]}, ["out"])


def test_constants_feed_further_inputs(tmp_path: Path) -> None:
    file = put(tmp_path, "m", gained(), toml="[constants]\ngain = [2.0]\n")
    model = load("m", "1", file, tmp_path / "m", Runtime(), PlanCache(1 << 20))
    values = model.run(np.ones((1, 3, 8, 8), np.float32), model.layers().select(["out"]))
    assert (values["out"] == 2).all()


def test_a_further_input_without_a_value_does_not_keep_the_image_from_being_one(tmp_path: Path) -> None:
    model, _ = loaded(put(tmp_path, "m", gained()))
    assert model.image_input is not None
    assert model.reads_of([model.layers().by_name["out"]]) == ("image", "gain")


def test_a_layer_that_adds_the_images_up_takes_one_image_only(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["relu"]),
        helper.make_node("ReduceSum", ["relu", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["relu", "sum"], ["mixed"]),
    ]
    axis = onnx.numpy_helper.from_array(np.array([0], np.int64), "axis")
    model, _ = loaded(put(tmp_path, "m", make(nodes, {"image": ["n", 3, 8, 8]}, ["mixed"], [axis])))
    with pytest.raises(ShapeMismatch, match="no batch axis"):
        model.run(np.ones((2, 3, 8, 8), np.float32), model.layers().select(["mixed"]))


def unknown_batch() -> onnx.ModelProto:
    """A layer of whose axes nothing is known, though a batch would give what its images give alone."""
    nodes = [helper.make_node("Einsum", ["image"], ["opaque"], equation="nchw->nchw")]
    return make(nodes, {"image": ["n", 3, 8, 8]}, ["opaque"])


def test_jobs_run_together_are_refused_as_they_are_alone(tmp_path: Path) -> None:
    model, _ = loaded(put(tmp_path, "m", unknown_batch()))
    (layer,) = model.layers().select(["opaque"])
    assert layer.batch_axis is None
    one, two = np.ones((1, 3, 8, 8), np.float32), np.ones((2, 3, 8, 8), np.float32)
    refused, answered = model.run_together([(two, [layer], {}), (one, [layer], {})])
    assert isinstance(refused, ShapeMismatch)
    assert isinstance(answered, dict)
    assert np.array_equal(answered["opaque"], one)


def test_the_table_of_the_served_size_is_never_made_again(tmp_path: Path) -> None:
    model, _ = described(tmp_path)
    served = model.layers()
    for side in range(32, 32 + 2 * TABLES_KEPT):
        model.layers((side, side))
    assert model.layers() is served


def test_a_size_that_is_asked_for_again_and_again_keeps_its_table(tmp_path: Path) -> None:
    model, graph = described(tmp_path)
    for side in range(32, 32 + 2 * TABLES_KEPT):
        model.layers((16, 16))
        model.layers((side, side))
    assert graph.described[1, 3, 16, 16] == 1


def test_a_table_is_made_once_for_all_who_ask_for_it_and_others_do_not_wait(tmp_path: Path) -> None:
    model, graph = described(tmp_path)
    graph.slow = (1, 3, 64, 64)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(model.layers, (64, 64)) for _ in range(4)]
        assert graph.has_begun.wait(20)
        assert model.layers((48, 48)).layers[0].shape == (1, 8, 24, 24)
        graph.may_end.set()
        tables = [each.result() for each in asked]
    assert all(table is tables[0] for table in tables)
    assert graph.described[graph.slow] == 1


def test_filters_and_class_weights_need_no_description_of_their_own(tmp_path: Path) -> None:
    model, graph = described(tmp_path)
    at_load = graph.described.total()
    for _ in range(3):
        assert model.filters("stem/relu").channels == 8
        assert model.class_weights("block2.add", 0).shape == (16,)
    assert graph.described.total() == at_load


def on_device(file: Path, budget: int = 2 << 30) -> tuple[LoadedModel, "Watched"]:
    """As on a GPU: through IO bindings, values left on the device, which is the CPU here."""
    runtime = Watched("off", bind=True)
    return load("m", "1", file, file.parent, runtime, PlanCache(budget)), runtime


@pytest.mark.parametrize("images", [1, 3, 6])
def test_values_left_on_the_device_are_what_they_would_be_on_the_host(resnet50: Path, images: int) -> None:
    """Several images are one batch there, padded to one of few sizes."""
    bound, _ = on_device(resnet50)
    plain, _ = loaded(resnet50, "off")
    x = np.random.default_rng(0).random((images, 3, 224, 224), np.float32)
    layers = plain.layers().select([relus(resnet50)[i] for i in (3, 30, -1)])
    found, expected = bound.run(x, layers), plain.run(x, layers)
    for layer in layers:
        assert isinstance(found[layer.name], np.ndarray)
        assert np.array_equal(found[layer.name], expected[layer.name])


@pytest.mark.parametrize(
    ("reduction", "part"),
    [
        (Reduction(pool="avg"), Reduction(pool="avg")),
        (Reduction(channels=Channels((5, 0)), pool="avg"), Reduction(channels=Channels((5, 0)), pool="avg")),
        (Reduction(channels=Channels((5, 0)), dtype="uint8"), Reduction(channels=Channels((5, 0)))),
        (Reduction(channels=Channels((7,)), grid=(2, 2)), Reduction(channels=Channels((7,)))),
        (Reduction(channels=Channels(top=3), pool="avg"), Reduction()),
        (Reduction(pool="max", dtype="float16"), Reduction()),
        (Reduction(region=Region(0, 0, 8, 8), pool="avg"), Reduction()),
    ],
)
@pytest.mark.parametrize("images", [1, 2])
def test_what_is_done_on_the_device_is_not_done_again(
    tmp_path: Path, reduction: Reduction, part: Reduction, images: int
) -> None:
    """The same numbers, whichever part of a reduction a device does."""
    bound, _ = on_device(put(tmp_path, "m", small_cnn()))
    (layer,) = bound.layers((32, 32)).select(["stem/relu"])
    parts = bound.parts_of([layer], lambda _: reduction)
    assert parts.get(layer.name, Reduction()) == part
    x = np.random.default_rng(0).random((images, 3, 32, 32), np.float32)
    whole = FeatureMap(layer, bound.run(x, [layer])[layer.name])
    reduced = FeatureMap(layer, bound.run(x, [layer], parts=parts)[layer.name], part)
    windows = [Window(1, 2, 4, 4)]
    found, expected = (apply(each, reduction, windows) for each in (reduced, whole))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        assert np.allclose(array, expected[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_jobs_of_all_kinds_that_share_batches_on_the_device_get_what_they_get_alone(
    tmp_path: Path, batch: str | int
) -> None:
    """Different layers, numbers of images and reductions; padding belongs to nobody."""
    file = put(tmp_path, "m", small_cnn(batch))
    (bound, _), (plain, _) = on_device(file), loaded(file, "off")
    table, rng = bound.layers((32, 32)), np.random.default_rng(0)
    layers = [layer for layer in table.layers if layer.batch_axis is not None]
    assert len(layers) > 6
    jobs = []
    for index in range(12):
        chosen = [layers[i] for i in sorted(rng.choice(len(layers), rng.integers(1, 4), replace=False))]
        parts = bound.parts_of(chosen, lambda _: Reduction(pool="avg")) if index % 3 == 0 else {}
        jobs.append((rng.random((rng.integers(1, 4), 3, 32, 32), np.float32), chosen, parts))
    for outcome, (x, chosen, parts) in zip(bound.run_together(jobs), jobs, strict=True):
        assert isinstance(outcome, dict), outcome
        for layer in chosen:
            expected = plain.run(x, [layer])[layer.name]
            if layer.name in parts:
                expected = expected.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)
            assert np.allclose(outcome[layer.name], expected, rtol=1e-6, atol=0)
            assert len(outcome[layer.name]) == len(x)


def test_a_job_holds_nothing_of_those_that_shared_its_batch(tmp_path: Path) -> None:
    bound, _ = on_device(put(tmp_path, "m", small_cnn()))
    layers = bound.layers((32, 32)).select(["stem/relu"])
    images = np.random.default_rng(0).random((2, 1, 3, 32, 32), np.float32)
    for outcome in bound.run_together([(image, layers, {}) for image in images]):
        assert isinstance(outcome, dict)
        assert outcome["stem/relu"].base is None


def test_batches_of_changing_sizes_build_sessions_of_few_shapes(tmp_path: Path) -> None:
    """cuDNN plans a session's convolutions anew whenever its input has another shape than before."""
    bound, runtime = on_device(put(tmp_path, "m", small_cnn()))
    (layer,) = bound.layers((32, 32)).select(["stem/relu"])

    def built_by(sizes: Sequence[int]) -> int:
        before = len(runtime.compiled)
        for size in sizes:
            bound.run(np.random.default_rng(0).random((size, 3, 32, 32), np.float32), [layer])
        return len(runtime.compiled) - before

    few = built_by([1, 2, 5])
    assert few >= 3
    assert built_by([3, 4, 6, 7, 13, 16, 2, 1]) == 0


@pytest.mark.parametrize(("allowed", "batches"), [(4, [4, 4, 4]), (6, [6, 6]), (20, [16])])
def test_many_images_run_in_batches_no_larger_than_allowed_padding_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, batches: list[int]
) -> None:
    file = put(tmp_path, "m", small_cnn())
    runtime = Runtime(bind=True, batch_pixels=allowed * 32 * 32)
    bound = load("m", "1", file, file.parent, runtime, PlanCache(1 << 30))
    (layer,) = bound.layers((32, 32)).select(["stem/relu"])
    images, run = np.random.default_rng(0).random((11, 3, 32, 32), np.float32), Session.run
    sizes: list[int] = []

    def watched(self: Session, feeds: Mapping[str, Any], *given: Any, **named: Any) -> Any:
        sizes.extend(len(value) for name, value in feeds.items() if name == "image")
        return run(self, feeds, *given, **named)

    expected = UncutGraph(file, ["stem/relu"]).run({"image": images})["stem/relu"]
    bound.run(images[:2], [layer])
    monkeypatch.setattr(Session, "run", watched)
    assert np.allclose(bound.run(images, [layer])[layer.name], expected, atol=1e-6)
    assert sizes == batches


def test_warm_layers_are_ready_before_the_first_request(tmp_path: Path) -> None:
    file = random_resnet50(tmp_path / "m" / "1" / "model.onnx")
    layer = relus(file)[20]
    (tmp_path / "m" / "model.toml").write_text(f'warm = ["{layer}"]\n')
    runtime = Watched()
    model = load("m", "1", file, tmp_path / "m", runtime, PlanCache(1 << 30))
    compiled = len(runtime.compiled)
    model.run(np.zeros((1, 3, 224, 224), np.float32), [model.layers().by_name[layer]])
    assert len(runtime.compiled) == compiled


def test_a_warm_layer_that_does_not_exist_fails_the_model(tmp_path: Path) -> None:
    file = put(tmp_path, "m", small_cnn(), toml='warm = ["nothing"]\n')
    with pytest.raises(ModelFailed, match="warm: no layer 'nothing'"):
        load("m", "1", file, tmp_path / "m", Runtime(), PlanCache(1 << 20))
