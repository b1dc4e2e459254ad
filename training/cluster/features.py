"""Feature caches on a cluster: each process computes some of the samples that are absent.

A sample is a file of its own, under a name that says what it is, so no partitions are kept here: whatever was killed,
the next command computes what is absent.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from dinov3_seg_ros.segmenter import limit_threads
from training.cluster.arguments import ClusterSettings
from training.cluster.session import open_cluster
from training.loop.trainer import Trainer
from training.recipes.schema import Recipe
from training.samples.cache_filling import distinct
from training.samples.loader import Key


@dataclass(frozen=True)
class FeatureJob:
    """What the processes of a cluster need to know.

    Attributes:
        recipe: as the command was given it.
        digest: of the training split; reading all of it once is enough.
        folder: from which the recipe's relative paths go.
        threads: of each process.
    """

    recipe: Recipe
    digest: str
    folder: str
    threads: int = 0


class FeatureWorker:
    """Computes samples of a recipe's feature caches, in one process.

    Args:
        job: of all processes.

    Raises:
        SegmentationError: data or backbone cannot be opened here.
    """

    def __init__(self, job: FeatureJob) -> None:
        os.chdir(job.folder)
        torch.set_num_threads(job.threads)
        limit_threads(job.threads)
        self._stages = Trainer(job.recipe, Console(quiet=True)).caches(job.digest)
        self._caches = distinct(self._stages.by_stage)

    def process(self, task: tuple[int, list[Sequence[int]]]) -> int:
        """Compute the samples of a task; see `Worker.process`. The result is their number."""
        number, keys = task
        samples: list[Key] = [(view, index) for view, index in keys]
        done = self._caches[number].fill(samples, self._stages.extract, self._stages.batch_size, workers=0)
        return sum(done)


def cache_on_cluster(recipe: Recipe, cluster: ClusterSettings, threads: int, console: Console) -> None:
    """Compute the features that a recipe's caches lack, on many processes.

    Args:
        recipe: with a frozen backbone, and ``cache.views`` of at least 1.
        cluster: the processes.
        threads: cores of each; 0: see `Cluster.pool`.
        console: for people.

    Raises:
        SegmentationError: the recipe, its data or the cluster cannot be used.
    """
    trainer = Trainer(recipe, console)
    job = FeatureJob(recipe, trainer.data_digest(), os.getcwd())
    caches = trainer.caches(job.digest)
    size = -(-cluster.partition // caches.batch_size) * caches.batch_size

    def compute(missing: Sequence[Sequence[Key]]) -> Iterator[int]:
        tasks = [
            (number, keys[start : start + size])
            for number, keys in enumerate(missing)
            for start in range(0, len(keys), size)
        ]
        if not tasks:  # another command computed them while this one waited for the folder
            return
        with open_cluster(cluster.address, cluster.processes, threads) as opened:
            pool = opened.pool(cluster.processes, threads, may_use_gpus=True)
            pool = dataclasses.replace(pool, processes=min(pool.processes, len(tasks)))
            of_pool = dataclasses.replace(job, threads=pool.threads)
            yield from opened.run(FeatureWorker, of_pool, tasks, pool)

    caches.fill(console, compute)
