"""Open rosbag2 recordings, read and copy their messages, and write a recording whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from dinov3_seg_ros.bag.message_types import type_hash
from dinov3_seg_ros.support.errors import DatasetError, OutputError
from dinov3_seg_ros.support.files import check_outside

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, ConnectionExtRosbag2, Qos
    from rosbags.rosbag2 import Reader, Writer
    from rosbags.typesys.store import Typestore

STORAGES = ("sqlite3", "mcap")
# The suffixes of the files in which they store messages.
_SUFFIXES = (".db3", ".mcap")
# The suffixes of such files that were compressed as a whole.
_COMPRESSED = tuple(f"{suffix}.zstd" for suffix in _SUFFIXES)
# How a ROS 1 bag begins.
_ROS_1 = b"#ROSBAG V"
# How an MCAP file begins, and ends once it is closed.
_MCAP = b"\x89MCAP0\r\n"
# How a message compressed with zstd begins; CDR begins with 0.
_ZSTD = b"\x28\xb5\x2f\xfd"
# rosbags opens sqlite3 files by a URI, in which these signs have a meaning.
_SIGNS_OF_URIS = re.compile("[#?]|%[0-9A-Fa-f]{2}")
# The last metadata that Humble reads: from 9 on the quality of service is no longer a text. Newer ROS reads both.
_VERSION: Final = 8

#: Connection, recording time in nanoseconds, and serialised message.
RecordedMessage: TypeAlias = "tuple[Connection, int, bytes]"
#: Wraps messages to show the progress; called with the messages and their number.
Track: TypeAlias = Callable[[Iterable[RecordedMessage], int], Iterable[RecordedMessage]]


def untracked(messages: Iterable[RecordedMessage], count: int) -> Iterable[RecordedMessage]:
    """Show no progress; a `Track`."""
    return messages


def storage_of(source: Path) -> str:
    """The storage of a recording, a folder or a single file: one of `STORAGES`."""
    files = [source] if source.is_file() else source.iterdir()
    return "mcap" if any(".mcap" in file.suffixes for file in files) else "sqlite3"


@contextlib.contextmanager
def open_recording(source: Path) -> Iterator[Reader]:
    """Open a recording: a folder, or a single file.

    Raises:
        DatasetError: it is no rosbag2, or is damaged.
    """
    from rosbags.rosbag2 import Reader

    _check_form(source)
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(Reader(source))
        except Exception as error:  # of the file system, YAML, SQLite, MCAP and the compressions
            raise DatasetError(f"{source} cannot be read as a rosbag2: {error}") from error
        yield reader


def _check_form(source: Path) -> None:
    """Say what to do with a recording of another form.

    Raises:
        DatasetError: it is a ROS 1 bag, a folder whose metadata.yaml is lost, a compressed file, or was not written to
            its end.
    """
    _check_sqlite(source)
    _check_mcap(source)
    if source.is_file():
        with source.open("rb") as file:
            if file.read(len(_ROS_1)) == _ROS_1:
                target = source.with_suffix("")
                raise DatasetError(
                    f"{source} is a ROS 1 bag; convert it with: rosbags-convert --src {source} --dst {target}, then "
                    f"give {target}"
                )
        _check_decompressed([source])
    elif source.is_dir() and not (source / "metadata.yaml").exists():
        files = _storage_files(source)
        if files:
            also = f", or write it anew with: ros2 bag reindex {source}" if len(files) > 1 else ""
            raise DatasetError(
                f"{source} has no metadata.yaml; give the file itself: {', '.join(map(str, files))}{also}"
            )
        _check_decompressed(sorted(source.iterdir()))
        bags = sorted(str(path) for path in source.glob("*.bag"))
        if bags:
            raise DatasetError(f"{source} holds ROS 1 bags; convert each with rosbags-convert, such as {bags[0]}")
        raise DatasetError(
            f"{source} cannot be read as a rosbag2: it has no metadata.yaml; give a folder that 'ros2 bag record' wrote"
        )


def _check_decompressed(files: Sequence[Path]) -> None:
    for file in files:
        if file.name.endswith(_COMPRESSED):
            raise DatasetError(
                f"{file} is compressed, and cannot be read without the metadata.yaml of its folder; decompress it: "
                f"zstd -d {file}, then give {file.with_suffix('')}"
            )


def _storage_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)


def _check_sqlite(source: Path) -> None:
    """Check what rosbags cannot read of sqlite3.

    Raises:
        DatasetError: a path has signs of a URI, or messages are in SQLite's write-ahead log alone.
    """
    files = sorted(source.glob("*.db3")) if source.is_dir() else [source]
    for file in files:
        sign = _SIGNS_OF_URIS.search(str(file))
        if sign and file.suffix == ".db3" and file.exists():
            raise DatasetError(
                f"{file} has '{sign[0]}' in its path, with which rosbags cannot read sqlite3; give a path without it, "
                "such as a symbolic link, or convert it to MCAP with 'ros2 bag convert'"
            )
        log = file.with_name(f"{file.name}-wal")
        if log.exists() and log.stat().st_size:
            raise DatasetError(
                f"{file} was not closed, and its newest messages are in {log.name}; move them into it: "
                f"sqlite3 {file} 'PRAGMA wal_checkpoint(TRUNCATE)'"
            )


def _check_mcap(source: Path) -> None:
    """Check that MCAP files were closed.

    Raises:
        DatasetError: the end of one is missing.
    """
    files = sorted(source.glob("*.mcap")) if source.is_dir() else [source]
    for path in files:
        if path.suffix != ".mcap" or not path.is_file():
            continue
        with path.open("rb") as file:
            is_mcap = file.read(len(_MCAP)) == _MCAP
            file.seek(max(len(_MCAP), path.stat().st_size - len(_MCAP)))
            if is_mcap and file.read() != _MCAP:
                raise DatasetError(
                    f"{path} has no end: it was cut off, or is still being written; save what it holds with: "
                    f"mcap recover {path} --output NEW.mcap, and take that in its place"
                )


def messages_of(
    reader: Reader,
    source: Path,
    connections: Collection[Connection] = (),
    start: int | None = None,
    stop: int | None = None,
) -> Iterator[RecordedMessage]:
    """The messages of a recording, in order.

    Args:
        reader: from `open_recording`.
        source: its path, for the error.
        connections: those whose messages are wanted; none: all.
        start, stop: the first recording time, and the first one after the last, nanoseconds; None: no limit.

    Raises:
        DatasetError: see `check_metadata`; or the recording is damaged; or, without limits, holds fewer messages than
            it says.
    """
    check_metadata(reader, source, connections)
    arrived: Counter[str] = Counter()
    try:
        for connection, recorded, raw in reader.messages(connections, start, stop):
            arrived[connection.topic] += 1
            yield connection, recorded, _decompressed(raw) if raw.startswith(_ZSTD) else raw
    except Exception as error:
        raise DatasetError(f"{source} is damaged, or cannot be read to its end: {error}") from error
    if start is None and stop is None:
        _check_counts(source, connections or reader.connections, arrived)


def _decompressed(raw: bytes) -> bytes:
    """A message that was compressed by itself, of a file without the metadata.yaml that tells rosbags so."""
    # By the library that rosbags takes, which differs among its releases.
    reader = importlib.import_module("rosbags.rosbag2.reader")
    return cast("bytes", reader.zstd.decompress(raw))


def check_metadata(reader: Reader, source: Path, connections: Collection[Connection] = ()) -> None:
    """Check, before any message is read, that metadata.yaml lets all be read that it states.

    Args:
        reader: from `open_recording`.
        source: its path, for the error.
        connections: those whose messages are wanted; none: all.

    Raises:
        DatasetError: the storage holds fewer messages on a topic, or describes the topic in another way.
    """
    storages = getattr(reader.storage, "storages", ())  # those of a folder; a single file has no metadata.yaml
    # MCAP need not count the messages of each channel.
    if not storages or any(
        sum(kept.msgcount for kept in storage.connections) < storage.metadata.message_count for storage in storages
    ):
        return
    wanted = connections or reader.connections
    readable: Counter[str] = Counter()
    for kept in (kept for storage in storages for kept in storage.connections):
        if any(_is_read(kept, connection) for connection in wanted):
            readable[kept.topic] += kept.msgcount
    _check_counts(source, wanted, readable)


def _is_read(kept: Connection, listed: Connection) -> bool:
    """Whether rosbags reads the messages of a storage's connection for one that metadata.yaml lists."""
    digests = {kept.digest, listed.digest} - {""}
    return _kind(kept) == _kind(listed) and len(digests) < 2


