"""Shared test set-up. With COMFYUI_PATH set, the tests run inside that ComfyUI."""

import os
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has one core, also in the processes that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

COMFYUI = os.environ.get("COMFYUI_PATH")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

if COMFYUI:
    # ComfyUI parses the command line when it is imported.
    sys.path.insert(0, COMFYUI)
    arguments, sys.argv = sys.argv, [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import folder_paths

        CORE_KINDS = set(folder_paths.folder_names_and_paths)
    finally:
        sys.argv = arguments


def pytest_collection_modifyitems(items):
    if not COMFYUI:
        skip = pytest.mark.skip(reason="needs a ComfyUI checkout: set COMFYUI_PATH")
        for item in items:
            if "comfyui" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def stand_in_models_are_not_managed(monkeypatch):
    """Inside ComfyUI too, many tests use a stand-in for a model, which ComfyUI cannot load."""
    if COMFYUI:
        from reelbrush.nodes import host
        from reelbrush.nodes.host import memory

        load = host.load_model

        def load_real(model, *others):
            if not getattr(model, "stand_in", False):
                load(model, *others)

        for module in (host, memory):
            monkeypatch.setattr(module, "load_model", load_real)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder (models/, input/, output/) for one test, inside or outside ComfyUI."""
    for kind in ("input", "output", "temp", "models"):
        (tmp_path / kind).mkdir()
    monkeypatch.setenv("REELBRUSH_HOME", str(tmp_path))
    if COMFYUI:
        import folder_paths

        for kind in ("input", "output", "temp"):
            monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
        monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
        # Kinds of models that an earlier test registered have paths in that test's home.
        known = {k: v for k, v in folder_paths.folder_names_and_paths.items() if k in CORE_KINDS}
        monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return tmp_path


@pytest.fixture
def data():
    """Pictures and clips that are not part of the project."""
    if not DATA.is_dir():
        pytest.skip("needs the pictures and clips of ../shared/data")
    return DATA
