"""From a recording to a head and its score: python examples/label_a_recording.py IN FOLDER [--key value ...]"""

import json
import sys
from pathlib import Path

from dinov3_seg_ros.bag.__main__ import main as bag

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # training/ is not installed
from training import export_masks, pre_label, train

if __name__ == "__main__":  # the processes that load data import this file, too
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    recording, folder, *settings = sys.argv[1:]
    frames, labels, masks, truth, run = (f"{folder}/{name}" for name in ("frames", "labels", "masks", "truth", "run"))
    failed = bag(["extract", recording, frames, "--every", "0.5s", "--sharpest"])
    if failed or pre_label.main([frames, "--bundle", "demo", "--output", labels]):  # a person would now correct these
        sys.exit(1)
    data = json.loads(Path(labels, "pre_label.json").read_text())["data"]  # where the labels are, and their classes
    backbone = {"source": "weights/demo/backbone", "layers": [1, 2, 3], "storage": "embedded"}
    own = {"name": "own", "output": run, "data": data, "backbone": backbone, "input": {"network_size": [224, 320]}}
    Path(recipe := f"{folder}/recipe.yaml").write_text(json.dumps({**own, "epochs": 10}))  # YAML holds JSON
    failed = export_masks.main([recipe, "--output", masks]) or bag(["insert", recording, masks, truth])
    sys.exit(failed or train.main([recipe, *settings]) or bag(["score", truth, "--bundle", f"{run}/best"]))
