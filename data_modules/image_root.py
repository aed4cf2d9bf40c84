"""Finds images below a folder: safely, whatever the reference says, and fast for hundreds of thousands of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medgrpo.types import DataError

MAX_CANDIDATES = 10
"""Files that an error about an ambiguous reference names; the rest are counted."""

MAX_FILES = 5_000_000
"""Files below a root in which a bare file name is looked for."""

FRAME = re.compile(r"(.+)\[((?:(?:axial|coronal|sagittal):)?[0-9]{1,9})\]", re.DOTALL)
"""A reference with a frame suffix, as ImageMagick writes it: ``scan.dcm[3]``, ``scan.nii.gz[coronal:40]``."""

OUTSIDE = re.compile(r"[/\\]|[a-zA-Z]:|(.*[/\\])?\.\.([/\\]|$)|.*\0", re.DOTALL)
"""Absolute paths, drive letters, ``..`` and NUL, written the POSIX or the Windows way."""

Kind = Literal["file", "folder", "link"]


@dataclass(frozen=True)
class ImageFile:
    """An image on disk: a file, or one frame of it."""

    path: Path
    frame: str = ""
    """``3``, or ``coronal:3`` for a slice of a volume; empty leaves the choice to whoever opens the file."""

    def __str__(self) -> str:
        return f"{self.path}[{self.frame}]" if self.frame else str(self.path)


@dataclass(frozen=True)
class _Folder:
    path: str
    kinds: dict[str, Kind]
    folded: dict[str, list[str]] = field(default_factory=dict)
    """Names by their lower-case form."""

    def names_like(self, name: str) -> list[str]:
        """``name`` itself if it is there, else the names that differ from it in letter case alone."""
        if name in self.kinds:
            return [name]
        if not self.folded:
            for known in self.kinds:
                self.folded.setdefault(known.lower(), []).append(known)
        return sorted(self.folded.get(name.lower(), []))


class ImageRoot:
    """The images below a folder. Each folder is listed once, when it is first needed, and never again.

    Args:
        root: what references start from; need not exist before an image is looked for.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._real_root = os.path.realpath(root)
        self._folders: dict[tuple[str, ...], _Folder | None] = {}
        self._by_reference: dict[str, _Folder] = {}
        """Folders by how references write them, once a file was found there: the next one needs no second look."""
        self._below: dict[str, list[tuple[str, ...]]] | None = None
        """Parts of all paths below the root, by lower-case file name."""

    def find(self, reference: str) -> ImageFile:
        """The file that a record's image reference means.

        A reference is a path from the root; one that names no file there in this letter case may be the only one in
        another, since data sets made on other systems mix ``.jpg`` and ``.JPG``. A bare file name that is not directly
        in the root may lie anywhere below it, if only one does. A frame suffix is read where no file has such a name.

        Raises:
            DataError: an absolute path, a ``..`` component, a link that leads out of the root, no such file, a folder,
                or several files that could be meant.
        """
        written, _, name = reference.rpartition("/")
        if (known := self._by_reference.get(written)) and known.kinds.get(name) == "file":
            return ImageFile(Path(known.path, name))
        if OUTSIDE.match(reference):
            raise DataError(f"image {reference!r}: expected a path below image_root without '..'")
        names = {reference: ""}
        if suffixed := FRAME.fullmatch(reference):
            names[suffixed[1]] = suffixed[2]
        for search in (self._at, self._anywhere):
            for name, frame in names.items():
                if parts := search(reference, _parts(name)):
                    if len(_parts(written)) == len(parts) - 1:  # and not "a.png/."
                        self._by_reference[written] = self._folders[parts[:-1]]
                    return ImageFile(self.root.joinpath(*parts), frame)
        raise DataError(f"image {reference!r}: no such file below image_root={str(self.root)!r}")

    def _at(self, reference: str, parts: tuple[str, ...]) -> tuple[str, ...]:
        """``parts`` as the file system writes them; empty if there is no such file."""
        if not parts:
            raise DataError(f"image {reference!r}: expected a file below image_root={str(self.root)!r}, got a folder")
        folder, found = self._folder(reference, ()), ()
        for part in parts:
            if folder is None:
                return ()
            names = folder.names_like(part)
            if len(names) > 1:
                raise DataError(f"image {reference!r}: {part!r} could be any of {names} in {folder.path!r}")
            if not names:
                return ()
            found = (*found, names[0])
            if len(found) < len(parts):
                folder = self._folder(reference, found)
        return self._checked(reference, found, folder)

    def _anywhere(self, reference: str, parts: tuple[str, ...]) -> tuple[str, ...]:
        """The only file below the root with this bare name; empty if there is none."""
        if len(parts) != 1:
            return ()
        if self._below is None:
            self._below = self._walk()
        similar = self._below.get(parts[0].lower(), [])
        candidates = [path for path in similar if path[-1] == parts[0]] or similar
        if len(candidates) > 1:  # names of one file are no choice
            candidates = list({os.path.realpath(self.root.joinpath(*path)): path for path in candidates}.values())
        if len(candidates) > 1:
            listed = ", ".join(sorted("/".join(path) for path in candidates)[:MAX_CANDIDATES])
            more = f" and {len(candidates) - MAX_CANDIDATES} more" if len(candidates) > MAX_CANDIDATES else ""
            raise DataError(
                f"image {reference!r}: could be any of {len(candidates)} files below image_root="
                f"{str(self.root)!r}: {listed}{more}. Write the path that is meant into the question file."
            )
        return self._checked(reference, candidates[0], self._folder(reference, candidates[0][:-1])) if similar else ()

    def _checked(self, reference: str, parts: tuple[str, ...], folder: _Folder | None) -> tuple[str, ...]:
        """``parts``, if they are a file that may be opened; empty for a link to nothing."""
        kind = folder.kinds[parts[-1]]
        if kind == "file":
            return parts
        path = os.path.join(folder.path, parts[-1])
        if kind == "link":
            self._check_link(reference, path)
        if os.path.isdir(path):
            raise DataError(f"image {reference!r}: expected a file below image_root={str(self.root)!r}, got a folder")
        return parts if os.path.isfile(path) else ()

    def _check_link(self, reference: str, path: str) -> None:
        real = os.path.realpath(path)
        if os.path.commonpath((real, self._real_root)) != self._real_root:
            raise DataError(f"image {reference!r}: is a link that leads out of image_root={str(self.root)!r}")

    def _folder(self, reference: str, parts: tuple[str, ...]) -> _Folder | None:
        """Listing of a folder whose parents are known; None if it is no folder."""
        if parts not in self._folders:
            path = os.path.join(self.root, *parts)
            if parts and self._folders[parts[:-1]].kinds[parts[-1]] == "link":
                self._check_link(reference, path)
            try:
                self._folders[parts] = _Folder(path, _listing(path)) if os.path.isdir(path) else None
            except OSError as error:
                raise DataError(f"image {reference!r}: the folder {path!r} cannot be read: {error}") from error
        return self._folders[parts]

    def _walk(self) -> dict[str, list[tuple[str, ...]]]:
        """Lists what is not yet listed. Links to folders are not followed: what they may lead to is met anyway."""
        below: dict[str, list[tuple[str, ...]]] = {}
        waiting: list[tuple[str, ...]] = [()]
        num_files = 0
        while waiting:
            parts = waiting.pop()
            path = os.path.join(self.root, *parts)
            try:
                folder = self._folders.get(parts) or _Folder(path, _listing(path))
            except OSError:  # nothing in a folder that may not be read could be opened either
                continue
            self._folders[parts] = folder
            for name, kind in folder.kinds.items():
                if kind == "folder":
                    waiting.append((*parts, name))
                elif kind == "file" or os.path.isfile(os.path.join(path, name)):
                    below.setdefault(name.lower(), []).append((*parts, name))
                    num_files += 1
            if num_files > MAX_FILES:
                raise DataError(
                    f"image_root={str(self.root)!r}: more than {MAX_FILES} files; set it to the folder of the images"
                )
        return below


def _parts(path: str) -> tuple[str, ...]:
    return tuple([part for part in path.split("/") if part not in ("", ".")])  # as pathlib does, in less time


def _listing(path: str) -> dict[str, Kind]:
    """What a folder holds; sockets, devices and the like are left out."""
    kinds: dict[str, Kind] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                kinds[entry.name] = "link"
            elif entry.is_file(follow_symlinks=False):
                kinds[entry.name] = "file"
            elif entry.is_dir(follow_symlinks=False):
                kinds[entry.name] = "folder"
    return kinds
