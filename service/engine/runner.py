"""onnxruntime: compiled subgraphs, execution providers, the one thread pool.

The only module that imports it.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import math
import os
import sys
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import ml_dtypes
import numpy as np

from service.engine.memory import release_freed, share_heap
from service.engine.nodes import WIDENED_SUFFIX
from service.engine.runtime_errors import refusal, sentence
from service.engine.small_graphs import hand_on
from service.errors import ConfigurationError, ModelFailed
from service.values import TensorSpec

try:
    import onnxruntime as ort
except ImportError:
    ort = None

Provider = Literal["cpu", "cuda", "auto"]
GraphOptimization = Literal["all", "off"]
PACKAGES = {"onnxruntime": "cpu", "onnxruntime-gpu": "cuda"}
# numpy's names for the runtime's element types, as in `tensor(float)`.
ELEMENT_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "string": "str",
    "bool": "bool",
} | {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
ERRORS_ONLY = 3
# numpy has no such type, and the runtime neither takes nor gives it as the package ml_dtypes has it.
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BFLOAT16_ELEMENT = 16  # onnx.TensorProto.BFLOAT16
# What a session of hardly any weights was measured to take; weights it holds once.
SESSION_BYTES = 150_000
# After a run on a larger input the arena gives back what it took: 1 MB are three channels of 300x300.
LARGE_INPUT_BYTES = 1 << 20
SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
CPU = ("CPUExecutionProvider",)
# On an H200 a first run took 0.08 s, where trying all algorithms took 0.3; later runs took the same.
# One stream a session instead of one a run: each brings handles of cuBLAS and cuDNN with it.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_ep_level_unified_stream": "1"}
# One of 4096 KiB for each handle, which would else take 64 MB: a session took 73 MB of an H200, and 9 with
# the smallest. ResNet-50, whose convolutions do not use it, ran as quickly.
CUBLAS_WORKSPACE = ":4096:1"
# What a session takes of the device beside its weights: those 9 MB and 4 of workspace.
DEVICE_SESSION_BYTES = 13_000_000
NO_CUDA = (
    "provider cuda was asked for, but CUDA does not start here: it takes 'featuremaps[cuda]' instead of "
    "'featuremaps[cpu]', a GPU, and a driver for CUDA 13; or set provider_fallback to run on the CPU instead"
)
COLOURS = 3
# OrtArenaCfg: exactly what is asked for, and not twice as much each time.
AS_REQUESTED = 1
# A numpy array, or what the runtime holds on a device.
Value = Any
T = TypeVar("T")
_pool_sizes: list[int] = []


class Stopped(Exception):
    """A run was ended because nobody waits for it any more."""


class Stop:
    """Ends the runs that were given it, from another thread."""

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._options: list[Any] = []

    def set(self) -> None:
        """End what runs; what begins later ends at once."""
        with self._lock:
            self.is_set = True
            for options in self._options:
                options.terminate = True

    def options(self) -> Any:
        """The runtime's options of one more run.

        Raises:
            Stopped: too late.
        """
        with self._lock:
            if self.is_set:
                raise Stopped
            self._options.append(ort.RunOptions())
            return self._options[-1]


class Session:
    """A compiled subgraph; `run` may be called from several threads at once.

    `device` is where values lie between sessions. None is the CPU, where they are numpy arrays anyway.
    """

    def __init__(
        self,
        session: Any,
        kept_bytes: int,
        folder: Path,
        device: str | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        """`call` calls in the thread that runs sessions on the device."""
        self._folder = folder
        self._call = call or (lambda work, *given: work(*given))
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._names = [name.removesuffix(WIDENED_SUFFIX) for name in self._outputs]
        self._makes_bfloat16 = any(output.type == "tensor(bfloat16)" for output in session.get_outputs())
        self._device = device
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.kept_bytes = kept_bytes

    def run(
        self, feeds: Mapping[str, Value], stop: Stop | None = None, *, stay: Container[str] = ()
    ) -> dict[str, Value]:
        """Compute every output of the subgraph; those in `stay` are left where the device has them.

        Raises:
            ModelFailed: the runtime could not; the message ends with its own sentence.
            Stopped: `stop` was set before or meanwhile.
        """
        options = stop.options() if stop else ort.RunOptions()
        if sum(getattr(value, "nbytes", 0) for value in feeds.values()) > LARGE_INPUT_BYTES:
            options.add_run_config_entry(*SHRINK)
        try:
            feeds = {name: _given(value) for name, value in feeds.items()}
            if self._makes_bfloat16:
                values = self._call(self._run_values, feeds, options)
            elif self._device is None:
                values = self._session.run(self._outputs, feeds, options)
            else:
                values = self._call(self._run_bound, feeds, stay, self._device, options)
        except Exception as error:  # The runtime raises bare RuntimeError and its own kinds.
            if stop and stop.is_set:
                raise Stopped from error
            said = sentence(str(error), self._folder)
            raise ModelFailed(f"the network did not run on this input: {said}", at_run=True) from error
        return dict(zip(self._names, values, strict=True))

    def _run_values(self, feeds: Mapping[str, Value], options: Any) -> Sequence[Value]:
        """Through the runtime's own values, the only way to get bfloat16; texts cannot be among them."""
        of = ort.OrtValue.ortvalue_from_numpy
        given = {n: of(value) if isinstance(value, np.ndarray) else value for n, value in feeds.items()}
        return [_taken(v) for v in self._session.run_with_ort_values(self._outputs, given, options)]

    def _run_bound(
        self, feeds: Mapping[str, Value], stay: Container[str], device: str, options: Any
    ) -> Sequence[Value]:
        """Through an IO binding: what another session left on the device is read there."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                # `ascontiguousarray` would make a vector of a scalar.
                binding.bind_cpu_input(name, np.asarray(value, order="C"))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, device if name in stay else "cpu")
        self._session.run_with_iobinding(binding, options)
        found = zip(self._outputs, binding.get_outputs(), strict=True)
        return [value if name in stay else value.numpy() for name, value in found]


class Runtime:
    """How subgraphs are compiled in this process: provider, optimisation, threads."""

    def __init__(
        self,
        *,
        provider: Provider = "cpu",
        fallback: bool = False,
        optimization: GraphOptimization = "all",
        threads: int = 1,
        tf32: bool = False,
        batch_pixels: int = 4_000_000,
        bind: bool = False,
    ) -> None:
        """`tf32` and `batch_pixels` are for CUDA; `bind` does on the CPU as there, where it can be tried."""
        check_installed()
        share_heap()
        _share_threads(threads)
        self.version: str = ort.__version__
        self.optimization, self.tf32 = optimization, tf32
        self._providers: list[Any] = list(CPU)
        if provider != "cpu" and _prepare_cuda():
            self._providers.insert(0, ("CUDAExecutionProvider", {**CUDA_OPTIONS, "use_tf32": str(int(tf32))}))
        self._nothing = self._session(hand_on("given", "same"), Path(), self._level("off"), self._providers)
        # A session whose provider does not start runs on the CPU and says nothing.
        cuda = "CUDAExecutionProvider" in self._nothing.get_providers()
        if provider == "cuda" and not (cuda or fallback):
            raise ConfigurationError(NO_CUDA)
        self.provider: Literal["cpu", "cuda"] = "cuda" if cuda else "cpu"
        self._providers = self._providers if cuda else list(CPU)
        self._device = self.provider if bind or cuda else None
        self._batch_pixels = batch_pixels
        self._thread_id: int | None = None
        self._thread = ThreadPoolExecutor(1, "device", self._remember_thread) if self.has_device else None

    def on_device(self, work: Callable[..., T], *given: Any) -> T:
        """Call what runs sessions: on a device one thread does it for all, one call after another.

        Each thread that runs a session has handles made for itself and that session: with sixteen threads a
        ResNet-50 took 75 GB of an H200, where it takes 3 with one.
        """
        if self._thread is None or threading.get_ident() == self._thread_id:
            return work(*given)
        return self._thread.submit(work, *given).result()

    def _remember_thread(self) -> None:
        self._thread_id = threading.get_ident()

    @property
    def has_device(self) -> bool:
        """Whether values lie on a device between sessions."""
        return self._device is not None

    def batch_images(self, shape: Sequence[int]) -> int:
        """How many images of a tensor's shape (N, C, H, W) or (N, H, W, C) one batch takes, one at least."""
        return max(1, COLOURS * self._batch_pixels // max(math.prod(shape[1:]), 1))

    def compile(self, model: bytes, folder: Path, *, weight_bytes: int = 0) -> Session:
        """Compile a serialised model whose external data, if any, lies in `folder`.

        Raises:
            ModelFailed: an operator is unknown or the graph is not valid.
        """
        level = self._level(self.optimization)
        session = self._session(model, folder, level, self._providers)
        held = held_bytes(weight_bytes) + (DEVICE_SESSION_BYTES if self.provider == "cuda" else 0)
        return Session(session, held, folder, self._device, self.on_device)

    def give_back(self) -> None:
        """Return to the system what the arena and the heap hold and nobody uses; takes some milliseconds."""
        options = ort.RunOptions()
        options.add_run_config_entry(SHRINK[0], SHRINK[1] if self.provider == "cpu" else f"{SHRINK[1]};gpu:0")
        self.on_device(self._nothing.run, None, {"given": np.zeros(1, np.float32)}, options)
        release_freed()

    def compile_exact(self, model: bytes, folder: Path) -> Session:
        """Compile without any optimisation, on the CPU: the yardstick of what is exact."""
        return Session(self._session(model, folder, self._level("off"), CPU), 0, folder)

    def specs(self, model: bytes, folder: Path) -> dict[str, TensorSpec]:
        """Dtypes and shapes of a model's outputs, as the runtime infers them without running.

        It folds constants meanwhile, so that shapes which the file computes become known too. The runtime
        says `[]` both for a scalar and for an unknown shape, so that is left unknown.
        """
        outputs = self._session(model, folder, self._folding, CPU).get_outputs()
        return {output.name: _spec(output) for output in outputs}

    def _session(self, model: bytes, folder: Path, level: Any, providers: Sequence[Any]) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.use_per_session_threads = False
        options.log_severity_level = ERRORS_ONLY + 1
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            session = ort.InferenceSession(model, options, providers=list(providers))
        except Exception as error:  # The runtime raises its own kinds without a common one.
            raise ModelFailed(refusal(str(error), folder)) from error
        # The wrapper keeps the serialised model for a fallback that is never taken: as much again.
        session._model_bytes = None
        release_freed(len(model))
        return session

    @property
    def _folding(self) -> Any:
        return ort.GraphOptimizationLevel.ORT_ENABLE_BASIC

    @staticmethod
    def _level(optimization: GraphOptimization) -> Any:
        levels = ort.GraphOptimizationLevel
        return levels.ORT_DISABLE_ALL if optimization == "off" else levels.ORT_ENABLE_ALL


def held_bytes(weight_bytes: int) -> int:
    """What a session with so many bytes of weights is estimated to hold."""
    return SESSION_BYTES + weight_bytes


def check_installed() -> None:
    """Exactly one of the two runtimes has to be there: both install the same import package.

    Raises:
        ConfigurationError: neither or both are.
    """
    found = [name for name in PACKAGES if _installed(name)]
    if not found or ort is None:
        raise ConfigurationError(
            "onnxruntime is not installed: pip install 'featuremaps[cpu]' or 'featuremaps[cuda]'"
        )
    if len(found) > 1:
        raise ConfigurationError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall "
            "both, then pip install 'featuremaps[cpu]' or 'featuremaps[cuda]'"
        )


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _given(value: Value) -> Value:
    if not isinstance(value, np.ndarray) or value.dtype != BFLOAT16:
        return value
    bits = np.ascontiguousarray(value).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16_ELEMENT)


