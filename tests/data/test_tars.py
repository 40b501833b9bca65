"""Tars of samples: equal bytes for equal samples, whole or refused."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmma.data.folder import read_folder
from cmma.data.samples import Sample
from cmma.data.sources import FileSample, Skipped
from cmma.data.tars import count_samples, load_samples, read_tars, read_truths, read_webdataset, write_tar
from cmma.errors import ArtifactError, DataError


def make_sample(number: int) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    question = {"question": "is there a circle?", "answer": "yes", "kind": "existence"}
    meta = {"labels": ["circle", "größe"], "objects": [{"shape": "circle"}], "questions": [question]}
    mask = (pixels[..., 0] // 64).astype(np.uint8) if number % 2 else None
    return Sample(f"s{number:04d}", Image.fromarray(pixels), f"caption ü {number}", meta, mask)


def assert_equal(a: Sample, b: Sample) -> None:
    assert (a.key, a.caption, a.meta) == (b.key, b.caption, b.meta)
    assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert (a.mask is None and b.mask is None) or np.array_equal(a.mask, b.mask)


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tars")
    paths = [folder / f"{i:03d}.tar" for i in range(3)]
    for i, path in enumerate(paths):
        write_tar(path, [make_sample(number) for number in range(4 * i, 4 * i + 4)])
    return paths


def test_round_trip_with_masks(tars):
    read = list(read_tars(tars))
    assert len(read) == count_samples(tars) == 12
    for number, sample in enumerate(read):
        assert_equal(sample, make_sample(number))
    assert read[0].questions[0].answer == "yes"


def test_equal_samples_give_equal_bytes(tars, tmp_path):
    infos = [write_tar(tmp_path / name, (make_sample(i) for i in range(4))) for name in ("a.tar", "b.tar")]
    assert infos[0] == infos[1]
    content = (tmp_path / "a.tar").read_bytes()
    assert (infos[0].n, infos[0].sha256, infos[0].bytes) == (4, hashlib.sha256(content).hexdigest(), len(content))
    assert content == tars[0].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


@pytest.mark.parametrize(("start", "stop"), [(0, None), (3, 9), (4, 8), (5, 5), (11, None), (12, 20), (0, 1)])
def test_ranges_are_slices_of_the_whole(tars, start, stop):
    keys = [f"s{i:04d}" for i in range(12)]
    assert [sample.key for sample in read_tars(tars, start, stop)] == keys[start:stop]


def test_named_samples_in_the_asked_order(tars):
    for sample, number in zip(load_samples(tars, ["s0009", "s0000", "s0010", "s0009"]), (9, 0, 10, 9), strict=True):
        assert_equal(sample, make_sample(number))
    with pytest.raises(DataError, match="no sample 'zebra' in 3 tars"):
        load_samples(tars, ["s0001", "zebra"])


def test_a_tar_cut_anywhere_is_refused(tars, tmp_path):
    content = tars[0].read_bytes()
    end = len(content.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for length in [0, 1, 511, *range(512, end + 512, 512), end, end // 2 + 7]:  # member boundaries among them
        cut.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.tar"):
            list(read_tars([cut]))
        with pytest.raises(DataError, match=r"cut\.tar"):
            load_samples([cut], ["s0000"])


def test_a_damaged_header_is_refused(tars, tmp_path):
    """tarfile by itself takes it for the end of the archive."""
    content = bytearray(tars[0].read_bytes())
    content[content.index(b"s0002.json")] ^= 0xFF
    broken = tmp_path / "broken.tar"
    broken.write_bytes(content)
    with tarfile.open(broken) as tar:
        assert 0 < len(tar.getnames()) < 13
    with pytest.raises(DataError, match=r"broken\.tar: damaged tar"):
        list(read_tars([broken]))


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(read_tars([tmp_path / "none.tar"]))
    (tmp_path / "text.tar").write_text("hello" * 500)
    with pytest.raises(DataError, match="not a tar"):
        list(read_tars([tmp_path / "text.tar"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.tar files"):
        read_webdataset(tmp_path / "empty")


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "s0001"])
def test_keys_that_tars_cannot_hold_are_refused_and_leave_nothing(tmp_path, key):
    sample = make_sample(1)
    bad = Sample(key, sample.image, "", {})
    with pytest.raises(DataError, match="sample key"):
        write_tar(tmp_path / "x.tar", [sample, bad])
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_midway_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk: writing stops with an OSError
    try:
        with pytest.raises(ArtifactError, match=r"x\.tar"):
            write_tar(tmp_path / "x.tar", (make_sample(i) for i in range(20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def jpeg(size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def test_tars_as_img2dataset_writes_them(tmp_path):
    """Field names from img2dataset's documentation of its `webdataset` output format."""
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for key in ("000000000", "000000001", "000000002", "000000003"):
            meta = {"url": f"http://example.org/{key}", "caption": f"a {key}", "key": key, "status": "success"}
            add(tar, f"{key}.jpg", b"broken" if key.endswith("1") else jpeg())
            add(tar, f"{key}.json", b"{" if key.endswith("2") else json.dumps(meta | {"topic": "zoo"}).encode())
            add(tar, f"{key}.txt", meta["caption"].encode())
        add(tar, "000000004.txt", b"only a caption")
    found = list(read_webdataset(tmp_path, label_column="topic", max_side=16))
    samples = [entry for entry in found if isinstance(entry, Sample)]
    assert [(s.key, s.caption, s.labels, s.image.size) for s in samples] == [
        ("000000000", "a 000000000", ["zoo"], (16, 12)),
        ("000000003", "a 000000003", ["zoo"], (16, 12)),
    ]
    assert samples[0].meta["source"] == "http://example.org/000000000"
    skipped = {entry.name: entry.reason for entry in found if isinstance(entry, Skipped)}
    assert list(skipped) == ["00000.tar: 000000001", "00000.tar: 000000002", "00000.tar: 000000004"]
    assert skipped["00000.tar: 000000001"] == "not an image in a known format"
    assert skipped["00000.tar: 000000004"] == "no image"


def test_truths_come_without_images(tars, tmp_path):
    """Also of a sample whose image cannot be decoded; JSON that cannot be read is named."""
    assert list(read_truths(tars[0].parent)) == [(sample.key, sample.meta) for sample in read_tars(tars)]
    path = tmp_path / "one.tar"
    for content, found in ((b'{"labels": []}', [("a", {"labels": []})]), (b"{", None)):
        with tarfile.open(path, "w") as tar:
            for name, data in (("a.json", content), ("a.png", b"no image")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        if found:
            assert list(read_truths(path)) == found
        else:
            with pytest.raises(DataError, match=r"one\.tar: a: JSON cannot be read"):
                list(read_truths(path))


def test_scattered_members_of_one_sample_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "a.txt"):
            add(tar, name, jpeg())
    with pytest.raises(DataError, match="members of sample 'a' do not lie together"):
        list(read_tars([tmp_path / "x.tar"]))


def test_photographs_keep_their_jpeg_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(jpeg())
    (tmp_path / "in" / "captions.csv").write_text("file,caption\nx.jpg,grey\n")
    (sample,) = read_folder(tmp_path / "in")
    write_tar(tmp_path / "x.tar", [sample], image_format="jpeg")
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.extractfile("x.jpg").read() == jpeg()
    changed = FileSample(sample.key, sample.image.rotate(180), sample.caption, sample.meta, picture=sample.picture)
    write_tar(tmp_path / "x.tar", [changed], image_format="jpeg")
    (back,) = read_tars([tmp_path / "x.tar"])
    assert np.abs(np.asarray(back.image, int) - np.asarray(changed.image, int)).max() < 8
