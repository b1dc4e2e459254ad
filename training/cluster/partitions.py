"""What is done of a divided job, on disk, so that a job can go on after any process was killed.

Layout, below the output folder::

    run.json                          what the job is; another job is refused
    partitions/000012/manifest.json   what the partition holds, beside its files
    partitions/.000012.*              a partition that is being written
    partitions/000012.started         how often it was begun, in bytes

A partition is written under a temporary name and renamed, so it is there whole or not at all, and once, even if two
processes compute it. When all are there, their files are moved into the output folder, in the order of the partitions,
and ``manifest.jsonl`` lists them: one line for each partition.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dinov3_seg_ros.support.errors import ClusterError, OutputError
from dinov3_seg_ros.support.files import remove_temporaries, replacing_file, sha256_of_file, write_json
from training.support.differences import differences
from training.support.writing import check_free, only_writer, writing

FOLDER, RUN_FILE, MANIFEST_FILE, JOINED_FILE = "partitions", "run.json", "manifest.json", "manifest.jsonl"
#: A partition at which so many processes died is not tried again.
MOST_ATTEMPTS = 3
_STARTED = ".started"


@dataclass
class NewPartition:
    """A partition that is being written.

    Attributes:
        folder: for its files.
        facts: go into its manifest; JSON types.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)


