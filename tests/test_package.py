"""The package as it is installed and as ComfyUI loads it."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import reelbrush

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources():
    modules = [p for folder in ("nodes", "kernels") for p in (ROOT / folder).rglob("*.py")]
    return [*modules, *ROOT.glob("*.py")]


def test_requirements_for_the_manager_are_the_projects():
    lines = (ROOT / "requirements.txt").read_text().split("\n")
    assert [line for line in lines if line] == PROJECT["project"]["dependencies"]


def test_every_folder_of_code_is_in_the_wheel():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {p.parent.relative_to(ROOT) for p in sources()}
    assert {".".join(("reelbrush", *folder.parts)) for folder in folders} <= listed


def test_versions_agree():
    assert reelbrush.__version__ == PROJECT["project"]["version"]


def test_only_nodes_host_imports_comfyui():
    pattern = (
        r"^\s*(?:import|from)\s+(?:comfy\w*|folder_paths|latent_preview|node_helpers|execution|server)\b"
    )
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.parent != ROOT / "nodes" / "host" and re.search(pattern, path.read_text(), re.MULTILINE)
    ]
    assert not wrong


ORDER = (
    "kernels",
    "host",
    "common",
    "video",
    "sample",
    "flow",
    "stya2k",
    "diffusion",
    "distill",
    "attnstyle",
    "keyframes",
    "headless",
)
"""The packages, lowest first; imports go downwards only."""


def package_of(path):
    """The place of a module's package in ORDER: kernels, or the folder below nodes."""
    names = path.relative_to(ROOT).parts
    return "kernels" if names[0] == "kernels" else names[1]


def imports(path):
    """The modules of the pack that a module imports, as paths without a suffix."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("reelbrush") for alias in node.names), path
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert not node.module.startswith("reelbrush"), f"{path}: imports in the pack are relative"
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                name = base / alias.name
                yield name if name.is_dir() or name.with_suffix(".py").exists() else base


MODULES = [path for path in sources() if path.parent not in (ROOT, ROOT / "nodes")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    own = package_of(path)
    for target in imports(path):
        if target == ROOT / "nodes":  # the node list, for the package that runs all nodes
            assert own == "headless", f"{path.name} imports the node list"
            continue
        other = package_of(target)
        assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {other}, which is above it"
        is_declaration = target.name.startswith("nodes") or target.name.endswith("_nodes")
        assert other == own or not is_declaration, f"{path.name} imports the declarations of {other}"


def test_the_imports_are_found():
    path = ROOT / "nodes" / "flow" / "store.py"
    assert {str(target.relative_to(ROOT)) for target in imports(path)} >= {
        "nodes/host",
        "nodes/common/files",
        "kernels/flow",
    }


TOOLS = sorted(p for folder in ("benchmarks", "lab") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_that_benchmarks_and_lab_import_exist(path):
    """Some of them need weights or ComfyUI to run, so no other test notices a renamed function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reelbrush"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, reelbrush; assert not {'torch', 'av', 'cv2', 'numpy'} & set(sys.modules); "
        "reelbrush.NODE_CLASS_MAPPINGS; assert not {'cv2', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_error_in_the_lazy_import_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "reelbrush.nodes", None)
    monkeypatch.delattr(reelbrush, "nodes", raising=False)
    with pytest.raises(ImportError):
        _ = reelbrush.NODE_CLASS_MAPPINGS
    with pytest.raises(AttributeError):
        _ = reelbrush.nothing


def test_the_pack_loads_as_a_folder_of_any_name(tmp_path):
    """As ComfyUI loads it: by path, under a name made of the folder's path, dashes included."""
    link = tmp_path / "My-Reel.Brush-main"
    link.symlink_to(ROOT)
    name = str(link).replace(".", "_x_")
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location({name!r}, {str(link / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules[{name!r}] = module
spec.loader.exec_module(module)
assert len(module.NODE_CLASS_MAPPINGS) == len(module.NODE_DISPLAY_NAME_MAPPINGS) > 4
assert getattr(module, "NODES_LIST", None) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
