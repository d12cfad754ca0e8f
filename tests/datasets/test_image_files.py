"""Which files in a directory are images."""

import os

from fashion.datasets.image_files import find_image_files, is_image_file, with_progress

import pytest


def touch(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(((f"a.{kind}"), True) for kind in ("jpg", "JPEG", "png", "webp", "tif", "bmp", "gif")),
        # Pillow can write PDF files, and recognizes films, but opens neither.
        *(((f"a.{kind}"), False) for kind in ("pdf", "mpg", "heic", "txt", "NEF")),
        ("jpg", False),
        ("a", False),
    ],
)
def test_image_files_are_those_that_pillow_opens(name, expected, tmp_path):
    assert is_image_file(tmp_path / name) == expected


def test_directories_are_searched_and_hidden_files_skipped(tmp_path, capsys):
    touch(tmp_path, "b.png", "a.JPG", "more/c.png", "more/deep/d.png", "album.png/e.png")
    touch(tmp_path, "._a.JPG", ".DS_Store", ".hidden/f.png", "__MACOSX/g.png", "more/._c.png")
    touch(tmp_path, "Thumbs.db", "more/desktop.ini", "more/@eaDir/c.png/SYNOPHOTO_THUMB_M.jpg")
    names = [path.relative_to(tmp_path).as_posix() for path in find_image_files(tmp_path)]
    assert names == ["a.JPG", "album.png/e.png", "b.png", "more/c.png", "more/deep/d.png"]
    assert capsys.readouterr().err == ""


def test_other_files_are_counted_by_kind(tmp_path, capsys):
    touch(tmp_path, "a.png", "1.heic", "more/2.HEIC", "manual.pdf", "notes", "frame.001", "f.2")
    assert len(find_image_files(tmp_path)) == 1
    advice = "if these are images, give them their extension, or convert them to JPEG or PNG"
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: skipped {files} of a kind that Pillow cannot open, {kind}; {advice}"
        for kind, files in (
            (".heic", "2 files"),
            (".pdf", "1 file"),
            ("without an extension", "3 files"),
        )
    ]


def test_links_are_followed_and_loops_cut(tmp_path):
    directory, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    touch(directory, "a.png")
    touch(elsewhere, "b.png", "more/c.png")
    (directory / "disk").symlink_to(elsewhere)
    (directory / "self").symlink_to(directory)
    (elsewhere / "more" / "back").symlink_to(directory)
    (directory / "file.png").symlink_to(elsewhere / "b.png")
    names = [path.relative_to(directory).as_posix() for path in find_image_files(directory)]
    assert names == ["a.png", "disk/b.png", "disk/more/c.png", "file.png"]


def test_each_directory_is_read_once_and_never_one_above(tmp_path):
    """The number of paths without a loop grows like a factorial."""
    directories = [tmp_path / "images" / str(i) for i in range(12)]
    for directory in directories:
        touch(directory, "a.png")
        for other in directories:
            if other != directory:
                (directory / f"to-{other.name}").symlink_to(other)
    (directories[0] / "up").symlink_to(tmp_path)
    found = find_image_files(tmp_path / "images")
    assert len({path.resolve() for path in found}) == len(found) == 12
    (directories[0] / "to-1").unlink()
    assert (directories[0] / "a.png") in find_image_files(directories[0])


def test_pipes_are_skipped(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    assert find_image_files(tmp_path) == []
    assert capsys.readouterr().err == ""


def test_with_progress_yields_the_items_and_prints_lines(monkeypatch, capsys):
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    assert list(with_progress("abcdef", "Read")) == [*"abcdef"]
    assert capsys.readouterr().out == "Read 3 of 6 images\nRead 6 of 6 images\n"
