"""The attacks, a few cases of each; `python tests/attack/run.py` runs all of them."""

import subprocess
import sys
from pathlib import Path


def test_a_few_cases_of_every_attack():
    run = [sys.executable, str(Path(__file__).with_name("run.py")), "--short"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