class Partitions:
    """The partitions of one job; any process that sees the output folder may write one.

    Args:
        output: folder of the job's results.
        beside: names of the files that the command itself writes there, each by `replacing_file`.
    """

    def __init__(self, output: Path, beside: Collection[str] = ()) -> None:
        self._output, self._folder = output, output / FOLDER
        self._files = (RUN_FILE, JOINED_FILE, *beside)
        self._has_begun = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the output folder for one command. What has not begun in earnest when it ends leaves no trace.

        Raises:
            OutputError: see `only_writer`.
        """
        with only_writer(self._output):
            try:
                yield
            finally:
                if self._has_begun:
                    self._forget_empty()

    def begin(self, run: dict[str, Any], resume: bool) -> bool:
        """Begin a job, or go on with it; whether it is complete already.

        Args:
            run: what the job is; JSON types.
            resume: whether to go on with the job in the folder; where there is none, it begins.

        Raises:
            OutputError: the folder holds something else, or the job must be resumed.
        """
        path = self._output / RUN_FILE
        is_complete = (self._output / JOINED_FILE).exists() and not self._folder.exists()
        if not path.exists():
            check_free(self._output, "--output")
            with writing(path):
                write_json(path, run)
        elif not resume:
            if is_complete:
                check_free(self._output, "--output")
            raise OutputError(
                f"{self._output} holds a run that did not end; go on with --resume, choose another folder with "
                "--output, or remove it"
            )
        changed = differences(_read_run(path), run)
        changes = "; ".join(f"{key} was {before}, now {now}" for key, before, now in changed)
        if changes:
            raise OutputError(
                f"{self._output} cannot be resumed, since the rest would not fit what is there: {changes}. Undo that, "
                "or choose another folder with --output"
            )
        self._has_begun = True
        self._sweep()
        if not is_complete:
            with writing(self._folder):
                self._folder.mkdir(exist_ok=True)
        return is_complete

    def left(self, count: int) -> list[int]:
        """Numbers of the partitions that are still to do, of ``count``. A damaged one is removed."""
        found = []
        for number in range(count):
            folder = self._folder_of(number)
            if not folder.exists():
                found.append(number)
            elif not self._is_whole(number):
                with writing(folder):
                    shutil.rmtree(folder)
                found.append(number)
        return found

    @contextlib.contextmanager
    def writing(self, number: int, what: str) -> Iterator[NewPartition]:
        """Write a partition; it appears when the block ends without an error.

        Args:
            number: of the partition.
            what: it holds, for messages.

        Raises:
            ClusterError: processes died at it again and again.
            OutputError: it cannot be written.
        """
        target, started = self._folder_of(number), self._folder / f"{number:06d}{_STARTED}"
        with writing(started), open(started, "ab") as handle:
            attempts = handle.tell()
            handle.write(b".")
        if attempts >= MOST_ATTEMPTS:
            raise ClusterError(
                f"{attempts} processes died one after the other while they computed partition {number} ({what}); look "
                "whether they lack memory, or take these frames out, then go on with --resume"
            )
        with writing(target):
            folder = Path(tempfile.mkdtemp(prefix=f".{number:06d}.", dir=self._folder))
        try:
            new = NewPartition(folder)
            yield new
            with writing(target):
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                digests = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
                write_json(folder / MANIFEST_FILE, {"partition": number, "what": what, **new.facts, "files": digests})
                _rename(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        started.unlink(missing_ok=True)

    def find(self, file: str, number: int) -> Path:
        """Where a file of a partition lies: in the partition, or already in the output folder."""
        inner = self._folder_of(number) / file
        return inner if inner.exists() else self._output / file

    def manifest(self, number: int) -> dict[str, Any]:
        """The manifest of a partition that is done."""
        content: dict[str, Any] = json.loads((self._folder_of(number) / MANIFEST_FILE).read_text(encoding="utf-8"))
        return content

    def join(self, count: int, is_wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Move the files of all ``count`` partitions into the output folder, and write the manifest of all.

        What an earlier partition has is not taken again: of two frames with one name the first one counts. It may be
        interrupted and called again.

        Args:
            count: number of partitions, all of them done.
            is_wanted: whether to keep a file, by its path; others are removed with the partitions.

        Returns:
            The names of frames that were not taken.

        Raises:
            OutputError: a file cannot be moved.
        """
        owners: dict[str, int] = {}
        all_repeated: list[str] = []
        with (
            writing(self._output / JOINED_FILE),
            replacing_file(self._output / JOINED_FILE) as temporary,
            temporary.open("w", encoding="utf-8") as lines,
        ):
            for number in range(count):
                content = self.manifest(number)
                names = {file: frame_name(file) for file in content["files"]}
                repeated = {name for name in names.values() if owners.setdefault(name, number) != number}
                content["files"] = {
                    file: digest
                    for file, digest in content["files"].items()
                    if names[file] not in repeated and is_wanted(file)
                }
                for file in content["files"]:
                    self._move(self._folder_of(number) / file, self._output / file)
                all_repeated += sorted(repeated)
                lines.write(json.dumps(content, ensure_ascii=False) + "\n")
        return all_repeated

    def remove(self) -> None:
        """Remove the partitions, once everything is in the output folder."""
        # In one step, since a part of them would look like a run that did not end.
        with writing(self._folder):
            aside = Path(tempfile.mkdtemp(prefix=f".{FOLDER}.", dir=self._output))
            os.rename(self._folder, aside / FOLDER)
        shutil.rmtree(aside, ignore_errors=True)

    def _forget_empty(self) -> None:
        """Remove a job of which nothing was computed, so that it need not be resumed."""
        with contextlib.suppress(OSError):  # it holds something
            self._folder.rmdir()
            (self._output / RUN_FILE).unlink()

    def _sweep(self) -> None:
        """Remove what killed processes were writing, and forget how often they began."""
        for name in self._files:
            remove_temporaries(self._output / name)
        for aside in self._output.glob(f".{FOLDER}.*"):
            shutil.rmtree(aside, ignore_errors=True)
        for unfinished in self._folder.glob(".*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        for started in self._folder.glob(f"*{_STARTED}"):
            started.unlink()

    def _folder_of(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def _is_whole(self, number: int) -> bool:
        """Whether a partition's files are there; those that were moved already, in the output folder."""
        try:
            return all(self.find(file, number).exists() for file in self.manifest(number)["files"])
        except (OSError, ValueError):
            return False

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        try:
            os.replace(source, target)
        except FileNotFoundError:
            if not source.exists() and target.exists():  # an interrupted call has moved it
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)


def frame_name(file: str) -> str:
    """The name of the frame that a file, such as masks/day/a.png, is of: day/a."""
    return PurePosixPath(*PurePosixPath(file).parts[1:]).with_suffix("").as_posix()


def _read_run(path: Path) -> dict[str, Any]:
    """What a job is, as `Partitions.begin` wrote it.

    Raises:
        OutputError: the file is of something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}); choose another folder with --output") from error
    if not isinstance(content, dict):
        raise OutputError(f"{path} is no record of a run; choose another folder with --output")
    return content


def _rename(folder: Path, target: Path) -> None:
    """Give a partition its name, unless another process has done the same one meanwhile."""
    folder.chmod(folder.parent.stat().st_mode & 0o777)  # temporary folders are their owner's alone
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
