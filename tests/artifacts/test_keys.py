"""Content keys: equal content, equal key; any difference, another key."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmma.artifacts.keys import artifact_key, canonical_json, fingerprint_images, fingerprint_model
from cmma.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values))
def test_order_of_keys_does_not_matter(config):
    turned = dict(reversed(config.items()))
    assert artifact_key("train-sae", 1, config, {}) == artifact_key("train-sae", 1, turned, {})


@given(values)
def test_canonical_json_is_json(value):
    assert json.loads(canonical_json(value)) == value


def test_key_is_the_documented_hash():
    text = '{"config":{"seed":0},"parents":{"prepare-data":"abc"},"stage":"evaluate","version":2}'
    key = artifact_key("evaluate", 2, {"seed": 0}, {"prepare-data": "abc"})
    assert key == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("other", [
    ("train-sae", 2, {"seed": 0}, {"p": "a"}), ("interpret", 1, {"seed": 0}, {"p": "a"}),
    ("train-sae", 1, {"seed": 1}, {"p": "a"}), ("train-sae", 1, {"seed": 0}, {"p": "b"}),
])
def test_every_part_counts(other):
    assert artifact_key("train-sae", 1, {"seed": 0}, {"p": "a"}) != artifact_key(*other)


def test_image_fingerprint_follows_content_and_not_time(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\na.jpg,a cat\n")
    before = fingerprint_images(tmp_path, "captions.csv")
    (tmp_path / "a.jpg").touch()
    assert fingerprint_images(tmp_path, "captions.csv") == before
    table.write_text("file,caption\na.jpg,a dog\n")
    changed_caption = fingerprint_images(tmp_path, "captions.csv")
    (tmp_path / "b.jpg").write_bytes(b"1")
    assert len({before, changed_caption, fingerprint_images(tmp_path, "captions.csv")}) == 3


def test_model_fingerprint_sees_one_changed_byte(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(64))
    before = fingerprint_model(tmp_path)
    weights.write_bytes(bytes(63) + b"\x01")
    assert fingerprint_model(tmp_path) != before


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        fingerprint_images(tmp_path / "nowhere", "captions.csv")
    with pytest.raises(DataError, match=r"captions\.csv is missing"):
        fingerprint_images(tmp_path, "captions.csv")
    with pytest.raises(DataError, match="nowhere"):
        fingerprint_model(tmp_path / "nowhere")