def _taken(value: Any) -> Value:
    """A value as an array; bfloat16 is copied out of the runtime's memory."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), int(np.prod(shape)) * BFLOAT16.itemsize)
    return np.frombuffer(bits, BFLOAT16).reshape(shape)


def _share_memory() -> None:
    """One arena for the maps of all sessions: it makes a run 2 to 6 percent quicker than without.

    One each, which is the runtime's default, holds the largest maps that its session ever made, for ever.
    """
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({"arena_extend_strategy": AS_REQUESTED}))


def _share_threads(threads: int) -> None:
    """Sessions with pools of their own spin against each other, so all share the process's one.

    A pool of one holds no thread but the caller's: any other would spin for milliseconds after each
    run, which costs an early layer three times what it takes. The pool is made once: a second
    Runtime of the same process, as tests have, shares the first one's.
    """
    if not _pool_sizes:
        ort.set_default_logger_severity(ERRORS_ONLY)
        _pool_sizes.append(threads)
        ort.set_global_thread_pool_sizes(_pool_sizes[0], 1)
        _share_memory()


@functools.cache
def _prepare_cuda() -> bool:
    """Load CUDA's libraries and make one arena for all sessions' maps; whether that could be done."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    with contextlib.redirect_stdout(sys.stderr):
        ort.preload_dlls(msvc=False)  # Those of pip's packages for CUDA, where they are installed.
    where = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg({"arena_extend_strategy": AS_REQUESTED})
    try:
        ort.create_and_register_allocator_v2("CUDAExecutionProvider", where, {"device_id": "0"}, arena)
    except Exception:  # The runtime raises its own kinds without a common one.
        return False
    return True


def _spec(output: Any) -> TensorSpec:
    kind = str(output.type)
    if not kind.startswith("tensor("):
        return TensorSpec(output.name, "", None)
    shape = tuple(size if isinstance(size, int) else None for size in output.shape or ())
    dtype = ELEMENT_TYPES.get(kind.removeprefix("tensor(").removesuffix(")"), "")
    return TensorSpec(output.name, dtype, shape or None)
