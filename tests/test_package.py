"""The package as it is installed and as ComfyUI finds it."""

import ast
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
    rooms = [p for top in ("nodes", "kernels") for p in (ROOT / top).rglob("*.py")]
    return [*rooms, *ROOT.glob("*.py")]


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
    words = r"^\s*(?:import|from)\s+(?:comfy\w*|folder_paths|latent_preview|node_helpers|execution|server)\b"
    guilty = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.parent != ROOT / "nodes" / "host" and re.search(words, path.read_text(), re.MULTILINE)
    ]
    assert not guilty


def test_kernels_know_nothing_above_them():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                assert path.parent != ROOT / "kernels", f"{path.name} imports from outside kernels/"


def test_no_wing_imports_another_wings_declarations():
    for path in (ROOT / "nodes").glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                assert not node.module.endswith(".nodes"), f"{path} imports {node.module}"


def test_what_benchmarks_take_from_each_other_is_there():
    """They need weights or ComfyUI to run, so a name that moved would be missed by no other test."""
    trees = {p.stem: ast.parse(p.read_text()) for p in (ROOT / "benchmarks").glob("*.py")}
    held = {
        name: {
            word.id if isinstance(word, ast.Name) else getattr(word, "asname", None) or word.name
            for word in ast.walk(tree)
            if isinstance(word, ast.Name | ast.FunctionDef | ast.ClassDef | ast.alias)
            and not (isinstance(word, ast.Name) and isinstance(word.ctx, ast.Load))
        }
        for name, tree in trees.items()
    }
    wanted = [
        (name, node.module, alias.name)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in trees
        for alias in node.names
    ]
    assert wanted and [x for x in wanted if x[2] not in held[x[1]]] == []


def test_importing_the_package_costs_nothing():
    code = (
        "import sys, reelbrush; assert not {'torch', 'av', 'cv2', 'numpy'} & set(sys.modules); "
        "reelbrush.NODE_CLASS_MAPPINGS; assert not {'cv2', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fault_in_the_lazy_import_is_not_hidden(monkeypatch):
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
