"""The attacks, a few cases of each; `python tests/attack/run.py` runs all of them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_few_cases_of_every_attack():
    run = [sys.executable, str(Path(__file__).with_name("run.py")), "--short"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_the_table_has_every_attack():
    spec = importlib.util.spec_from_file_location("attack_run", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["attack_run"] = module
    spec.loader.exec_module(module)
    rows = (HERE / "RESULTS.md").read_text().split("\n| ")[1:]
    assert [row.split(" | ")[0] for row in rows[1:]] == [job.name for job in module.JOBS]
    assert all(row.split(" | ")[6] == "0" for row in rows[1:])