def _check_counts(source: Path, connections: Collection[Connection], readable: Mapping[str, int]) -> None:
    """Check the number of messages: what metadata or index do not fit, rosbags leaves out without a word.

    Raises:
        DatasetError: fewer messages of a topic could be read than the recording says.
    """
    stated: Counter[str] = Counter()
    for connection in connections:
        stated[connection.topic] += connection.msgcount
    what, remedy = "index", f"write it anew with: mcap recover {source} --output NEW.mcap"
    if source.is_dir():
        what, remedy = "metadata.yaml", f"write that anew with: ros2 bag reindex {source}"
        if files := _storage_files(source):
            remedy = f"give the file itself: {', '.join(map(str, files))}, or {remedy}"
    for topic, count in stated.items():
        if readable[topic] < count:
            raise DatasetError(
                f"{source} states {count} messages on {topic}, but {readable[topic]} could be read: its {what} does "
                f"not fit what is stored; {remedy}"
            )


@contextlib.contextmanager
def new_recording(target: Path, source: Path, storage: str) -> Iterator[Writer]:
    """A writer of a rosbag2 that appears under its name only when it is complete.

    Args:
        target: folder to make.
        source: the recording that it is made from.
        storage: one of `STORAGES`.

    Raises:
        OutputError: the folder exists, lies in that of ``source``, or cannot be written.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

    if target.exists():
        raise OutputError(f"{target} exists; name a folder that does not")
    check_outside(target, source)
    sign = _SIGNS_OF_URIS.search(str(target.absolute()))
    if sign and storage == "sqlite3":
        raise OutputError(
            f"{target.absolute()} has '{sign[0]}' in its path, with which rosbags cannot write sqlite3; name another "
            "folder, or add --storage mcap"
        )
    plugin = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}[storage]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Inside a temporary folder, since the files of a bag are named after the bag's own folder.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            with Writer(Path(folder) / target.name, version=_VERSION, storage_plugin=plugin) as writer:
                yield writer
            (Path(folder) / target.name).rename(target)
    except (OSError, sqlite3.Error, WriterError) as error:
        raise OutputError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def copy_connections(writer: Writer, connections: Sequence[Connection], types: Typestore) -> dict[int, Connection]:
    """Add a recording's connections to a writer, as they are; the publishers of one topic share one.

    Args:
        writer: from `new_recording`.
        connections: of the recording.
        types: known where the recording does not define them.

    Returns:
        The writer's connections, by their id in the recording.

    Raises:
        DatasetError: a message type is not defined.
    """
    copies: dict[int, Connection] = {}
    for connection in connections:
        alike = next(c for c in connections if _kind(c) == _kind(connection))
        copies[connection.id] = copies.get(alike.id) or _copied(writer, connection, types)
    return copies


def copy_custom_data(writer: Writer, reader: Reader) -> None:
    """Add what the user noted in a recording's metadata to a writer."""
    for key, value in (reader.storage.metadata.custom or {}).items():
        writer.set_custom_data(key, str(value))


