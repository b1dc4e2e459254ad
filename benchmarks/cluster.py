"""Predictions on many processes against one process: ``python benchmarks/cluster.py IMAGES``.

The images of a folder are repeated up to ``--count`` (by links). They are segmented by one process with one thread, by
one with as many threads as there are workers, by the workers (``--processes``) with one thread each, and by these once
more, while a worker is killed, then the whole command, then, after ``--resume``, a worker again. All files of the four
must be equal, and those that the manifest lists. The exit status is 0 only if this holds and all were killed in the
midst.

Steps that are complete in ``--output`` are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dinov3_seg_ros.support.files import replacing_folder, sha256_of_file, sha256_of_json, write_json
from training.data.reading.tree import images_below

ROOT = Path(__file__).resolve().parents[1]
#: Of the run that is disturbed: the share of the partitions after which something is killed, and what.
KILLS = ((0.2, "worker"), (0.5, "command"), (0.75, "worker"))
REPORTS = ("summary.json", "run.json", "manifest.jsonl")


def repeat(images: Path, count: int, folder: Path) -> None:
    """Make a folder with links to the images, again and again, up to ``count``."""
    if folder.exists():
        return
    with replacing_folder(folder) as temporary:
        for number, image in zip(range(count), itertools.cycle(images_below(images)), strict=False):
            (temporary / f"{number:06d}{image.suffix.lower()}").symlink_to(image.resolve())


def start(options: argparse.Namespace, output: Path, *words: object) -> subprocess.Popen:
    line = [options.bundle, str(options.output / "images"), "--output", str(output), *map(str, words)]
    return subprocess.Popen([sys.executable, "-m", "training.predict", *line], cwd=ROOT, stdout=subprocess.DEVNULL)


def measure(output: Path, run: Callable[[], None]) -> dict[str, float]:
    """Seconds of a step with its start, and frames per second without; kept beside its folder."""
    kept = output.with_suffix(".json")
    if not kept.exists():
        began = time.monotonic()
        run()
        rate = json.loads((output / "summary.json").read_text())["frames_per_second"]
        write_json(kept, {"seconds": round(time.monotonic() - began, 1), "frames_per_second": rate})
    return json.loads(kept.read_text())


def kill_a_worker(command: subprocess.Popen) -> bool:
    """Kill one of the processes of a command that compute; whether there was one before the command ended."""
    while command.poll() is None:
        # A worker may end in the very moment, and another has not begun yet.
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(command.pid).children(recursive=True):
                if "MapWorker" in "".join(process.cmdline()):
                    process.kill()
                    return True
        time.sleep(0.01)
    return False


def partitions(output: Path) -> int:
    """Number of partitions that are done, of a run that goes on."""
    return len(list(output.glob("partitions/[0-9]*[0-9]")))


def disturb(options: argparse.Namespace, output: Path, words: list[object]) -> list[str]:
    """Run a command to its end, whatever is killed meanwhile; return what was killed, and when."""
    total = -(-options.count // options.partition)
    killed: list[str] = []
    process = start(options, output, *words)
    for share, what in KILLS:
        while process.poll() is None and partitions(output) < share * total:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        if what == "worker":
            if not kill_a_worker(process):
                break
        else:
            process.kill()
            process.wait()
        killed.append(f"{what} after {partitions(output)} of {total} partitions")
        print(f"killed a {killed[-1]}", flush=True)
        if what == "command":
            process = start(options, output, *words, "--resume")
    if process.wait() != 0:
        sys.exit(f"the disturbed run ended with {process.returncode}")
    return killed


def files(output: Path) -> dict[str, str]:
    """SHA-256 of each result."""
    found = (path for path in output.rglob("*") if path.is_file() and path.name not in REPORTS)
    return {path.relative_to(output).as_posix(): sha256_of_file(path) for path in found}


def listed(output: Path) -> list[tuple[str, str]]:
    """Each file that the manifest of all partitions lists, with its SHA-256."""
    lines = (output / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for line in lines for entry in json.loads(line)["files"].items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--count", type=int, default=5000, help="of images")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--partition", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/cluster"))
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    options.output = options.output.absolute()
    repeat(options.images, options.count, options.output / "images")
    cluster = ["--threads", 1, "--cluster", "auto", "--processes", options.processes, "--partition", options.partition]

    def run(name: str, *words: object) -> dict[str, float]:
        output = options.output / name

        def step() -> None:
            if start(options, output, *words).wait() != 0:
                sys.exit(f"{name} failed")

        found = measure(output, step)
        print(
            f"{name:<28}{found['seconds']:8.1f} s with the start, {found['frames_per_second']:7.2f} frames/s",
            flush=True,
        )
        return found

    figures = {
        "one_process_one_thread": run("one_process_one_thread", "--threads", 1),
        "one_process_all_threads": run("one_process_all_threads", "--threads", options.processes),
        "processes": run("processes", *cluster),
    }
    kept = options.output / "kills.json"

    def disturbed() -> None:
        write_json(kept, disturb(options, options.output / "disturbed", cluster))

    figures["disturbed"] = measure(options.output / "disturbed", disturbed)
    killed = json.loads(kept.read_text())
    expected = files(options.output / "one_process_one_thread")
    problems = []
    for name in figures:
        found = files(options.output / name)
        differ = [file for file in {**expected, **found} if expected.get(file) != found.get(file)]
        print(f"{name:<28}{len(found)} files, {len(differ)} of them other than one process's")
        problems += differ
        if name in ("processes", "disturbed"):
            entries = listed(options.output / name)
            twice, wrong = len(entries) - len(dict(entries)), dict(entries) != found
            print(
                f"{'':<28}{len(entries)} listed in the manifest, {twice} of them twice{', not all as they are' * wrong}"
            )
            problems += ["manifest"] * (twice or wrong)
    print(f"killed: {'; '.join(killed)}; digest of all files {sha256_of_json(expected)[:16]}")
    if options.json is not None:
        write_json(options.json, {**figures, "count": options.count, "killed": killed, "differ": len(problems)})
    return 1 if problems or len(killed) < len(KILLS) else 0


if __name__ == "__main__":
    sys.exit(main())
