"""Work on many processes: the results are those of one process, whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import psutil
import pytest
import yaml
from bundles import write_tiny_bundle
from exported_bundles import write_exported_bundle
from PIL import Image
from recordings import IMAGE, image, write_bag
from trainings import CONVNEXT, forget_accelerator, tiny_recipe

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.support.errors import ClusterError, OutputError, ParameterError, RuntimeUnavailableError
from training import cache_features
from training import predict as command
from training.cluster import features, prediction, session
from training.cluster.partitions import MOST_ATTEMPTS, Partitions
from training.cluster.session import Pool, open_cluster, remove_dead_sessions
from training.prediction.inputs import Part, VideoInput
from training.samples import cache_filling

ROOT = Path(__file__).resolve().parent.parent
#: For what takes some seconds, and on a busy machine minutes.
DEADLINE_S = 300
#: What tells how a run went, and not what it found.
REPORTS = ("summary.json", "run.json", "manifest.jsonl")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", network_size=(64, 96))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Bundle:
    """A bundle that processes open without importing transformers, which takes seconds in each."""
    return write_exported_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def write_images(folder: Path, count: int, size: tuple[int, int] = (40, 60)) -> Path:
    folder.mkdir()
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(cv2.resize(small, size[::-1])).save(folder / f"{number:03d}.png")
    return folder


def sent(content: Any) -> Any:
    """What arrives of a task or a result."""
    return json.loads(json.dumps(content))


class HereCluster:
    """Computes in this process; after ``dies_after`` tasks it fails as a killed command does."""

    dies_after: ClassVar[int | None] = None
    tasks: ClassVar[list[Any]] = []

    def pool(self, processes, threads, may_use_gpus):
        return Pool(processes or 2, threads or 1, 0)

    def run(self, open_worker, job, tasks, pool):
        worker = open_worker(job)
        for number, task in enumerate(reversed(tasks)):  # in any order
            if number == self.dies_after:
                raise KeyboardInterrupt
            HereCluster.tasks.append(task)
            yield sent(worker.process(sent(task)))


@pytest.fixture
def here(monkeypatch):
    """Commands compute in this process; returns the cluster."""

    @contextlib.contextmanager
    def opened(*_):
        yield HereCluster()

    monkeypatch.setattr(prediction, "open_cluster", opened)
    monkeypatch.setattr(HereCluster, "dies_after", None)
    monkeypatch.setattr(HereCluster, "tasks", [])
    return HereCluster


def predict(bundle: Bundle, source: Path, output: Path, *options: object) -> int:
    return command.main([str(bundle.path), str(source), "--output", str(output), "--threads", "1", *map(str, options)])


def digests(output: Path) -> dict[str, str]:
    files = [path for path in output.rglob("*") if path.is_file() and path.name not in REPORTS]
    return {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def manifests(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def check_like_one_process(bundle, source, tmp_path, *options) -> None:
    """Compare tmp_path/many, which a cluster wrote, with what one process writes."""
    predict(bundle, source, tmp_path / "one", *options)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    for key in ("frames", "unreadable", "flicker", "runtime", "classes"):
        assert summary(tmp_path / "many")[key] == summary(tmp_path / "one")[key]
    listed = {file: digest for content in manifests(tmp_path / "many") for file, digest in content["files"].items()}
    assert listed == {file: found for file, found in digests(tmp_path / "many").items() if file != "overlay.mp4"}


def test_partitions_of_images_give_what_one_process_gives(bundle, tmp_path, here, capsys):
    folder = write_images(tmp_path / "in", 7)
    (folder / "002.png").write_bytes(b"no image")
    options = ("--confidence", True, "--max-batch", 2)
    assert predict(bundle, folder, tmp_path / "many", *options, "--cluster", "auto", "--partition", 3) == 1
    assert "002.png cannot be read" in capsys.readouterr().err
    check_like_one_process(bundle, folder, tmp_path, *options)
    assert [content["frames"] for content in manifests(tmp_path / "many")] == [2, 3, 1]
    assert not (tmp_path / "many" / "partitions").exists()
    again = (*options, "--cluster", "auto", "--partition", 3, "--resume")
    assert predict(bundle, folder, tmp_path / "many", *again) == 1, "as the run itself said"
    assert "is complete, 1 skipped" in capsys.readouterr().out
    (tmp_path / "many" / "summary.json").write_text("{}")
    assert predict(bundle, folder, tmp_path / "many", *again) == 1
    assert "summary.json is no summary any more" in capsys.readouterr().err
    (tmp_path / "many" / "summary.json").unlink()
    assert predict(bundle, folder, tmp_path / "many", *again) == 0


def write_video(path: Path, frames: int = 7, codec: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 24, (64, 48))
    for seed in range(frames):
        writer.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("is_bundle", [True, False])
def test_a_folder_goes_before_a_shipped_bundle_of_its_name_if_it_holds_one(tmp_path, monkeypatch, is_bundle):
    """As without --cluster."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"), 1)
    if is_bundle:
        write_tiny_bundle(Path("demo"))
    else:
        Path("demo").mkdir()
    jobs = []
    monkeypatch.setattr(command, "predict_on_cluster", lambda job, *_: jobs.append(job))
    assert command.main(["demo", "photos", "--output", "out", "--cluster", "auto"]) == 0
    assert jobs[0].bundle == (str(tmp_path / "demo") if is_bundle else "demo")


