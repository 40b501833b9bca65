"""A folder of images with a table of captions, and everything that is wrong with such folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cmma.data.folder import count_images, read_folder
from cmma.data.samples import Sample
from cmma.data.sources import KeyMaker, Skipped, is_for_training
from cmma.errors import DataError

SHARED_PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def folder_of(path: Path, table: str | bytes, *files: str) -> Path:
    for number, file in enumerate(files):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (number, 0, 0)).save(path / file)
    (path / "captions.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return path


def read(path: Path, **options) -> tuple[list[Sample], dict[str, str]]:
    found = list(read_folder(path, **options))
    skipped = {entry.name: entry.reason for entry in found if isinstance(entry, Skipped)}
    return [entry for entry in found if isinstance(entry, Sample)], skipped


def test_rows_become_samples_in_order(tmp_path):
    table = "file,caption,class\nb.png,a bee,insect\nsub/a.png,an ant,insect\n"
    samples, skipped = read(folder_of(tmp_path, table, "b.png", "sub/a.png"))
    assert [(s.key, s.caption, s.labels) for s in samples] == [
        ("b", "a bee", ["insect"]),
        ("sub_a", "an ant", ["insect"]),
    ]
    assert samples[0].meta["source"] == "b.png"
    assert not skipped
    assert count_images(tmp_path) == 2


def test_every_defect_is_named_and_nothing_else_is_lost(tmp_path):
    table = (
        "file,caption\n"
        "good.png,fine\n"
        "gone.png,nothing there\n"
        "../secret.png,out\n"
        "/etc/passwd,out\n"
        "empty.png,\n"
        ",who\n"
        "good.png,fine\n"
        "comma.png,a dog, running\n"
        "\n"
        "text.jpg,not an image\n"
        "short.jpg,truncated\n"
        "last.png,fine too"
    )
    folder_of(tmp_path, table, "good.png", "empty.png", "comma.png", "last.png", "stray.jpeg")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "notes.txt").write_text("not an image by its name: not looked at")
    Image.effect_noise((60, 60), 50).save(tmp_path / "short.jpg")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "short.jpg").read_bytes()[:-300])
    samples, skipped = read(tmp_path)
    assert [s.key for s in samples] == ["good", "last"]
    assert skipped == {
        "captions.csv line 4: ../secret.png": "the path leaves the folder",
        "captions.csv line 5: /etc/passwd": "the path leaves the folder",
        "captions.csv line 6: empty.png": "no caption",
        "captions.csv line 7": "no file name",
        "captions.csv line 8: good.png": "repeats an earlier row",
        "captions.csv line 9": "3 columns, the header has 2; quote the caption",
        "gone.png": "no such file",
        "text.jpg": "not an image in a known format",
        "short.jpg": skipped["short.jpg"],
        "comma.png": "no row in captions.csv",
        "empty.png": "no row in captions.csv",
        "stray.jpeg": "no row in captions.csv",
    }
    assert skipped["short.jpg"].startswith("cannot be decoded (image file is truncated")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiters_byte_order_mark_and_line_ends(tmp_path, delimiter: str, start: bytes, newline: str):
    lines = ["Caption|id|FILE", "“é” on a mat|7|x.png"]
    table = start + newline.join(lines).replace("|", delimiter).encode()
    samples, skipped = read(folder_of(tmp_path, table, "x.png"))
    assert [s.caption for s in samples] == ["“é” on a mat"]
    assert not skipped


def test_quoted_captions_may_hold_delimiters_and_lines(tmp_path):
    samples, _ = read(folder_of(tmp_path, 'file,caption\nx.png,"one, two\nthree ""four"""\n', "x.png"))
    assert samples[0].caption == 'one, two\nthree "four"'


def test_further_captions_and_labels_of_a_file(tmp_path):
    table = "file,caption,class\nx.png,first,cat\nx.png,second,pet\n"
    samples, _ = read(folder_of(tmp_path, table, "x.png"))
    assert samples[0].caption == "first"
    assert samples[0].meta["captions"] == ["first", "second"]
    assert samples[0].labels == ["cat", "pet"]


def test_file_names_in_another_unicode_form_are_found(tmp_path):
    samples, skipped = read(folder_of(tmp_path, "file,caption\ncaf\u00e9.png,coffee\n", "cafe\u0301.png"))
    assert [s.key for s in samples] == ["cafe"]
    assert not skipped


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "empty"),
        ("image,text\nx.png,a\n", "must name the columns file and caption; it is 'image,text'"),
        ("file,caption,caption\nx.png,a,b\n", "occurs twice"),
        (b"\xff\xfef\x00i\x00", "not UTF-8"),
        ("file,caption\nx.png,caf\u00e9\n".encode("latin-1"), r"not UTF-8 \(byte 22\)"),
        ("file,caption\nx.png," + "a" * 200_000, "field larger than field limit"),
    ],
)
def test_unreadable_table_is_one_line(tmp_path, table, message):
    with pytest.raises(DataError, match=message) as caught:
        read_folder(folder_of(tmp_path, table))
    assert "\n" not in str(caught.value)
    assert "captions.csv" in str(caught.value)


def test_missing_folder_table_and_label_column(tmp_path):
    with pytest.raises(DataError, match=r"no such folder; set dataset\.path"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"captions\.csv: no such file"):
        read_folder(tmp_path)
    folder_of(tmp_path, "file,caption\n")
    with pytest.raises(DataError, match="no column 'species'"):
        read_folder(tmp_path, label_column="species")


def test_keys_are_unique_and_safe_in_tars():
    make_key = KeyMaker()
    names = ["a b.v2.jpg", "a_b_v2.png", "a/b.v2.gif", ".hidden.jpg", "日本.png", "中国.png", "noending"]
    keys = [make_key(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "a_b_v2"
    assert all(key and not set(key) & set("./ ") for key in keys)


def test_split_is_stable_and_near_its_fraction():
    keys = [f"image-{i}" for i in range(4000)]
    training = [key for key in keys if is_for_training(key, 0.8)]
    assert abs(len(training) / len(keys) - 0.8) < 3 * (0.8 * 0.2 / 4000) ** 0.5
    assert training == [key for key in reversed(keys) if is_for_training(key, 0.8)][::-1]
    assert training != [key for key in keys if is_for_training(key, 0.8, seed=1)]


@pytest.mark.skipif(not SHARED_PHOTOS.is_dir(), reason="the development photographs are not here")
def test_real_photographs():
    samples, skipped = read(SHARED_PHOTOS, max_side=128)
    assert len(samples) == 300
    assert not skipped
    assert all(max(s.image.size) == 128 and s.image.mode == "RGB" for s in samples)
    assert samples[0].labels == ["goldfish"]
