"""Files are complete or absent, and a fingerprint changes when a file does."""

import os

import pytest

from reelbrush.nodes.common.files import changed, file_error, fingerprint, replacing


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("x")
        assert not target.exists()
        assert temporary.name.startswith(".") and str(os.getpid()) in temporary.name
    assert target.read_text() == "x" and list(target.parent.iterdir()) == [target]


def test_an_error_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "frames"
    target.mkdir()
    (target / "old").write_text("1")
    with replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("2")
    assert [p.name for p in target.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [target]


def test_a_fingerprint_changes_with_time_size_and_members(tmp_path):
    file = tmp_path / "folder" / "a"
    file.parent.mkdir()
    file.write_text("1")
    seen = [fingerprint(file.parent)]
    os.utime(file, ns=(0, 0))
    seen.append(fingerprint(file.parent))
    (file.parent / "b").write_text("")
    seen.append(fingerprint(file.parent))
    assert len(set(seen)) == 3 and fingerprint(file.parent) == seen[-1]


def test_a_node_whose_file_is_missing_still_gets_a_value(tmp_path):
    assert "gone" in changed(lambda name: tmp_path / name, "gone")


def test_an_error_of_the_system_about_a_file_is_one_sentence(tmp_path):
    with pytest.raises(OSError) as caught:
        (tmp_path / "nothing" / "a").touch()
    assert str(file_error(caught.value)) == (
        f"{tmp_path}/nothing/a cannot be used (No such file or directory): check it and its folder"
    )
    other = ValueError("another")
    assert file_error(other) is other
