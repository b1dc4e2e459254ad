"""Everything that runs offline: training, evaluation, prediction, and the import and export of heads.

The robot's package `dinov3_seg_ros` never imports this one; a bundle passes from one to the other. The modules here are
the commands. The rooms, from the ground up, import only the rooms above them in this list:

- support: what all rooms share, such as errors of writing, processes, random numbers, the base of settings
- data: data sets, their classes and their content
- checks: what is wrong with a data set, before a training starts
- samples: augmented training samples, their batches, and cached features
- losses, optimization: what training minimises, and how it updates the weights
- evaluation: averaged views of an image, and scores
- unlabelled: images without labels: described, chosen, labelled by a teacher
- reports: pictures and tables for people
- prediction: frames of any source through a bundle, and what is written of each
- recipes: the schema of recipes, the recipes themselves, and overrides from the command line
- loop: the training itself, from a recipe to bundles
- sharing: bundles to the Hugging Face Hub: what may be shared, the upload
- cluster: work on many processes, by Ray
"""

from __future__ import annotations

import sys
from types import TracebackType


def _tell_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line how to install what a command of training lacks, or that it was interrupted while it started."""
    from dinov3_seg_ros.support.command_line import INTERRUPTED
    from dinov3_seg_ros.support.installation import how_to_install

    command = sys.argv[0].rpartition("/")[2].removesuffix(".py")
    if isinstance(error, KeyboardInterrupt):
        print(f"{command}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)  # else Python would end with 1
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if not absent or absent.partition(".")[0] in (__name__, "dinov3_seg_ros"):
        sys.__excepthook__(kind, error, trace)
        return
    print(
        f"{command}: error: {sys.prefix} has no {absent}; training needs the extra train: {how_to_install('train')}; "
        "or, in the checkout, make setup and then source .venv/bin/activate",
        file=sys.stderr,
    )


# So Python calls it while it looks for the module of a command, python -m training.train; others get their exceptions.
if sys.argv[0] == "-m":
    sys.excepthook = _tell_in_one_line