@pytest.mark.parametrize(
    ("options", "partitions"),
    [
        ((), 3),
        (("--masks", False), 3),
        (("--temporal_smoothing", 0.7, "--flicker", True), 1),
    ],
    ids=["plain", "overlay alone", "frames that depend on each other"],
)
def test_partitions_of_a_video_give_what_one_process_gives(bundle, tmp_path, here, options, partitions):
    video = write_video(tmp_path / "drive.mp4")
    assert predict(bundle, video, tmp_path / "many", *options, "--cluster", "auto", "--partition", 3) == 0
    check_like_one_process(bundle, video, tmp_path, *options)
    assert len(manifests(tmp_path / "many")) == partitions


@pytest.mark.parametrize(("file", "codec"), [("drive.mp4", "mp4v"), ("drive.mpg", "PIM1")])
def test_parts_of_a_video_hold_its_very_frames_in_any_order(tmp_path, file, codec):
    # In MPEG-1, OpenCV does not find the first twelve frames by their numbers.
    opened = VideoInput(str(write_video(tmp_path / file, 30, codec)))
    whole = dict(opened.source().frames)
    parts = opened.parts(5)
    found = {name: image for part in [*parts[3:], *parts[:3]] for name, image in opened.source(part).frames}
    assert sorted(found) == sorted(whole) and len(whole) > 25
    assert all(np.array_equal(found[name], image) for name, image in whole.items())


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_a_recording_is_divided_by_topic_and_time(bundle, tmp_path, here, storage):
    messages = [(f"/{side}/image", IMAGE, image(number)) for number in range(6) for side in ("left", "right")]
    messages.append(("/left/image", IMAGE, image(0)))  # its stamp is that of the first
    messages.append(("/left/image", IMAGE, b"damaged"))
    bag = write_bag(tmp_path / "bag", messages, storage)
    options = ("--topics", "/left/image", "/right/image", "--overlays", False)
    assert predict(bundle, bag, tmp_path / "many", *options, "--cluster", "auto", "--partition", 3) == 1
    check_like_one_process(bundle, bag, tmp_path, *options)
    assert summary(tmp_path / "many")["frames"] == 12
    assert any("two images have the stamp" in reason for reason in summary(tmp_path / "many")["unreadable"].values())
    assert [content["what"].split()[2] for content in manifests(tmp_path / "many")] == [
        *["/left/image"] * 3,
        *["/right/image"] * 2,
    ]


def test_a_run_goes_on_where_it_was_interrupted(bundle, tmp_path, here, capsys):
    folder, output = write_images(tmp_path / "in", 8), tmp_path / "many"
    options = ("--cluster", "auto", "--partition", 2)
    here.dies_after = 2
    assert predict(bundle, folder, output, *options) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (output / "summary.json").exists()
    here.dies_after = None
    assert predict(bundle, folder, output, *options) == 1
    assert "go on with --resume" in capsys.readouterr().err
    assert predict(bundle, folder, output, *options, "--resume") == 0
    numbers = [task["number"] for task in here.tasks]
    assert sorted(numbers) == [0, 1, 2, 3], "each was computed once"
    check_like_one_process(bundle, folder, tmp_path)
    assert predict(bundle, folder, output, *options, "--resume") == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert predict(bundle, folder, output, *options) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: ("--alpha", 0.3), "alpha"),
        (lambda folder: ("--partition", 3), "partition"),
        (lambda folder: write_images(folder / "more", 1) and (), "files"),
    ],
    ids=["settings", "partition", "input"],
)
def test_another_run_is_not_resumed(bundle, tmp_path, here, capsys, change, named):
    folder, output = write_images(tmp_path / "in", 6), tmp_path / "out"
    here.dies_after = 1
    assert predict(bundle, folder, output, "--cluster", "auto", "--partition", 2) == 130
    before = digests(output)
    options = ("--cluster", "auto", "--partition", 2, "--resume", *change(folder))
    assert predict(bundle, folder, output, *options) == 1
    said = capsys.readouterr().err
    assert "cannot be resumed" in said
    assert f"{named} was" in said
    assert digests(output) == before


