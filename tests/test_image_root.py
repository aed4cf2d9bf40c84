"""Image references: the file that is meant, nothing outside the root, and no second look at a folder."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.image_root import ImageFile, ImageRoot
from medgrpo.types import DataError


def made(root: Path, *names: str) -> ImageRoot:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return ImageRoot(root)


ODD = ["52%0.jpg", "a#99__b.JPG", "OCT & X-Ray 2017/a (7).png", "3.RAO/202e..JPG", "é.png", "a[1]/[b].png", "..a/b.png"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_found(tmp_path: Path, name: str) -> None:
    root = made(tmp_path, name)
    assert root.find(name) == ImageFile(tmp_path / name)
    assert root.find(name) == ImageFile(tmp_path / name)  # the folder is known by now
    assert root.find(f"./{name}").path == tmp_path / name
    assert root.find(Path(name).name).path == tmp_path / name


OUTSIDE = ["../b.png", "a/../../b.png", "a/..", "..", "/etc/hostname", "//b.png", "C:\\b.png", "c:b.png", "\\h\\b.png"]


@pytest.mark.parametrize("name", [*OUTSIDE, "..\\b.png", "a\\..\\b.png", "a\0.png"])
def test_paths_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    made(tmp_path, "b.png")
    root = made(tmp_path / "root", "a/c.png")
    with pytest.raises(DataError, match="expected a path below image_root without '..'"):
        root.find(name)


@given(st.lists(st.sampled_from(["a", "A", "b.png", "..", ".", "", "out", "loop", "/", "\\", "[1]", "é"]), max_size=6))
def test_nothing_outside_is_ever_found(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    top = tmp_path_factory.getbasetemp() / "fuzzed"
    if not top.exists():
        made(top, "secret/b.png", "root/a/b.png", "root/a/a/x.png", "root/b.png")
        (top / "root" / "a" / "out").symlink_to(top / "secret")
        (top / "root" / "loop").symlink_to("loop")
    try:
        path = ImageRoot(top / "root").find("/".join(parts)).path
    except DataError:
        return
    assert path.is_file()
    assert path.resolve().is_relative_to(top / "root")


def test_links_may_not_leave_the_root(tmp_path: Path) -> None:
    made(tmp_path, "secret.png", "other/deep/secret2.png")
    root = made(tmp_path / "root", "a/b.png", "a.png")
    links = {"out.png": tmp_path / "secret.png", "in.png": "a.png", "folder": tmp_path / "other", "same": "a"}
    links |= {"gone.png": "nothing.png", "loop.png": "loop.png", "a/up": "..", "up.png": "../secret.png"}
    links |= {"almost": tmp_path / "root2"}
    made(tmp_path / "root2", "x.png")
    for name, target in links.items():
        (tmp_path / "root" / name).symlink_to(target)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert root.find("a.png").path.is_file()  # the root's folder is known by now
    for outside in ("out.png", "folder/deep/secret2.png", "FOLDER/deep/secret2.png", "up.png", "almost/x.png"):
        with pytest.raises(DataError, match="link that leads out of image_root"):
            root.find(outside)
    for missing in ("gone.png", "loop.png", "secret2.png", "a.png/b.png"):
        with pytest.raises(DataError, match="no such file"):
            root.find(missing)
    for inside in ("in.png", "same/b.png", "a/up/a/up/a.png"):
        assert root.find(inside).path.is_file()
    assert ImageRoot(tmp_path / "link").find("a/b.png").path == tmp_path / "link" / "a" / "b.png"


def test_a_link_far_below_is_checked_too(tmp_path: Path) -> None:
    made(tmp_path, "secret.png")
    made(tmp_path / "root", "a/b.png")
    (tmp_path / "root" / "a" / "far.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="link that leads out of image_root"):
        ImageRoot(tmp_path / "root").find("far.png")


def test_exact_names_come_first_then_other_letter_case(tmp_path: Path) -> None:
    assert made(tmp_path, "Images/Scan.PNG").find("images/scan.png").path == tmp_path / "Images" / "Scan.PNG"
    root = made(tmp_path, "Images/scan.PNG")
    assert root.find("Images/scan.PNG").path.name == "scan.PNG"
    with pytest.raises(DataError, match=r"'SCAN.png' could be any of \['Scan.PNG', 'scan.PNG'\]"):
        root.find("Images/SCAN.png")
    for folder in ("images", "Images/", ".", ""):
        with pytest.raises(DataError, match="got a folder"):
            root.find(folder)


def test_a_bare_name_is_looked_for_below_the_root(tmp_path: Path) -> None:
    root = made(tmp_path, "x/y/one.png", "x/two.png", "z/two.png", "z/TWO.png", "z/Three.PNG", "top.png", "x/top.png")
    assert root.find("one.png").path == tmp_path / "x" / "y" / "one.png"
    assert root.find("three.png").path == tmp_path / "z" / "Three.PNG"
    assert root.find("TWO.png").path == tmp_path / "z" / "TWO.png"
    assert root.find("top.png").path == tmp_path / "top.png"
    with pytest.raises(DataError, match="could be any of 2 files .*: x/two.png, z/two.png. Write the path"):
        root.find("two.png")
    with pytest.raises(DataError, match="could be any of 3 files .*: x/two.png, z/TWO.png, z/two.png"):
        root.find("Two.png")
    for reference in ("y/one.png", "one.jpg"):  # only bare names, only whole names
        with pytest.raises(DataError, match="no such file"):
            root.find(reference)


def test_a_long_list_of_candidates_is_cut(tmp_path: Path) -> None:
    root = made(tmp_path, *(f"{i:02d}/a.png" for i in range(13)))
    with pytest.raises(DataError, match=r"any of 13 files .*: 00/a.png, .*, 09/a.png and 3 more"):
        root.find("a.png")


def test_two_names_of_one_file_are_no_choice(tmp_path: Path) -> None:
    made(tmp_path, "x/a.png")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "a.png").symlink_to(tmp_path / "x" / "a.png")
    assert ImageRoot(tmp_path).find("a.png").path.resolve() == tmp_path / "x" / "a.png"


def test_frame_suffixes(tmp_path: Path) -> None:
    root = made(tmp_path, "a/scan.dcm", "v.nii.gz", "a/x.png[3]", "a/x.png", "a/y[3].png")
    assert root.find("a/scan.dcm[3]") == ImageFile(tmp_path / "a" / "scan.dcm", "3")
    assert root.find("A/SCAN.dcm[0]") == ImageFile(tmp_path / "a" / "scan.dcm", "0")
    assert root.find("scan.dcm[12]") == ImageFile(tmp_path / "a" / "scan.dcm", "12")
    assert root.find("v.nii.gz[coronal:40]") == ImageFile(tmp_path / "v.nii.gz", "coronal:40")
    assert root.find("a/x.png[3]") == ImageFile(tmp_path / "a" / "x.png[3]")  # a file's name wins
    assert root.find("a/x.png[4]") == ImageFile(tmp_path / "a" / "x.png", "4")
    assert root.find("a/y[3].png") == ImageFile(tmp_path / "a" / "y[3].png")
    assert str(root.find("a/x.png[4]")) == f"{tmp_path}/a/x.png[4]"
    for wrong in ("a/x.png[-1]", "a/x.png[]", "a/x.png[1,2]", "a/x.png[oblique:3]", "a/x.png[9999999999]", "[3]"):
        with pytest.raises(DataError, match="no such file"):
            root.find(wrong)


def test_a_reference_that_goes_through_a_file_teaches_nothing_wrong(tmp_path: Path) -> None:
    root = made(tmp_path, "a.png", "b.png")
    for odd in ("a.png/.", "a.png/", "./a.png", "a.png/./"):
        assert root.find(odd).path == tmp_path / "a.png"
    with pytest.raises(DataError, match="no such file"):
        root.find("a.png/b.png")


def test_what_is_no_regular_file_is_not_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for reference in ("pipe.png", "pipe.png[0]"):
        with pytest.raises(DataError, match="no such file"):
            ImageRoot(tmp_path).find(reference)
    with pytest.raises(DataError, match="no such file below image_root"):
        ImageRoot(tmp_path / "nowhere").find("a.png")


def test_a_listing_is_kept_and_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(tmp_path, "a/b.png", "a/c.png")
    root.find("a/b.png")
    root.find("c.png")
    copy = pickle.loads(pickle.dumps(root))
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("listed again"))
    assert copy.find("a/c.png").path == copy.find("C.PNG").path == tmp_path / "a" / "c.png"