def add_topic(
    writer: Writer, types: Typestore, topic: str, kind: str, existing: set[str], qos: Sequence[Qos] = ()
) -> Connection:
    """Add a topic of our own to a writer.

    Args:
        writer: from `new_recording`.
        types: that know ``kind``.
        topic: full name.
        kind: type of its messages.
        existing: all topics so far; gains the new one.
        qos: offered quality of service; none: what players take by themselves.

    Raises:
        DatasetError: there is such a topic.
    """
    if topic in existing:
        raise DatasetError(
            f"the recording would get a second topic {topic}; take one camera of each namespace, in a recording that "
            "has no such topic yet"
        )
    existing.add(topic)
    return writer.add_connection(topic, kind, typestore=types, offered_qos_profiles=qos)


def _copied(writer: Writer, connection: Connection, types: Typestore) -> Connection:
    from rosbags.interfaces import MessageDefinitionFormat

    is_defined = connection.msgdef.format != MessageDefinitionFormat.NONE  # a type without fields has an empty text
    definition, digest = connection.msgdef.data if is_defined else None, connection.digest or None
    if definition is not None and digest is None:
        digest = type_hash(connection)
    ext = cast("ConnectionExtRosbag2", connection.ext)  # the other form is that of ROS 1
    if definition is None and connection.msgtype not in types.fielddefs:
        raise DatasetError(
            f"the recording does not say what {connection.msgtype} ({connection.topic}) is; convert it with "
            "'ros2 bag convert' on a machine that has this type"
        )
    return writer.add_connection(
        connection.topic,
        connection.msgtype,
        typestore=types,
        msgdef=definition,
        rihs01=digest,
        serialization_format=ext.serialization_format,
        offered_qos_profiles=ext.offered_qos_profiles,
    )


def _kind(connection: Connection) -> tuple[Any, ...]:
    """The properties by which a rosbag2 tells connections apart."""
    return connection.topic, connection.msgtype, connection.ext
