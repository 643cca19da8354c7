"""The files of the sample are copied where they are missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reelbrush.__main__ import main
from reelbrush.nodes import host, sample


@pytest.fixture
def install(home, monkeypatch):
    """Start of the pack in a ComfyUI whose folders are in `home`."""
    monkeypatch.setattr(host, "server_running", lambda: True)
    monkeypatch.setattr(host, "folder", lambda kind: home / kind)
    return sample.install.__wrapped__


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_list_is_the_folder():
    assert sorted([*sample.FILES, *sample.CONTENTS]) == sorted(path.name for path in sample.FOLDER.iterdir())


def shipped():
    return {name: data for name, data in files(sample.FOLDER).items() if name in sample.FILES}


def test_missing_files_are_copied_and_others_are_left_alone(tmp_path):
    (tmp_path / sample.CLIP).write_bytes(b"mine")
    assert len(sample.copy_missing(tmp_path)) == len(sample.ALL) - 1
    assert files(tmp_path) == shipped() | {sample.CLIP: b"mine"}
    assert sample.copy_missing(tmp_path) == []
    for folder, names in sample.FOLDERS.items():
        assert files(tmp_path / folder) == {name: files(sample.FOLDER)[name] for name in names}


def test_the_command_copies_to_the_input_folder_or_another(home, tmp_path, capsys):
    assert main(["sample"]) == 0
    assert files(home / "input") == shipped()
    assert main(["sample", "--out", str(tmp_path / "other")]) == 0
    assert files(tmp_path / "other") == shipped()
    assert str(tmp_path / "other" / sample.CLIP) in capsys.readouterr().out


def test_a_new_comfyui_gets_the_files_once(install, home):
    install()
    assert files(home / "input") == shipped()
    (home / "input" / sample.CLIP).unlink()
    install()
    assert not (home / "input" / sample.CLIP).exists()  # the user has deleted it


def test_another_input_folder_gets_them_too(install, home, monkeypatch):
    install()
    other = home / "other"
    monkeypatch.setattr(host, "folder", lambda kind: other if kind == "input" else home / kind)
    install()
    assert files(other) == shipped()


def test_a_folder_that_cannot_be_written_is_one_sentence_in_the_log(install, home, caplog):
    (home / "input").rmdir()
    (home / "input").write_text("a file in place of the folder")
    install()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "could not be copied to the input folder" in caplog.text


def test_nothing_is_copied_without_a_server(home):
    code = "import reelbrush; reelbrush.NODE_CLASS_MAPPINGS"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=home)
    assert not list((home / "input").iterdir()) and not (home / "user").exists()


@pytest.mark.slow
@pytest.mark.comfyui
def test_a_started_comfyui_has_the_files(tmp_path, request):
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "reelbrush").symlink_to(Path(__file__).parents[2], target_is_directory=True)
    options = ["--cpu", "--quick-test-for-ci", "--base-directory", str(tmp_path)]
    # A plugin given with -p may prepare the imports of this ComfyUI.
    plugins = [name for name in request.config.option.plugins if not name.startswith("no:")]
    code = (
        f"import runpy, sys, {', '.join(plugins or ['os'])}\n"
        f"sys.argv, sys.path[:0] = {['main.py', *options, '--database-url', 'sqlite:///:memory:']}, ['.']\n"
        "runpy.run_path('main.py', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.environ["COMFYUI_PATH"])
    copies = files(tmp_path / "input")
    assert {name: copies[name] for name in sample.FILES} == shipped()
