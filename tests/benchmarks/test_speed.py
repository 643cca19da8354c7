"""Every case runs at the smallest size; one case runs through the harness."""

import json

import pytest

from reelbrush import __main__ as command
from reelbrush.benchmarks import settings, speed
from reelbrush.nodes import host

TINY = {
    "attention.reweight": {"tokens": 16, "heads": 1, "width": 8},
    "attnstyle.training": {"size": 64, "key_frames": 2, "epochs": 1, "patches": 4},
    "diffusion.regions": {"regions": 2, "channels": 32, "side": 8, "steps": 1},
    "diffusion.rows": {"frames": 2, "steps": 1},
    "distill.expansion": {"side": 64, "window": 64},
    "distill.steps": {"frames": 2, "per_call": 2, "size": 8, "channels": 32},
    "flow.accuracy": {"frames": 2},
    "flow.drift": {"frames": 2},
    "flow.stability": {"frames": 2},
    "stya2k.chain": {"size": "64x48", "frames": 3},
    "stya2k.official": {"size": 64},
    "stya2k.precision": {"size": "64x48", "frames": 2},
    "video.chains": {"size": "64x48", "frames": 3},
    "video.memory": {"size": "64x48", "short": 2, "long": 4},
    "video.transcode": {"size": "64x48", "frames": 3},
}
LATE = ("compiled", "stya2k_video", "recompute")  # variants that take seconds


def test_every_case_is_tested():
    assert TINY.keys() == settings.documented("cases").keys()
    assert all(settings.documented("cases").values()), "a case needs a docstring for the list"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_case_runs(name, home, monkeypatch):
    monkeypatch.setattr(host, "free_memory", host.free_memory)  # a variant replaces it in its process
    case = settings.function("cases", name)
    for variant, prepare in case(**TINY[name]).items():
        if not any(word in variant for word in LATE):
            values = prepare()()
            assert values is None or all(v == v for v in values.values()), variant


def test_the_harness_compares_variants_in_turns(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    speed.main(["attention.reweight", "tokens=16", "heads=1", "--rounds", "2", "--json", str(out)])
    (result,) = json.loads(out.read_text())["results"]
    assert result["settings"] == {"tokens": 16, "heads": 1, "width": 40}
    ours, official = result["variants"]["ours"], result["variants"]["official"]
    assert len(ours["seconds"]) == len(official["seconds"]) == 2
    assert ours["ratio"] == 1
    pairs = [a / b for a, b in zip(ours["seconds"], official["seconds"], strict=True)]
    assert official["ratio"] == pytest.approx(sum(pairs) / 2)
    assert ours["peak_mb"] >= ours["before_mb"] > 10
    assert "official" in capsys.readouterr().out


def test_settings_are_read_as_the_types_of_the_defaults():
    def case(size: int = 4, share: float = 0.5, on: bool = False, name: str = "a"):
        pass

    texts = ["size=1,2", "share=1", "on=true", "name=b"]
    assert settings.combinations(case, texts) == [
        {"size": 1, "share": 1.0, "on": True, "name": "b"},
        {"size": 2, "share": 1.0, "on": True, "name": "b"},
    ]
    with pytest.raises(SystemExit, match="size=4"):
        settings.combinations(case, ["height=3"])


def test_the_list_names_every_case(capsys):
    speed.main([])
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == TINY.keys()


def test_the_command_lists_both_tools_and_runs_one(capsys):
    assert command.main(["bench"]) == 0
    listed = capsys.readouterr().out
    assert "speed: " in listed and "attention.reweight " in listed and "stya2k.stylize " in listed
    assert command.main(["bench", "sheet"]) == 0
    assert "attention.reweight" not in capsys.readouterr().out
