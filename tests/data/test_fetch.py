"""Fetching: a server of our own stands for the mirrors. Each test says what it does with a request."""

import gzip
import hashlib
import http.server
import threading

import pytest
from filelock import FileLock
from tests.data.test_mnist import folder

from consilience.component import dataset
from consilience.data import fetch as fetching
from consilience.data.fetch import Step, digest_of, fetch, publication
from consilience.errors import DataError

NAME = "train-images-idx3-ubyte.gz"
CONTENT = bytes(range(256)) * 2000
CONTENTS = {NAME: hashlib.sha256(CONTENT).hexdigest()}
PACKED, OTHERWISE = gzip.compress(CONTENT, 9, mtime=0), gzip.compress(CONTENT, 1, mtime=0)
FILES = {
    "good": PACKED,
    "otherwise": OTHERWISE,
    "cut": PACKED,
    "rangeless": PACKED,
    "wrong": gzip.compress(b"another content", mtime=0),
    "damaged": PACKED[:-9] + b"\0" * 9,
    "unpacked": CONTENT,
    "lying": PACKED,
}


class Mirror(http.server.BaseHTTPRequestHandler):
    """The first folder of the path says how the mirror behaves."""

    asked: list[tuple[str, str | None]]

    def do_GET(self):
        kind, wanted = self.path.split("/")[1], self.headers.get("Range")
        self.asked.append((kind, wanted))
        if kind not in FILES:
            self.send_error(404)
            return
        body, start = FILES[kind], int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if kind == "rangeless":
            start = 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            said = 0 if kind == "lying" else start
            self.send_header("Content-Range", f"bytes {said}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start : start + len(body) // 2] if kind == "cut" else body[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch):
    """A kind of behaviour to the address of a mirror that behaves so; ``mirror.asked`` are the requests."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "SECONDS", 10.0)
    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Mirror,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def address(kind):
        return f"http://127.0.0.1:{server.server_port}/{kind}/"

    address.asked = asked
    yield address
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def call(tmp_path, mirror):
    """Kinds of mirrors to the steps that were told, or to the error."""

    def call(*kinds, told=None):
        steps = [] if told is None else told
        fetch(tmp_path, CONTENTS, [mirror(kind) for kind in kinds], steps.append)
        return [step for step in steps if step.what != "received"]

    return call


@pytest.fixture
def part(tmp_path):
    return tmp_path / f"{NAME}.part"


def whole(tmp_path, packed=PACKED):
    """Exactly the file is there, and nothing that is half done."""
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [NAME]
    return (tmp_path / NAME).read_bytes() == packed


def test_a_file_arrives_whole_and_what_has_come_is_told(call, tmp_path):
    steps = []
    assert call("good", told=steps) == [Step(NAME, "fetched", len(PACKED), len(PACKED))]
    assert whole(tmp_path)
    received = [step for step in steps if step.what == "received"]
    assert [step.done for step in received] == sorted(step.done for step in received)
    assert received[-1] == Step(NAME, "received", len(PACKED), len(PACKED))


def test_the_folder_is_made_and_the_paths_come_back(tmp_path, mirror):
    deep = tmp_path / "some" / "where"
    assert fetch(deep, CONTENTS, [mirror("good")]) == [deep / NAME]


def test_a_second_call_finds_everything_and_asks_nobody(call, mirror):
    call("good")
    mirror.asked.clear()
    assert call("good") == [Step(NAME, "found")]
    assert mirror.asked == []


@pytest.mark.parametrize(("name", "content"), [(NAME, OTHERWISE), (NAME, CONTENT), (NAME.removesuffix(".gz"), CONTENT)])
def test_the_right_content_is_found_however_it_is_packed(call, tmp_path, mirror, name, content):
    (tmp_path / name).write_bytes(content)
    assert call("good") == [Step(NAME, "found")]
    assert (mirror.asked, (tmp_path / name).read_bytes()) == ([], content)


@pytest.mark.parametrize("content", [b"mine", PACKED[:-20]])
def test_a_file_of_that_name_with_other_content_is_refused_and_left_alone(call, tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(DataError, match=rf"{NAME}: expected the published content .*, found another; .* move it away"):
        call("good")
    assert (tmp_path / NAME).read_bytes() == content


def test_a_broken_connection_keeps_the_part_and_the_next_call_goes_on(call, tmp_path, part, mirror):
    with pytest.raises(DataError, match=f"expected {len(PACKED)} bytes, found that the connection broke after "):
        call("cut")
    half = len(PACKED) // 2
    assert part.read_bytes() == PACKED[:half]
    assert not (tmp_path / NAME).exists()
    call("good")
    assert mirror.asked == [("cut", None), ("good", f"bytes={half}-")]
    assert whole(tmp_path)


def test_the_next_mirror_goes_on_where_the_last_one_broke(call, tmp_path, mirror):
    assert [step.what for step in call("cut", "good")] == ["refused", "fetched"]
    assert mirror.asked == [("cut", None), ("good", f"bytes={len(PACKED) // 2}-")]
    assert whole(tmp_path)


def test_a_server_that_knows_no_ranges_begins_anew(call, tmp_path, part, mirror):
    part.write_bytes(PACKED[:100])
    call("rangeless")
    assert mirror.asked == [("rangeless", "bytes=100-")]
    assert whole(tmp_path)


def test_a_part_that_another_mirror_packed_otherwise_is_given_up(call, tmp_path, part, mirror):
    part.write_bytes(PACKED[:100])
    assert [step.what for step in call("otherwise")] == ["fetched"]
    assert mirror.asked == [("otherwise", "bytes=100-"), ("otherwise", None)]
    assert whole(tmp_path, OTHERWISE)


def test_a_part_longer_than_the_file_is_given_up(call, tmp_path, part, mirror):
    part.write_bytes(b"x" * (len(PACKED) + 5))
    call("good")
    assert [wanted for _, wanted in mirror.asked] == [f"bytes={len(PACKED) + 5}-", None]
    assert whole(tmp_path)


def test_a_server_that_sends_other_bytes_than_asked_for_is_left(call, part, tmp_path):
    part.write_bytes(PACKED[:100])
    refused, _ = call("lying", "good")
    assert "expected the bytes from 100 on, found 'bytes 0-" in refused.why
    assert whole(tmp_path)


def test_a_part_that_is_whole_is_moved_without_a_request(call, tmp_path, part, mirror):
    part.write_bytes(PACKED)
    assert [step.what for step in call("good")] == ["fetched"]
    assert mirror.asked == []
    assert whole(tmp_path)


@pytest.mark.parametrize(
    ("kind", "found"), [("wrong", hashlib.sha256(b"another content").hexdigest()[:12]), ("damaged", "a damaged file")]
)
def test_wrong_content_is_said_and_deleted_and_the_next_mirror_is_asked(call, tmp_path, part, kind, found):
    refused, fetched = call(kind, "good")
    assert refused.why.endswith(f"/{kind}/{NAME}: expected content with the SHA-256 {CONTENTS[NAME][:12]}..., found "
                                + (f"{found}..." if kind == "wrong" else found))  # fmt: skip
    assert fetched.what == "fetched"
    assert whole(tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(DataError):
        call(kind)
    assert not part.exists()


def test_content_that_comes_unpacked_is_the_same_content(call, tmp_path):
    call("unpacked")
    assert whole(tmp_path, CONTENT)


def test_where_no_mirror_gives_a_file_each_reason_is_named(tmp_path, mirror):
    with http.server.HTTPServer(("127.0.0.1", 0), Mirror) as closed:
        dead = f"http://127.0.0.1:{closed.server_port}/"
    with pytest.raises(DataError) as refused:
        fetch(tmp_path, CONTENTS, [mirror("gone"), dead])
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / NAME}: expected a mirror to give this file, found none that does (")
    assert f"{mirror('gone')}{NAME}: expected the file, found '404 Not Found'" in said
    assert f"{dead}{NAME}: expected a server, found '" in said
    assert said.endswith("check the network, then run the same command again: what was received is kept")
    assert not (tmp_path / NAME).exists()


def test_what_is_there_stays_when_another_file_cannot_be_had(tmp_path, mirror):
    with pytest.raises(DataError, match=r"absent\.gz: expected a mirror"):
        fetch(tmp_path, {**CONTENTS, "absent.gz": "0" * 64}, [mirror("wrong"), mirror("good")])
    assert digest_of(tmp_path / NAME) == CONTENTS[NAME]


def test_a_stopped_call_keeps_what_came_and_the_next_goes_on(tmp_path, part, call, mirror, monkeypatch):
    monkeypatch.setattr(fetching, "BLOCK", 1000)

    def stop(step):
        if step.done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, CONTENTS, [mirror("good")], stop)
    assert part.read_bytes() == PACKED[:1000]
    call("good")
    assert mirror.asked[1:] == [("good", "bytes=1000-")]
    assert whole(tmp_path)


def test_two_calls_do_not_write_into_one_part(call, tmp_path):
    with FileLock(tmp_path / ".fetch.lock"), pytest.raises(DataError, match="found another at work; wait until"):
        call("good")
    assert [step.what for step in call("good")] == ["fetched"]


SETS = {name: files for name in dataset.names() if (files := publication(dataset.get(name).function))}


def test_what_can_be_fetched_is_what_the_data_sets_read():
    assert {"mnist", "fashion_mnist"} <= set(SETS)
    for files in SETS.values():
        assert {
            f"{part}-{what}.gz" for part in ("train", "t10k") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        } == set(files.contents)
        assert len(files.mirrors) >= 2
        assert all(mirror.startswith("https://") for mirror in files.mirrors)
    assert publication(dataset.get("mnist10k").function) is None


@pytest.mark.real_data
@pytest.mark.parametrize("name", SETS)
def test_real_files_have_the_published_content(name):
    steps = []
    fetch(folder(name.replace("_", "-")), SETS[name].contents, [], steps.append)
    assert [step.what for step in steps] == ["found"] * 4
