"""Which test modules a robot's installation can run: those that need no PyTorch, told from what they import."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = (ROOT / "test", ROOT)
#: What a robot lacks, and what comes with the extras that bring it.
_OF_TRAINING = {
    "accelerate",
    "matplotlib",
    "PIL",
    "onnxscript",
    "safetensors",
    "torch",
    "torchmetrics",
    "training",
    "transformers",
}


def has_torch() -> bool:
    """Whether this environment has what training needs."""
    return importlib.util.find_spec("torch") is not None


@functools.cache
def has_gpu() -> bool:
    """Whether PyTorch finds a CUDA GPU."""
    if not has_torch():
        return False
    import torch

    return torch.cuda.is_available()


def is_of_training(module: str | None) -> bool:
    """Whether a module belongs to training, or to a library that a robot lacks."""
    return (module or "").partition(".")[0] in _OF_TRAINING


def needs_torch(path: Path) -> bool:
    """Whether importing a module of this project imports PyTorch, or a library that comes with it."""
    seen, waiting = {path}, [path]
    while waiting:
        for name in _imported_by(waiting.pop()):
            if is_of_training(name):
                return True
            # `from package import module` names either a module or something inside the package.
            found = {file for part in (name, name.rpartition(".")[0]) if part for file in _files(part)} - seen
            seen |= found
            waiting += found
    return False


@functools.cache
def _imported_by(path: Path) -> tuple[str, ...]:
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")).body))


@functools.cache
def _files(name: str) -> tuple[Path, ...]:
    """The files of one of the project's own modules; empty for others."""
    places = [folder / Path(*name.split(".")) for folder in _FOLDERS]
    return tuple(
        file for place in places for file in (place / "__init__.py", place.with_suffix(".py")) if file.exists()
    )


def _imports(statements: list[ast.stmt]) -> Iterator[str]:
    """Names that are imported whenever a module is; those inside functions, conditions and attempts are not."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
