"""scripts/download_data.sh against a server on this machine."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.programs import ROOT, files

FILES = {
    "scan65/scan65/cameras.npz": b"cameras",
    "scan65/scan65/image/000000.png": bytes(range(256)) * 40,
    "scan106/scan106/cameras.npz": b"more cameras",
}
TOOLS = ("bash", "dirname", "sed", "mkdir", "wc", "tr", "awk", "df", "mv")

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def archive(entries, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as zipped:
        for name, data in entries.items():
            zipped.writestr(name, data)
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves ``content`` at any path; ``size`` is what it claims, ``stop_at`` where it hangs up."""

    content, size, stop_at, ranges = b"", None, None, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []  # (method, path, range)
        self.url = f"http://127.0.0.1:{self.server_port}/sets"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def answer(self, send):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.command, self.path, asked))
        content = server.content
        if content is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(server.size or len(content) - start))
        self.end_headers()
        if send:
            self.wfile.write(content[start : server.stop_at])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        server.content = archive(FILES)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def download(server, tmp_path):
    """Run the script for the set DTU and ``tmp_path/data``; gives exit code, stdout, stderr."""

    def download(name="dtu", **environment):
        done = subprocess.run(
            ["bash", ROOT / "scripts/download_data.sh", name, tmp_path / "data"],
            env={**os.environ, "IM2MESH_DATA_URL": server.url, **environment},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return download


def unpacked(folder):
    return {name: (folder / name).read_bytes() for name in files(folder) if name[0] != "."}


@pytest.mark.parametrize("set_name, name", [
    ("dtu", "DTU"), ("nmr", "NMR_Dataset"), ("shapenet", "ShapeNet"),
])  # fmt: skip
def test_set_is_downloaded_and_unpacked_once(server, download, tmp_path, set_name, name):
    code, out, err = download(set_name)
    assert (code, err) == (0, "")
    assert unpacked(tmp_path / "data" / name) == FILES
    assert hashlib.sha256(server.content).hexdigest() in out
    assert {path for _, path, _ in server.requests} == {f"/sets/{name}.zip"}
    assert sorted(os.listdir(tmp_path / "data")) == [name, f"{name}.zip"]
    server.requests.clear()
    assert download(set_name)[0] == 0
    assert server.requests == []


def test_folder_of_the_set_may_be_in_the_archive(server, download, tmp_path):
    server.content = archive({f"DTU/{name}": data for name, data in FILES.items()})
    assert download()[0] == 0
    assert unpacked(tmp_path / "data/DTU") == FILES
    assert sorted(os.listdir(tmp_path / "data")) == ["DTU", "DTU.zip"]


def test_interrupted_download_goes_on(server, download, tmp_path):
    half = len(server.content) // 2
    server.stop_at = half
    code, _, err = download()
    assert code == 2 and "The same command goes on" in err
    assert (tmp_path / "data/DTU.zip.part").read_bytes() == server.content[:half]
    assert not (tmp_path / "data/DTU").exists()
    server.stop_at = None
    assert download()[0] == 0
    assert server.requests[-1] == ("GET", "/sets/DTU.zip", f"bytes={half}-")
    assert unpacked(tmp_path / "data/DTU") == FILES


def test_complete_part_is_not_asked_for_again(server, download, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/DTU.zip.part").write_bytes(server.content)
    assert download()[0] == 0
    assert [method for method, *_ in server.requests] == ["HEAD"]


def test_server_that_cannot_go_on(server, download, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/DTU.zip.part").write_bytes(server.content[:100])
    server.ranges = False
    code, _, err = download()
    assert code == 2 and f"delete {tmp_path / 'data/DTU.zip.part'} first" in err
    assert (tmp_path / "data/DTU.zip.part").read_bytes() == server.content[:100]


def test_part_of_another_file(server, download, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/DTU.zip.part").write_bytes(server.content + b"more")
    code, _, err = download()
    assert code == 2 and "is larger than" in err


def test_free_space_is_checked_first(server, download, tmp_path):
    server.size = 10**18
    code, _, err = download()
    assert code == 2
    needed = re.search(r"MiB are free, but (\d+) MiB are needed", err)
    assert int(needed[1]) == 2 * 10**18 >> 20
    assert [method for method, *_ in server.requests] == ["HEAD"]
    assert os.listdir(tmp_path / "data") == []


def test_space_for_the_unpacked_files_is_checked(server, download, tmp_path):
    """Known exactly only once the archive is here."""
    content = bytearray(archive({"a": b"0123456789"}, zipfile.ZIP_STORED))
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")  # the size it claims
    server.content = archive_of_claims = bytes(content)
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text(
        "import shutil\nshutil.disk_usage = lambda _: shutil._ntuple_diskusage(2**20, 0, 2**20)\n"
    )
    code, _, err = download(PYTHONPATH=str(fake))
    assert code == 2 and "1 MiB are free, but 4095 MiB are needed to unpack" in err
    assert (tmp_path / "data/DTU.zip").read_bytes() == archive_of_claims
    assert not (tmp_path / "data/DTU").exists()


@pytest.mark.parametrize("name", ["../evil", "scan65/../../evil", "/tmp/evil", "..\\evil"])
def test_archive_that_leads_out_is_refused(server, download, tmp_path, name):
    server.content = archive({**FILES, name: b"evil"})
    code, _, err = download()
    assert code == 2 and "is refused, nothing was unpacked" in err
    assert files(tmp_path) == ["data/DTU.zip"]


def test_archive_with_a_link_is_refused(server, download, tmp_path):
    link = zipfile.ZipInfo("scan65/link")
    link.external_attr = 0o120777 << 16
    server.content = archive({link: b"/etc"})
    code, _, err = download()
    assert code == 2 and "scan65/link" in err
    assert files(tmp_path) == ["data/DTU.zip"]


@pytest.mark.parametrize("damage", ["byte", "truncated", "page", "nothing"])
def test_damaged_archive(server, download, tmp_path, damage):
    content = bytearray(archive(FILES, zipfile.ZIP_STORED))
    content[content.index(bytes(range(256)))] ^= 1
    server.content = {
        "byte": bytes(content), "truncated": server.content[:-30], "page": b"<html>", "nothing":
        archive({}),
    }[damage]  # fmt: skip
    code, _, err = download()
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "elete it" in err and str(tmp_path / "data/DTU.zip") in err
    assert files(tmp_path) == ["data/DTU.zip"]


def test_folder_of_the_user_is_left_alone(server, download, tmp_path):
    (tmp_path / "data/DTU").mkdir(parents=True)
    (tmp_path / "data/DTU/mine").write_text("mine")
    code, _, err = download()
    assert code == 2 and f"{tmp_path / 'data/DTU'} exists" in err
    assert files(tmp_path) == ["data/DTU/mine"] and server.requests == []


def test_rest_of_a_killed_run_is_swept(download, tmp_path):
    (tmp_path / "data/.DTU.unpacking").mkdir(parents=True)
    (tmp_path / "data/.DTU.unpacking/half").write_text("half")
    assert download()[0] == 0
    assert unpacked(tmp_path / "data/DTU") == FILES
    assert not (tmp_path / "data/.DTU.unpacking").exists()


@pytest.mark.parametrize("gone", ["file", "server"])
def test_server_gone(server, download, tmp_path, gone):
    server.content = None
    environment = {"IM2MESH_DATA_URL": "http://127.0.0.1:1/sets"} if gone == "server" else {}
    code, _, err = download(**environment)
    assert code == 2
    for advice in (f"{tmp_path / 'data/DTU.zip'}\n", "IM2MESH_DATA_URL=", "make_synthetic_dataset"):
        assert advice in err


def test_archive_from_elsewhere_is_taken(server, download, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/DTU.zip").write_bytes(server.content)
    server.content = None
    assert download()[0] == 0
    assert unpacked(tmp_path / "data/DTU") == FILES and server.requests == []


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
def test_wget_serves_where_there_is_no_curl(server, download, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in (*TOOLS, "wget"):
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").symlink_to(sys.executable)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/DTU.zip.part").write_bytes(server.content[:300])
    code, _, err = download(PATH=str(tools))
    assert code == 0, err
    assert ("GET", "/sets/DTU.zip", "bytes=300-") in server.requests
    assert unpacked(tmp_path / "data/DTU") == FILES
    (tools / "wget").unlink()
    shutil.rmtree(tmp_path / "data")
    code, _, err = download(PATH=str(tools))
    assert code == 2 and "neither curl nor wget" in err


@pytest.mark.parametrize("name", ["", "DTV"])
def test_usage(download, tmp_path, name):
    code, out, err = download(name)
    assert code == 2 and "choose dtu, nmr or shapenet" in err
    assert "download_data.sh dtu|nmr|shapenet [FOLDER]" in out
    assert not (tmp_path / "data").exists()
