"""Compute the features of a frozen backbone for a recipe, so that its trainings find them on the disk.

``python -m training.cache_features RECIPE [--cluster auto|ADDRESS] [--key value ...]``

A training computes what is absent itself. This command does so beforehand, on many processes and machines.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from dinov3_seg_ros.support.command_line import UsageError, run_command, whole_number
from dinov3_seg_ros.support.errors import RecipeError
from training.cluster.arguments import add_cluster_arguments, read_cluster_arguments
from training.recipes.loading import RECIPE_HELP, load_recipe
from training.recipes.overrides import SettingsParser
from training.recipes.schema import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = SettingsParser(
        "training.cache_features",
        __doc__,
        "RECIPE [--cluster auto|ADDRESS] [--key value ...]",
        Recipe,
        lambda options, overrides: load_recipe(options.recipe, overrides),
    )
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    add_cluster_arguments(parser, leave_out=("--resume",))
    parser.add_argument(
        "--threads", type=whole_number(1), default=0, metavar="NUMBER", help="cores of each process of a cluster"
    )

    def work(words: list[str]) -> None:
        options, overrides = parser.parse_settings(words)
        cluster, recipe = read_cluster_arguments(options), load_recipe(options.recipe, overrides)
        console = Console(markup=False)
        if cluster is None and options.threads:
            raise UsageError("--threads belongs to --cluster; add --cluster auto for processes on this machine")
        if not recipe.cache.views:
            raise RecipeError("the recipe keeps no features; add --cache.views with the number of views of each image")
        if cluster is None:
            from training.loop.trainer import Trainer

            Trainer(recipe, console).use_cache()
        else:
            from training.cluster.features import cache_on_cluster

            cache_on_cluster(recipe, cluster, options.threads, console)

    return run_command(parser, work, arguments, "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