def test_a_join_that_was_killed_is_done_again(bundle, tmp_path, here, monkeypatch):
    folder, output = write_images(tmp_path / "in", 6), tmp_path / "many"
    move, moved = Partitions._move, []

    def dies(source, target):
        if len(moved) == 5:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(Partitions, "_move", staticmethod(dies))
    assert predict(bundle, folder, output, "--cluster", "auto", "--partition", 2) == 130
    monkeypatch.setattr(Partitions, "_move", staticmethod(move))
    here.tasks.clear()
    assert predict(bundle, folder, output, "--cluster", "auto", "--partition", 2, "--resume") == 0
    assert here.tasks == []
    check_like_one_process(bundle, folder, tmp_path)


def test_only_what_a_killed_command_left_is_removed(tmp_path):
    output = tmp_path / "out"
    partitions = Partitions(output, beside=("summary.json",))
    with partitions.alone():
        partitions.begin({"job": 1}, resume=False)
        with partitions.writing(0, "images"):
            pass
    left = [".summary.k2j4_a9x.json", ".manifest.abcdefgh.jsonl", "partitions/000001.started"]
    kept = [".git/HEAD", ".notes", ".summary.of_mine.of.json"]
    for name in (*left, *kept):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).touch()
    for name in (".partitions.abcdefgh", "partitions/.000001.abcdefgh"):
        (output / name).mkdir()
    partitions.begin({"job": 1}, resume=True)
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert found == {*kept, "run.json", "partitions/000000/manifest.json"}
    assert sorted(path.name for path in output.rglob("*") if path.is_dir()) == [".git", "000000", "partitions"]


