"""Compare one node for several cameras with one node for each camera.

    python benchmarks/many_cameras.py --cameras 3 --heads 2

The same streams go in turn to one process that serves all cameras, and to one process for each camera, always with all
heads. Masks of every camera and head are received. Processor time and memory are those of the node's processes alone,
summed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from streams import DEMO, Cameras, Counts, Graph, Masks, Usage, account, export_demo, per_second, summary_ms

_NAMES = ("front", "left", "rear", "right")
_SETTLING_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, choices=range(1, 5), default=3)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of a camera (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="phases of each arrangement (default: %(default)s)")
    parser.add_argument(
        "--max-batch",
        type=int,
        nargs="+",
        default=[1],
        help="of the single process; several values are measured in turn",
    )
    parser.add_argument("--together", action="store_true", help="cameras send at the same moment")
    parser.add_argument(
        "--frame", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of the images"
    )
    parser.add_argument("--bundles", type=Path, nargs="+", help="exported bundles, in place of copies of the demo")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    cameras = _NAMES[: options.cameras]
    arrangements = {f"one process, max_batch {number}": (True, number) for number in options.max_batch}
    arrangements[f"{len(cameras)} processes"] = (False, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = options.bundles or export_demo(folder / "bundles", network_size_of_demo(), options.heads)
        phases: dict[str, list[dict[str, Any]]] = {name: [] for name in arrangements}
        for number in range(options.rounds):
            for name, (is_one, max_batch) in arrangements.items():
                logs = folder / f"{number}_{name.replace(' ', '_')}"
                logs.mkdir()
                with contextlib.closing(Graph(logs)) as graph:
                    phase = measure(graph, [path.resolve() for path in bundles], cameras, is_one, max_batch, options)
                phases[name].append(phase)
                print(f"{name}: {json.dumps(phase)}", file=sys.stderr, flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"options": vars(options), "phases": phases}, indent=2, default=str))
    print(table({name: merged(found) for name, found in phases.items()}))


def network_size_of_demo() -> tuple[int, int]:
    """Read (height, width) of the demo's network input, pixels."""
    return tuple(json.loads((DEMO / "bundle.json").read_text())["input"]["network_size"])


def measure(
    graph: Graph,
    bundles: list[Path],
    names: tuple[str, ...],
    is_one: bool,
    max_batch: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Run one phase; return rates, latencies, processor time, memory, and where each camera's frames went."""
    paths = "[" + ", ".join(f"'{path}'" for path in bundles) + "]"
    if is_one:
        nodes = [graph.start_node(bundles=paths, cameras=f"[{', '.join(names)}]", max_batch=max_batch)]
        statuses = {name: f"segmentation: camera {name}" for name in names}
    else:
        nodes = [graph.start_node(namespace=name, bundles=paths) for name in names]
        statuses = {name: f"{name}/segmentation: camera" for name in names}
    heads = ["", *(f"{json.loads((path / 'bundle.json').read_text())['name']}/" for path in bundles[1:])]
    masks = {name: Masks(graph, [f"{name}/segmentation/{head}mask" for head in heads]) for name in names}
    counts = {name: Counts(graph, status) for name, status in statuses.items()}
    with contextlib.closing(Cameras(graph, [f"{name}/image" for name in names], tuple(options.frame))) as cameras:
        cameras.run(options.rate, _SETTLING_S, options.together)
        before = {name: counts[name].read() for name in names}
        for received in masks.values():
            received.take()
        usage, used = Usage(nodes), {}

        def use() -> None:
            # Read within the stream: the pause after it must not count.
            used.update(cores=usage.cores(), **usage.memory_mb())

        stream = cameras.run(options.rate, options.seconds, options.together, every=(options.seconds * 0.99, use))
        found = {}
        for name in names:
            delays = masks[name].take()
            found[name] = {
                "sent_hz": round(per_second(stream["sent"][f"{name}/image"], stream), 2),
                "published_hz": {topic: round(per_second(len(all_), stream), 2) for topic, all_ in delays.items()},
                "latency_ms": {topic: summary_ms(all_) for topic, all_ in delays.items()},
                "frames": account(stream["sent"][f"{name}/image"], before[name], counts[name].read()),
            }
        return {**{key: round(value, 2) for key, value in used.items()}, "cameras": found}


def merged(phases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the phases of one arrangement."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else float("nan")

    cameras = {}
    for name in phases[0]["cameras"]:
        found = [phase["cameras"][name] for phase in phases]
        latencies = [one for camera in found for one in camera["latency_ms"].values() if one]
        cameras[name] = {
            "published_hz": mean([rate for camera in found for rate in camera["published_hz"].values()]),
            "median_ms": mean([one["median"] for one in latencies]),
            "p95_ms": mean([one["p95"] for one in latencies]),
        }
    return {**{key: mean([phase[key] for phase in phases]) for key in ("cores", "rss", "pss")}, "cameras": cameras}


def table(arrangements: dict[str, dict[str, Any]]) -> str:
    """Format the figures as a Markdown table."""
    names = next(iter(arrangements.values()))["cameras"]
    lines = [
        f"| | masks/s of a head: {', '.join(names)} | latency median / p95, ms | cores | RSS, MB | PSS, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in arrangements.items():
        cameras = found["cameras"].values()
        rates = ", ".join(f"{camera['published_hz']:.1f}" for camera in cameras)
        delays = ", ".join(f"{camera['median_ms']:.0f} / {camera['p95_ms']:.0f}" for camera in cameras)
        lines.append(
            f"| {name} | {rates} | {delays} | {found['cores']:.2f} | {found['rss']:.0f} | {found['pss']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
