# SPDX-License-Identifier: Apache-2.0
"""The two runtimes behind one face: run a saved file, and tell which kernels execute its layers."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from djpq_nncf.cost._recount import damaged
from djpq_nncf.export._files import check_exported


@dataclass(frozen=True)
class Kernel:
    """What executes a layer."""

    int8: bool
    precision: str


class Runtime(Protocol):
    """A loaded file."""

    name: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    """None where any size goes."""

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of the file."""

    def run_many(self, inputs: Sequence[NDArray[Any]], count: int) -> None:
        """Run ``count`` times on the same inputs, as many at once as the file was opened for."""

    def kernels(self, layers: Sequence[str]) -> Mapping[str, Kernel]:
        """The kernels of convs, linears and matmuls, by the name the file gives them, in the order of the file.

        One that runs under another name, and cannot be told from others, is missing.
        """


@dataclass(frozen=True)
class Execution:
    """How a file is run.

    Attributes:
        threads: of all requests together; None leaves it to the runtime.
        parallel: requests at once, each with its share of the threads.
        shapes: of the inputs, where they are known beforehand: OpenVINO is a little faster then. ONNX Runtime would
            be as well, but its optimizer breaks quantized transformers of fixed sizes (1.32), so they stay free there.
    """

    threads: int | None = None
    parallel: int = 1
    shapes: Sequence[tuple[int, ...]] | None = None


def open_runtime(path: Path, execution: Execution = Execution()) -> Runtime:
    """Loads ``path`` in the runtime its suffix stands for.

    Raises:
        ExportError: the file is missing or damaged, or does not take inputs of these shapes.
    """
    check_exported(path, "run")
    return OpenVinoRuntime(path, execution) if path.suffix == ".xml" else OnnxRuntime(path, execution)


class OpenVinoRuntime:
    """OpenVINO's CPU plugin, with float layers in f32 (some CPUs default to bf16)."""

    _LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
    # attention in one kernel, and much that holds no layer
    _FUSED = frozenset({"Subgraph"})

    def __init__(self, path: Path, execution: Execution) -> None:
        import openvino as ov

        # a file mapped into memory would turn its truncation into a crash
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_MMAP": False}
        if execution.threads is not None:
            options |= {"INFERENCE_NUM_THREADS": execution.threads, "NUM_STREAMS": execution.parallel}
        try:
            core = ov.Core()
            model = core.read_model(path)
            if execution.shapes is not None:
                model.reshape({port: list(shape) for port, shape in zip(model.inputs, execution.shapes, strict=True)})
            self._compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise damaged(path, error) from error
        self._parallel = execution.parallel
        self.name = f"OpenVINO {ov.__version__.split('-')[0]}"
        self.input_names = tuple(port.get_any_name() for port in self._compiled.inputs)
        self.input_shapes = tuple(
            tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
            for port in self._compiled.inputs
        )

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        results = self._compiled(list(inputs))
        return [results[port] for port in self._compiled.outputs]

    @cached_property
    def _queue(self) -> Any:
        import openvino as ov

        return ov.AsyncInferQueue(self._compiled, self._parallel)

    def run_many(self, inputs: Sequence[NDArray[Any]], count: int) -> None:
        for _ in range(count):
            self._queue.start_async(list(inputs), share_inputs=True)
        self._queue.wait_all()

    def kernels(self, layers: Sequence[str]) -> dict[str, Kernel]:
        found: dict[str, Kernel] = {}
        nameless: list[Kernel] = []
        for info in self._executed():
            primitive = info["primitiveType"]
            kernel = Kernel(primitive.lower().endswith("_i8"), f"{primitive}, {info['runtimePrecision']}")
            names: set[str] = set()
            for original in info["originalLayersNames"].split(","):
                # the plugin's own passes append to the name of the layer they rewrite
                names |= {original, original.rpartition("/")[0], original.removesuffix("_original")}
            here = [name for name in layers if name in names]
            if info["layerType"] in self._FUSED:
                here += _first_products(here, layers, found)
            elif not here:
                nameless.append(kernel)
            # of a layer in several parts the slowest counts
            found |= {name: kernel for name in here if name not in found or not kernel.int8}
        # or replace the name: what is left over on both sides is in the same order
        lost = [name for name in layers if name not in found]
        return found | (dict(zip(lost, nameless, strict=True)) if len(lost) == len(nameless) else {})

    def _executed(self) -> list[dict[str, str]]:
        """What is known of the nodes that may be layers, in the order in which they run."""
        nodes = [
            {key: value.astype(str) for key, value in node.get_rt_info().items() if key != "fused_names_0"}
            for node in self._compiled.get_runtime_model().get_ops()
        ]
        layers = [info for info in nodes if info["layerType"] in self._LAYERS | self._FUSED]
        return sorted(layers, key=lambda info: int(info["execOrder"]))


def _first_products(here: Sequence[str], layers: Sequence[str], found: Mapping[str, Kernel]) -> list[str]:
    """Attention in one kernel has the name of its second product alone; the first one comes before it."""
    result = []
    for name in here:
        before = layers[: layers.index(name)]
        same = [other for other in before if other not in found and other.partition("#")[0] == name.partition("#")[0]]
        result += same[-1:]
    return result


class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    _INT8 = frozenset(
        {
            "ConvInteger",
            "DynamicQuantizeMatMul",
            "MatMulInteger",
            "MatMulIntegerToFloat",
            "QGemm",
            "QLinearConv",
            "QLinearMatMul",
        }
    )
    _FLOAT = frozenset({"Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"})

    def __init__(self, path: Path, execution: Execution) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # threads that wait busily for the next request take the cores from whatever runs before it
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if execution.threads is not None:
            options.intra_op_num_threads = max(1, execution.threads // execution.parallel)
        self._workers = ThreadPoolExecutor(execution.parallel)
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            try:
                self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
            except Exception as error:  # the runtime's errors share no base class
                raise damaged(path, error) from error
            self._kernels = self._read_kernels(optimized)
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        ports = self._session.get_inputs()
        self.input_names = tuple(port.name for port in ports)
        self.input_shapes = tuple(
            tuple(size if isinstance(size, int) else None for size in port.shape) for port in ports
        )

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        results: list[NDArray[Any]] = self._session.run(None, dict(zip(self.input_names, inputs, strict=True)))
        return results

    def run_many(self, inputs: Sequence[NDArray[Any]], count: int) -> None:
        for result in [self._workers.submit(self.run, inputs) for _ in range(count)]:
            result.result()

    def kernels(self, layers: Sequence[str]) -> dict[str, Kernel]:
        return {name: self._kernels[name] for name in layers if name in self._kernels}

    def _read_kernels(self, optimized: Path) -> dict[str, Kernel]:
        import onnx

        nodes = onnx.load(optimized, load_external_data=False).graph.node
        return {
            # the layout pass appends a token to the name of a node it rewrites
            re.sub(r"_token_\d+$", "", node.name): Kernel(node.op_type in self._INT8, node.op_type)
            for node in nodes
            if node.op_type in self._INT8 | self._FLOAT
        }
