"""Places: paths, file URIs, and keys of a store with any letters in them."""

import os
import pickle
from pathlib import Path

import pytest

from glo_core import UserError
from glo_core.common.location import Location, is_uri


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/photos/a#b?c%20d.png", "/photos/a#b?c%20d.png"),
        ("/photos/a://b.png", "/photos/a:/b.png"),
        ("file:///photos/a.png", "/photos/a.png"),
        ("file:///my%20photos/%C3%A9%23%3F%25.png", "/my photos/é#?%.png"),
        ("file:///photos/a#b?region=x", "/photos/a#b?region=x"),
        ("file://localhost/photos/a%20b.png", "/photos/a b.png"),
        ("FILE://LocalHost/photos", "/photos"),
        ("file:///%ff/a", os.fsdecode(b"/\xff/a")),
        ("file:///100%/a", "/100%/a"),
    ],
)
def test_file_uris_and_paths(text: str, path: str) -> None:
    place = Location(text)
    assert place.path == Path(path) and not place.remote
    assert Location(str(place)) == place


@pytest.mark.parametrize("text", ["file://otherhost/a.png", "file://photos/a.png", "file://10.0.0.1/a"])
def test_a_file_uri_of_another_host_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(
        UserError,
        match=r"^file://.*: names the host '.*', and files are read on this one; write ",
    ):
        Location(text)


OPTIONS = "endpoint_override=127.0.0.1:1&scheme=http&region=eu-north-1"


@pytest.mark.parametrize(
    "key",
    [
        "a#1.png", "#", "what?.png", "?", "a?size=3", "a?region.png", "a b.png", "a%20b.png", "a%2Fb?x#y.png",
        "a\tb.png", "é.png", "a?region=x", "a?region=x?", "a?region=x??", "x?y=1&region=z", "a;b=c", "a&region=b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", ["", f"?{OPTIONS}"])
def test_keys_of_a_store_have_any_letters(key: str, options: str) -> None:
    place = Location(f"s3://bucket/folder{options}") / key
    assert (place.remote, place.name, place.parent.name) == (True, key, "folder")
    for again in (Location(str(place)), pickle.loads(pickle.dumps(place))):
        assert again == place and hash(again) == hash(place)
        assert (again.name, again.parent, again / "b") == (key, place.parent, place / "b")


def test_only_names_of_options_follow_a_question_mark() -> None:
    folder = Location(f"s3://bucket/a?{OPTIONS}")
    assert folder.file_system()[1] == "bucket/a"
    assert (folder / "b?c=1").file_system()[1] == "bucket/a/b?c=1"
    assert Location(f"s3://bucket?{OPTIONS}").file_system()[1] == "bucket"
    assert Location(f"s3://bucket/b?c=1?{OPTIONS}").file_system()[1] == "bucket/b?c=1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/k", True), ("a+b-1.c://x", True), ("/a://b", False), ("://b", False), ("1a://b", False)],
)
def test_a_uri_begins_with_its_scheme(text: str, expected: bool) -> None:
    assert is_uri(text) is expected
