"""Build TensorRT engines with NVIDIA's own parser and builder, on a machine without a GPU.

    python benchmarks/tensorrt_builds.py --json builds.json
    python benchmarks/tensorrt_builds.py --models demo --precisions fp32

TensorRT for RTX compiles ahead of time, on the CPU. Its libraries come with ONNX Runtime's provider for RTX; NVIDIA's
Python binding imports over them. Engines so built are thrown away: running one needs a GPU. The packages, which
NVIDIA's licence allows to use and not to pass on, are those of the extra ``test-tensorrt``; a C compiler is needed too.

Networks have random weights in the published architectures, except the demo. Each graph is exported, without comparing
it with the model, and then built as the TensorRT runtime does. A row of the JSON: ``{graph, precision, seconds, bytes,
tensorrt}``, or ``error`` in place of ``seconds`` and ``bytes``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov3_seg_ros.support.files import write_json
from dinov3_seg_ros.support.installation import how_to_install

ROOT = Path(__file__).resolve().parent.parent
#: Network size of each model, (height, width).
SIZES = {"demo": (224, 320), "vits16plus": (640, 640), "convnext_tiny": (640, 640)}
PRECISIONS = ("fp32", "fp16", "int8_qdq")
CLASSES = 134
_LIBRARIES, _BINDING = "onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_bindings"
_PLUGINS = "int initLibNvInferPlugins(void *logger, const char *name) { (void)logger; (void)name; return 1; }"
_MODULE = """\
from tensorrt_bindings import *
from tensorrt_bindings import __version__
"""


class UnavailableError(Exception):
    """What is missing to build engines here, and how to get it."""


def environment(folder: Path) -> dict[str, str]:
    """Make a folder in which TensorRT for RTX stands for TensorRT; return the environment of a process that uses it.

    Args:
        folder: for links to the libraries, a small library and a module ``tensorrt``.

    Raises:
        UnavailableError: a package or the compiler is missing.
    """
    places = {}
    for module in (_LIBRARIES, _BINDING):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise UnavailableError(f"there is no module {module}: {how_to_install('test-tensorrt')}")
        places[module] = Path(spec.origin).parent
    compiler = shutil.which("cc")
    if compiler is None:
        raise UnavailableError("there is no C compiler: sudo apt install gcc")
    libraries = folder / "lib"
    libraries.mkdir(parents=True)
    for pattern, names in (
        ("libtensorrt_rtx.so.*.*", ("libnvinfer.so.11", "libtensorrt_rtx.so.1", "libtensorrt_rtx.so")),
        ("libtensorrt_onnxparser_rtx.so.*.*", ("libnvonnxparser.so.11",)),
        ("libcudart.so.13.*", ("libcudart.so.13",)),
    ):
        found = sorted(places[_LIBRARIES].glob(pattern))
        if not found:
            raise UnavailableError(f"{places[_LIBRARIES]} holds no {pattern}; another release of the package is needed")
        for name in names:
            (libraries / name).symlink_to(found[-1])
    # The binding calls one function of a library that TensorRT for RTX does not have.
    source = folder / "plugins.c"
    source.write_text(_PLUGINS)
    target = libraries / "libnvinfer_plugin.so.11"
    # It needs the first library, so that the binding finds that one's functions through it.
    linked = ["-Wl,--no-as-needed", f"-L{libraries}", "-l:libnvinfer.so.11"]
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source, *linked], check=True)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(_MODULE)
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": paths.rstrip(os.pathsep)}


class EngineBuilder:
    """A process that builds engines, until it is closed.

    Args:
        folder: empty, for what `environment` makes.

    Raises:
        UnavailableError: a package or the compiler is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=environment(folder / "tensorrt_for_rtx"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def build(self, graph: Path, max_batch: int = 1) -> dict[str, Any]:
        """Build an engine, and throw it away; return a row of the report.

        Args:
            graph: ONNX file.
            max_batch: the largest batch of the engine.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(graph), max_batch]) + "\n")
        self._process.stdin.flush()
        row: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        return row

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    """Build what the lines of standard input name; print a row of each as JSON."""
    import tensorrt

    from dinov3_seg_ros.runtimes.tensorrt import builder
    from dinov3_seg_ros.support.errors import ExportError

    for line in sys.stdin:
        graph, max_batch = json.loads(line)
        row: dict[str, Any] = {"graph": graph, "tensorrt": f"{tensorrt.__version__} (for RTX)"}
        start = time.monotonic()
        try:
            size = len(builder.build(Path(graph), max_batch))
            row |= {"seconds": round(time.monotonic() - start, 2), "bytes": size}
        except ExportError as error:
            row["error"] = str(error)
        print(json.dumps(row), flush=True)


def _graphs(model: str, precision: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Export the graphs of a model in a precision; yield the name and the file of each.

    The heads of ``int8_qdq`` are those of fp32, so only its backbone is yielded.
    """
    import numpy as np
    import torch
    from random_models import MEAN, MODELS, STD

    from dinov3_seg_ros import scenes
    from dinov3_seg_ros.bundle.loading import load_bundle
    from dinov3_seg_ros.export import quantisation
    from dinov3_seg_ros.export.graphs import BackboneGraph, HeadGraph, export_backbone, export_head
    from dinov3_seg_ros.model.heads import HEADS, build_head
    from dinov3_seg_ros.model.weights import build_backbone

    torch.manual_seed(0)
    size, dtype = SIZES[model], torch.float16 if precision == "fp16" else torch.float32
    if model == "demo":
        bundle = load_bundle(ROOT / "weights" / "demo")
        backbone, heads = bundle.load_backbone(), {"head": bundle.load_head()}
    else:
        backbone = build_backbone(MODELS[model])
        heads = {}
        for name, variants in HEADS.items():
            for variant in variants:
                if variant != "plain" or len(backbone.channels) == 1:
                    heads[f"{name} {variant}"] = (name, variant, {})
        heads["aspp with detail"] = ("aspp", next(iter(HEADS["aspp"])), {"detail": True})
        heads = {
            label: build_head(name, backbone.channels, backbone.strides, CLASSES, variant, **options)
            for label, (name, variant, options) in heads.items()
        }
    backbone.freeze()
    graph = BackboneGraph(backbone.eval(), size, MEAN, STD, dtype).eval()
    path = folder / f"{model}-{precision}-backbone.onnx"
    export_backbone(graph, size, path, {})
    if precision == "int8_qdq":
        frames = [scenes.sample("val", index, size)[0][None] for index in range(4)]
        quantised = path.with_suffix(".int8_qdq.onnx")
        quantisation.static_for(frames)(path, quantised, [])
        yield f"{model} backbone", quantised
        return
    yield f"{model} backbone", path
    with torch.no_grad():
        maps = list(graph(torch.from_numpy(np.zeros((2, *size, 3), np.uint8))))
    for label, head in heads.items():
        path = folder / f"{model}-{precision}-{label.replace(' ', '_')}.onnx"
        export_head(HeadGraph(head.eval(), MEAN, STD, dtype), maps, list(backbone.layers), size, path, {})
        yield f"{model} {label}", path


def main() -> int:
    """Export, build and report; 1 where an engine could not be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows, each as it is measured")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve()
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.closing(EngineBuilder(Path(name))) as builder:
        for model, precision in itertools.product(options.models, options.precisions):
            for graph, path in _graphs(model, precision, Path(name)):
                rows.append({**builder.build(path, options.max_batch), "graph": graph, "precision": precision})
                print(json.dumps(rows[-1]), flush=True)
                if options.json:
                    write_json(options.json, rows)
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UnavailableError as error:
        sys.exit(str(error))