def test_folders_that_were_there_stay_when_a_run_is_refused(tmp_path):
    (tmp_path / "out" / "partitions").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text("[]")
    partitions = Partitions(tmp_path / "out")
    with pytest.raises(OutputError, match=r"run.json is no record of a run"), partitions.alone():
        partitions.begin({"job": 1}, resume=True)
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"run.json cannot be read"), partitions.alone():
        partitions.begin({"job": 1}, resume=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["partitions", "run.json"]


def test_a_damaged_partition_is_computed_again(bundle, tmp_path, here):
    folder, output = write_images(tmp_path / "in", 6), tmp_path / "many"
    here.dies_after = 2
    predict(bundle, folder, output, "--cluster", "auto", "--partition", 2)
    next((output / "partitions" / "000002" / "masks").iterdir()).unlink()
    here.dies_after = None
    here.tasks.clear()
    assert predict(bundle, folder, output, "--cluster", "auto", "--partition", 2, "--resume") == 0
    assert sorted(task["number"] for task in here.tasks) == [0, 2]
    check_like_one_process(bundle, folder, tmp_path)


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeUnavailableError, match=r"ray is not installed: pip install '\.\[cluster\]'"):
        open_cluster("auto").__enter__()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "is no address"),
        ("127.0.0.1:1", "no Ray cluster can be reached at 127.0.0.1:1"),
        ("a..b:1", "no Ray cluster can be reached at a..b:1"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(bundle, tmp_path, capsys, address, message):
    pytest.importorskip("ray", reason="Ray is not installed")
    folder, output = write_images(tmp_path / "in", 2), tmp_path / "out"
    assert predict(bundle, folder, output, "--cluster", address) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_of_two_processes_at_one_partition_one_is_taken(tmp_path):
    partitions = Partitions(tmp_path / "out")
    with partitions.alone():
        partitions.begin({"job": 1}, resume=False)
        with partitions.writing(0, "first") as slow, partitions.writing(0, "second") as fast:
            for new, text in ((slow, "slow"), (fast, "fast")):
                (new.folder / "masks").mkdir()
                (new.folder / "masks" / "a.png").write_text(text)
        assert partitions.left(1) == []
        assert partitions.join(1) == []
        partitions.remove()
    assert (tmp_path / "out" / "masks" / "a.png").read_text() == "fast"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.jsonl", "masks", "run.json"]


def test_a_partition_that_kills_its_process_again_and_again_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    partitions = Partitions(tmp_path / "out")
    partitions.begin({"job": 1}, resume=False)
    for _ in range(MOST_ATTEMPTS):
        partitions.writing(3, "images a to b").__enter__()
    with pytest.raises(ClusterError, match=r"partition 3 \(images a to b\)"), partitions.writing(3, "images a to b"):
        pass
    partitions.begin({"job": 1}, resume=True)
    with partitions.writing(3, "images a to b"):
        pass
    assert partitions.left(4) == [0, 1, 2]


def test_two_commands_do_not_write_to_one_folder(tmp_path):
    first, second = Partitions(tmp_path / "out"), Partitions(tmp_path / "out")
    with first.alone(), pytest.raises(OutputError, match="another process writes"), second.alone():
        pass


def test_a_part_is_the_same_after_it_was_sent():
    for part in (Part(names=("a.png", "b/c.jpg")), Part(topic="/front", start=5), Part(start=0, stop=7), Part()):
        assert Part.from_json(sent(dataclasses.asdict(part))) == part


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processes", 2), "--processes belongs to --cluster"),
        (("--resume",), "--resume belongs to --cluster"),
        (("--cluster", "auto", "--frames", 3), "one process takes"),
    ],
)
def test_options_that_do_not_fit_are_one_message(bundle, tmp_path, capsys, options, message):
    folder = write_images(tmp_path / "in", 1)
    assert predict(bundle, folder, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_webcam_is_not_divided(bundle, tmp_path, here, capsys):
    assert predict(bundle, Path("0"), tmp_path / "out", "--cluster", "auto") == 1
    assert "'0' is no file, and only files can be divided; leave out --cluster" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_16_bit_images_need_a_range_before_they_are_divided(bundle, tmp_path, here, capsys):
    folder = write_images(tmp_path / "in", 1)
    cv2.imwrite(str(folder / "depth.png"), np.full((40, 60), 3000, np.uint16))
    assert predict(bundle, folder, tmp_path / "auto", "--cluster", "auto") == 1
    assert "set value_range" in capsys.readouterr().err
    options = ("--value_range", 0, 4095)
    assert predict(bundle, folder, tmp_path / "many", *options, "--cluster", "auto") == 0
    check_like_one_process(bundle, folder, tmp_path, *options)


def test_feature_caches_are_computed_in_partitions_and_used(tmp_path, here, monkeypatch, capsys):
    save_backbone(build_backbone(CONVNEXT), tmp_path / "source")
    for name in ("one", "many"):
        section = {"views": 2, "folder": str(tmp_path / name)}
        backbone = {"source": str(tmp_path / "source"), "layers": [1, 2, 3]}
        augmented = {"augmentation": {"scale": [0.5, 1.5]}, "stages": [{"epochs": 1}, {"epochs": 2}]}
        recipe = tiny_recipe(tmp_path, backbone=backbone, cache=section, **augmented)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    monkeypatch.setattr(features, "open_cluster", prediction.open_cluster)
    forget_accelerator()
    assert cache_features.main([str(tmp_path / "one.yaml")]) == 0
    options = ("--cluster", "auto", "--partition", "4", "--threads", "1")
    here.dies_after = 2
    assert cache_features.main([str(tmp_path / "many.yaml"), *options]) == 130
    here.dies_after = None
    assert cache_features.main([str(tmp_path / "many.yaml"), *options]) == 0
    keys = [tuple(key) for task in here.tasks for key in task[1]]
    assert len(keys) == len(set(keys)) == 16, "each was computed once"
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    assert cache_features.main([str(tmp_path / "many.yaml"), *options]) == 0
    assert "all 16 samples are there" in capsys.readouterr().out


def test_features_that_another_command_computed_meanwhile_need_no_cluster(tmp_path, here, monkeypatch, capsys):
    save_backbone(build_backbone(CONVNEXT), tmp_path / "source")
    backbone = {"source": str(tmp_path / "source"), "layers": [1, 2, 3]}
    recipe = tiny_recipe(tmp_path, backbone=backbone, cache={"views": 1, "folder": str(tmp_path / "caches")})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    forget_accelerator()
    alone_in = cache_filling._alone_in

    @contextlib.contextmanager
    def after_another(folder, console):
        monkeypatch.setattr(cache_filling, "_alone_in", alone_in)
        assert cache_features.main([str(tmp_path / "recipe.yaml")]) == 0
        with alone_in(folder, console):
            yield

    monkeypatch.setattr(cache_filling, "_alone_in", after_another)
    monkeypatch.setattr(features, "open_cluster", None)
    assert cache_features.main([str(tmp_path / "recipe.yaml"), "--cluster", "auto"]) == 0
    assert "0 of 8 samples to compute" in capsys.readouterr().out


def test_threads_of_a_cluster_are_refused_without_one(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert cache_features.main([str(tmp_path / "recipe.yaml"), "--threads", "2"]) == 2
    assert "--threads belongs to --cluster" in capsys.readouterr().err


def test_a_folder_for_ray_that_another_command_removed_is_made_anew(tmp_path, monkeypatch):
    locks = []

    @contextlib.contextmanager
    def removed_at_first(folder):
        locks.append(folder)
        if len(locks) == 1:
            folder.rmdir()
        yield

    monkeypatch.setattr(session, "locked", removed_at_first)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.ExitStack() as stack:
        folder = session._session_folder(stack)
        assert folder.is_dir() and folder == locks[1] != locks[0]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def ray_here():
    """Ray on this machine, for all tests of this module; it leaves nothing behind."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        with open_cluster("auto", 2, 1) as cluster:
            assert list(Path(folder).glob("*ray*"))
            yield cluster
        remove_dead_sessions()  # of a command that was killed
        assert not list(Path(folder).glob("*ray*"))


def workers() -> list[psutil.Process]:
    """Ray's processes that compute, of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "MapWorker" in "".join(process.cmdline()):
                found.append(process)
    return found


def kill_one_in_the_midst(output: Path, killed: list[int]) -> None:
    """Kill a worker once some partitions are done."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and not killed:
        if list(output.glob("partitions/[0-9]*[0-9]")):
            for process in workers()[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.append(len(list(output.glob("partitions/[0-9]*[0-9]"))))
        time.sleep(0.005)


def test_a_killed_worker_loses_nothing_and_doubles_nothing(exported, tmp_path, ray_here):
    folder, killed = write_images(tmp_path / "in", 90, (200, 300)), []
    killer = threading.Thread(target=kill_one_in_the_midst, args=(tmp_path / "many", killed))
    killer.start()
    options = ("--cluster", "auto", "--processes", 2, "--partition", 5)
    assert predict(exported, folder, tmp_path / "many", *options) == 0
    killer.join()
    assert killed and killed[0] < 18, "the worker was killed in the midst"
    check_like_one_process(exported, folder, tmp_path)


def test_a_killed_command_goes_on_where_it_was(exported, tmp_path, ray_here, here):
    folder, output = write_images(tmp_path / "in", 90, (200, 300)), tmp_path / "many"
    options = ["--cluster", "auto", "--processes", "1", "--partition", "5"]
    line = [str(exported.path), str(folder), "--output", str(output), "--threads", "1", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    running = subprocess.Popen([sys.executable, "-m", "training.predict", *line], cwd=ROOT, env=environment)
    deadline = time.monotonic() + DEADLINE_S
    while not list(output.glob("partitions/[0-9]*[0-9]")) and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = {path.name for path in output.glob("partitions/[0-9]*[0-9]")}
    assert done
    assert not (output / "summary.json").exists()
    assert predict(exported, folder, output, *options, "--resume") == 0
    assert not done & {f"{task['number']:06d}" for task in here.tasks}
    check_like_one_process(exported, folder, tmp_path)


def test_what_no_worker_can_do_ends_the_run(ray_here):
    def open_worker(job):
        raise ParameterError(f"{job} is wrong")

    with pytest.raises(ClusterError, match=r"a worker on \S+ cannot go on: the job is wrong"):
        list(ray_here.run(open_worker, "the job", ["task"], Pool(1, 1, 0)))
