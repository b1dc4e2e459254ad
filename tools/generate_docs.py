"""Write the options in docs/, config/segmentation.yaml and launch/parameters.json from the code; or check them.

    python tools/generate_docs.py            write them
    python tools/generate_docs.py --check    exit with 1 and name the files that differ

A list stands in a page between ``<!-- begin generated: NAME -->`` and ``<!-- end generated: NAME -->``.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dinov3_seg_ros.options import ComputeOptions, NodeOptions, PublishOptions  # noqa: E402
from dinov3_seg_ros.support.option_model import Options, describe_options  # noqa: E402
from dinov3_seg_ros.support.option_values import Option, options_as_json, to_parameter  # noqa: E402

PARAMETER_FILE = ROOT / "config" / "segmentation.yaml"
LAUNCH_PARAMETERS = ROOT / "launch" / "parameters.json"
PARAMETER_FILE_HEAD = """\
# Parameters of the segmentation node, with their defaults: all but `class_names`, which is read-only. Copy, change, and
# give to `ros2 launch dinov3_seg_ros seg.launch.py params_file:=...`. `/**` matches the node in any namespace.
# An empty text, [""] and [0, 0] stand for the default that the description names.
# This file is made from dinov3_seg_ros/options.py by tools/generate_docs.py.
/**:
  ros__parameters:
"""
PARAMETER_FILE_TAIL = """\
    # Quality of service, by a topic's full name:
    # qos_overrides./segmentation/mask.publisher.reliability: best_effort
"""
_BLOCK = re.compile(r"(<!-- begin generated: (\w+) -->\n).*?(<!-- end generated: \2 -->)", re.DOTALL)
_WIDTH = 118


def main() -> int:
    """Write or check; 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is not current")
    check = parser.parse_args().check
    stale = {path: text for path, text in generate().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} is not current; run: python tools/generate_docs.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


def generate() -> dict[Path, str]:
    """What each file should hold."""
    lists = {
        "parameters": parameter_list(NodeOptions),
        "launch": launch_list(),
        "compute": flag_list(ComputeOptions),
        "publish": flag_list(PublishOptions),
    }
    found = {
        PARAMETER_FILE: parameter_file(),
        LAUNCH_PARAMETERS: options_as_json(describe_options(NodeOptions).values()),
    }
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found[page] = _BLOCK.sub(lambda match: f"{match[1]}{lists[match[2]]}{match[3]}", text)
    return found


def parameter_list(model: type[Options]) -> str:
    """The node's parameters."""
    return "".join(
        _item(option.name, f"{_ros_type(option)}, `{_yaml(to_parameter(option, option.default))}`", _described(option))
        for option in describe_options(model).values()
    )


def flag_list(model: type[Options]) -> str:
    """The flags that commands have for a model's options."""
    return "".join(
        _item(
            f"--{option.name.replace('_', '-')}",
            _flag_default(option),
            _described(option, live=False),
        )
        for option in describe_options(model).values()
    )


def _flag_default(option: Option) -> str:
    if option.kind == "bool":
        off = f"--no-{option.name.replace('_', '-')}"
        return f"on; `{off}` switches it off" if option.default else f"off, as with `{off}`"
    return "" if option.default in (None, "", ()) else f"`{option.default}`"


def launch_list() -> str:
    """The arguments of seg.launch.py that are no parameters."""
    return "".join(
        _item(name, f"`{default}`" if default else "", text) for name, (default, text) in _launch().OTHERS.items()
    )


def parameter_file() -> str:
    """The content of config/segmentation.yaml."""
    lines = []
    for option in describe_options(NodeOptions).values():
        lines += [f"    # {line}" for line in textwrap.wrap(_described(option, code=False), _WIDTH - 6)]
        lines.append(f"    {option.name}: {_yaml(to_parameter(option, option.default))}")
    return PARAMETER_FILE_HEAD + "\n".join(lines) + "\n" + PARAMETER_FILE_TAIL


def _described(option: Option, live: bool = True, code: bool = True) -> str:
    explained = option.explain("`" if code else "")
    return f"{explained} May be changed at any time." if live and option.live else explained


def _ros_type(option: Option) -> str:
    return {
        "text": "string",
        "texts": "string array",
        "size": "integer array",
        "range": "string or integer array",
        "int": "integer",
        "float": "double",
    }.get(option.kind, option.kind)


def _yaml(value: Any) -> str:
    if value == [""]:
        return '[""]'
    if value == "":
        return '""'
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDTH).removesuffix("\n...\n").strip()


def _item(name: str, default: str, text: str) -> str:
    """One entry of a list: name, default, meaning."""
    return (
        textwrap.fill(f"- `{name}`{f' ({default})' if default else ''}: {text}", _WIDTH, subsequent_indent="  ") + "\n"
    )


def _launch() -> ModuleType:
    """The launch file, whose arguments must be readable without ROS too."""
    for name in ("", ".actions", ".logging", ".substitutions", "_ros", "_ros.actions"):
        sys.modules.setdefault(f"launch{name}", _Anything(f"launch{name}"))
    spec = importlib.util.spec_from_file_location("seg_launch", ROOT / "launch" / "seg.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Anything(ModuleType):
    """A module in which every name exists."""

    def __getattr__(self, name: str) -> Any:
        return object


if __name__ == "__main__":
    sys.exit(main())
