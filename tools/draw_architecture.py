"""Draw the rooms of the package and who imports whom, from the code, into docs/architecture.svg.

    python tools/draw_architecture.py            write the picture
    python tools/draw_architecture.py --check    exit with 1 where it is not current

A room is a folder or a module at the root of dinov3_seg_ros/. It stands above all rooms that it imports. An arrow that
another way of arrows implies is left out.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dinov3_seg_ros"
PICTURE = ROOT / "docs" / "architecture.svg"

_ROOM, _GAP, _FLOOR, _MARGIN = (150, 44), 24, 92, 20
_STYLE = """\
<style>
text { font: 16px sans-serif; fill: #1f2933; text-anchor: middle }
rect { fill: #e6f0fa; stroke: #486581; rx: 6 }
.torch { fill: #fdebd3 } .ros { fill: #dff3e4 }
.arrow { fill: none; stroke: #829ab1; stroke-width: 1.4; marker-end: url(#arrow) }
</style>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L8 4L0 8z" style="fill: #829ab1; stroke: none"/></marker></defs>"""

Graph = dict[str, set[str]]


def main() -> int:
    """Write or check the picture; 1 where it is not current."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where it is not current")
    picture = draw(read_imports())
    if not parser.parse_args().check:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
        print(f"{PICTURE.relative_to(ROOT)} is not current; run: python tools/{Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


def read_imports() -> Graph:
    """The rooms that each room imports, in whichever function; imports for type checking alone do not count."""
    graph: Graph = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        room = _room_of(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        if room is None:
            continue
        imported = graph.setdefault(room, set())
        for module in _imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            other = _room_of(tuple(module.split(".")[1:]))
            if module.split(".")[0] == PACKAGE and other not in (room, None):
                imported.add(str(other))
    return graph


def floors(graph: Graph) -> dict[str, int]:
    """The height of each room: 0, or one more than the highest room that it imports.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    heights: dict[str, int] = {}

    def height(room: str, way: tuple[str, ...] = ()) -> int:
        if room in way:
            raise ValueError(f"rooms import each other: {' -> '.join((*way, room))}")
        if room not in heights:
            heights[room] = max((height(other, (*way, room)) + 1 for other in graph[room]), default=0)
        return heights[room]

    for room in graph:
        height(room)
    return heights


def draw(graph: Graph) -> str:
    """The picture as SVG."""
    places, width, height = _lay_out(graph)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">', _STYLE]
    for room, others in sorted(graph.items()):
        for other in sorted(others - _implied(graph, room)):
            (x1, y1), (x2, y2) = places[room], places[other]
            top, bottom = y1 + _ROOM[1], y2 - 2
            bend = (bottom - top) / 2
            parts.append(
                f'<path class="arrow" d="M{x1} {top}C{x1} {top + bend:g} {x2} {bottom - bend:g} {x2} {bottom}"/>'
            )
    for room, (x, y) in sorted(places.items()):
        kind = {"model": "torch", "export": "torch", "ros": "ros", "node.py": "ros"}.get(room, "")
        parts.append(f'<rect class="{kind}" x="{x - _ROOM[0] / 2:g}" y="{y}" width="{_ROOM[0]}" height="{_ROOM[1]}"/>')
        parts.append(f'<text x="{x}" y="{y + 28}">{escape(room)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _lay_out(graph: Graph) -> tuple[dict[str, tuple[int, int]], int, int]:
    """The middle of each room's upper edge, and the picture's size: rooms stand over what they import."""
    heights = floors(graph)
    rows: dict[int, list[str]] = defaultdict(list)
    for room in sorted(graph):
        rows[heights[room]].append(room)
    widest = max(map(len, rows.values()))
    width = 2 * _MARGIN + widest * _ROOM[0] + (widest - 1) * _GAP
    places: dict[str, tuple[int, int]] = {}
    for floor, rooms in sorted(rows.items()):
        direct = {room: [places[o][0] for o in graph[room] - _implied(graph, room)] for room in rooms}
        rooms.sort(key=lambda room: sum(direct[room]) / len(direct[room]) if direct[room] else 0)
        step = width / len(rooms)
        y = _MARGIN + (max(rows) - floor) * _FLOOR
        places |= {room: (round(step * (index + 0.5)), y) for index, room in enumerate(rooms)}
    return places, width, 2 * _MARGIN + max(rows) * _FLOOR + _ROOM[1]


def _implied(graph: Graph, room: str) -> set[str]:
    """Rooms that a room reaches through another one."""
    found: set[str] = set()
    for other in graph[room]:
        found |= graph[other] | _implied(graph, other)
    return found


def _room_of(parts: tuple[str, ...]) -> str | None:
    """The room of a module, given by its path inside the package; None for the package's own face."""
    if not parts or parts[0] == "__init__":
        return None
    return parts[0] if (ROOT / PACKAGE / parts[0]).is_dir() else f"{parts[0]}.py"


def _imported_modules(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from dinov3_seg_ros import scenes` imports a room too.
            found |= {f"{node.module}.{alias.name}" if node.module == PACKAGE else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return found


if __name__ == "__main__":
    sys.exit(main())
