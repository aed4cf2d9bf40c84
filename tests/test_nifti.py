"""NIfTI slices: the right one, the right way up, whatever order the file keeps its voxels in."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.image_root import ImageFile
from data_modules.images import image_size, num_frames, open_rgb
from medgrpo.types import DataError

SHAPE = (4, 3, 5)


def saved(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def grey(path: Path, frame: str = "", window: tuple[float, float] | None = None) -> np.ndarray:
    image = np.asarray(open_rgb(ImageFile(path, frame), window=window))
    assert (image == image[..., :1]).all()
    return image[..., 0]


def corner(**marked: int) -> np.ndarray:
    """Zeros with one bright voxel: right, front and top say where (0 is left, back, bottom)."""
    values = np.zeros(SHAPE, dtype=np.int16)
    values[marked["right"], marked["front"], marked["top"]] = 100
    return values


def place(image: np.ndarray) -> tuple[int, int]:
    [[row, column]] = np.argwhere(image == 255)
    return int(row), int(column)


def test_each_kind_of_slice_is_shown_as_radiologists_see_it(tmp_path: Path) -> None:
    # 4 voxels to the right, 3 to the front, 5 upwards. The rightmost column shows the patient's left.
    path = saved(tmp_path / "a.nii.gz", corner(right=3, front=0, top=1))
    assert (image_size(path), num_frames(path)) == ((4, 3), 5)
    assert place(grey(path, "1")) == place(grey(path, "axial:1")) == (2, 0)  # back is down, right is on the left
    assert image_size(ImageFile(path, "coronal:0")) == (4, 5)
    assert place(grey(path, "coronal:0")) == (3, 0)  # second from below
    assert image_size(ImageFile(path, "sagittal:3")) == (3, 5)
    assert place(grey(path, "sagittal:3")) == (3, 2)  # the front is on the left
    for empty in ("0", "2", "coronal:1", "sagittal:0"):
        assert not grey(path, empty).any()


def test_the_middle_axial_slice_is_the_default(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", corner(right=0, front=2, top=2))
    assert place(grey(path)) == (0, 3)


@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    frame=st.sampled_from(("1", "coronal:2", "sagittal:3")),
)
def test_how_the_file_keeps_its_voxels_does_not_matter(tmp_path_factory, order, flips, frame) -> None:
    values = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    folder = tmp_path_factory.getbasetemp()
    orientation = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    canonical = nibabel.Nifti1Image(values, np.diag((0.5, 0.7, 3, 1)))
    stored = canonical.as_reoriented(nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation))
    assert np.array_equal(nibabel.as_closest_canonical(stored).get_fdata(), values)
    nibabel.save(stored, folder / "stored.nii")
    nibabel.save(canonical, folder / "canonical.nii")
    assert np.array_equal(grey(folder / "stored.nii", frame), grey(folder / "canonical.nii", frame))
    assert image_size(ImageFile(folder / "stored.nii", frame)) == grey(folder / "stored.nii", frame).shape[::-1]
    assert num_frames(folder / "stored.nii") == 5


def test_a_tilted_scan_takes_the_nearest_directions(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    path = saved(tmp_path / "a.nii", corner(right=3, front=0, top=1), affine)
    assert place(grey(path, "1")) == (2, 0)


def test_values_and_windows(tmp_path: Path) -> None:
    values = np.array([-1000, -160, 40, 240], dtype=np.int16).reshape(4, 1, 1)
    path = saved(tmp_path / "a.nii", values)
    assert grey(path, window=(40, 400)).tolist() == [[255, 128, 0, 0]]
    assert grey(path).tolist() == [[255, 214, 173, 0]]  # from -1000 to 240: 1040 / 1240 * 255 = 213.9
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(2, 100)
    nibabel.save(image, path)
    assert grey(path, window=(180, 800)).tolist() == [[255, 128, 0, 0]]  # 2 x + 100 is -220, 180 and 580
    holes = np.array([np.nan, 0, 0.5, 1, np.inf], dtype=np.float32).reshape(5, 1, 1)
    assert grey(saved(tmp_path / "b.nii", holes)).tolist() == [[0, 255, 128, 0, 0]]
    assert grey(saved(tmp_path / "b.nii", np.full((2, 2, 2), np.nan))).tolist() == [[0, 0], [0, 0]]


def test_colours(tmp_path: Path) -> None:
    values = np.zeros((2, 1, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    values[0, 0, 0] = (10, 20, 30)
    path = saved(tmp_path / "a.nii", values)
    assert np.asarray(open_rgb(path)).tolist() == [[[0, 0, 0], [10, 20, 30]]]


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 1, 1), (4, 3, 1, 1, 1)])
def test_one_volume_may_have_more_or_fewer_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, dtype=np.int16)
    values[3, 0] = 7
    path = saved(tmp_path / "a.nii", values)
    assert (num_frames(path), image_size(path), place(grey(path))) == (1, (4, 3), (2, 0))


def test_what_is_no_single_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.nii: expected one volume, got shape \(4, 3, 5, 2\)"):
        num_frames(saved(tmp_path / "a.nii", np.zeros((4, 3, 5, 2), dtype=np.int16)))
    with pytest.raises(DataError, match="b.nii: expected real numbers or colours"):
        open_rgb(saved(tmp_path / "b.nii", np.zeros((2, 2, 2), dtype=np.complex64)))


@pytest.mark.parametrize(("frame", "count"), [("5", 5), ("axial:5", 5), ("coronal:3", 3), ("sagittal:4", 4)])
def test_slices_that_are_not_there(tmp_path: Path, frame: str, count: int) -> None:
    path = saved(tmp_path / "a.nii", np.zeros(SHAPE, dtype=np.int16))
    for function in (open_rgb, image_size):
        with pytest.raises(DataError, match=rf"a.nii: expected a slice from 0 to {count - 1}, got \[{frame}\]"):
            function(ImageFile(path, frame))


def test_a_huge_header_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", np.zeros(SHAPE, dtype=np.int16))
    for function in (open_rgb, image_size, num_frames):
        with pytest.raises(DataError, match="a.nii: 4 x 3 pixels exceed max_image_pixels=11"):
            function(path, 11)
    with pytest.raises(DataError, match="4 x 5 pixels exceed"):
        open_rgb(ImageFile(path, "coronal:0"), 12)
    header = nibabel.Nifti1Header()
    for shape, message in (
        ((30_000, 30_000, 2), "30000 x 30000 pixels exceed max_image_pixels"),
        ((3000, 3000, 3000), "voxels exceed 2147483648; cut the volume"),
    ):
        header.set_data_shape(shape)
        path.write_bytes(header.binaryblock + bytes(4))
        with pytest.raises(DataError, match=message):
            open_rgb(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_broken_files_are_named(tmp_path: Path, suffix: str, kept: float) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (30, 30, 30)).astype(np.int16)
    path = saved(tmp_path / f"a{suffix}", values)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=f"a{suffix}: NIfTI file cannot be read"):
        open_rgb(ImageFile(path, "29"))
    path.write_bytes(b"no volume" * 100)
    with pytest.raises(DataError, match=f"a{suffix}: NIfTI file cannot be read"):
        image_size(path)


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.nii", np.zeros(SHAPE, dtype=np.int16))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"a.nii: NIfTI files need nibabel: pip install 'medgrpo\[nifti\]'"):
        open_rgb(path)


def test_slices_have_the_proportions_of_the_body(tmp_path: Path) -> None:
    path = saved(tmp_path / "thick.nii", np.zeros((20, 30, 8)), np.diag([1.0, 2.0, 5.0, 1.0]))
    sizes = {"axial:1": (20, 60), "coronal:1": (20, 40), "sagittal:1": (30, 20)}  # 30 x 8 of 2 x 5 mm
    for frame, size in sizes.items():
        file = ImageFile(path, frame)
        assert image_size(file) == open_rgb(file).size == size
