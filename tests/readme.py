"""The programs of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
WITH_PICTURES = [program for program in PROGRAMS if "own_images" in program]  # they need Pillow
PLAIN = [program for program in PROGRAMS if program not in WITH_PICTURES]


def run(program, folder):
    """Run a program in an empty folder with the examples; return what it prints."""
    (folder / "examples").symlink_to(ROOT / "examples")
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
