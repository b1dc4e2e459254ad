"""What is made from the code and kept in the repository is current."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("tool", ["generate_docs", "draw_architecture"])
def test_generated_files_are_current(tool):
    command = [sys.executable, f"tools/{tool}.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_a_picture_that_is_not_current_names_the_command_that_draws_it(tmp_path):
    for file in ("tools/draw_architecture.py", "dinov3_seg_ros/room.py"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    shutil.copy(ROOT / "tools/draw_architecture.py", tmp_path / "tools")
    command = [sys.executable, "tools/draw_architecture.py", "--check"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stderr == "docs/architecture.svg is not current; run: python tools/draw_architecture.py\n"
