"""Downloads run in child processes: the hub's library reads its environment once, when it is imported."""

import importlib.util
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import tilewise
from tests.messages import mentions
from tests.processes import PATIENCE_S, run_command
from tilewise.checkpoint.hub import find_model
from tilewise.errors import CheckpointError, ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "config.json": b"{}",
    "tokenizer.model": b"pieces",
    "tokenizer.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"a b",
    "requirements.txt": b"no tokenizer",
    "model-1.safetensors": WEIGHTS,
    "model-2.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b"{}",
    "modeling_internvl_chat.py": b"raise SystemExit('ran')",
    "pytorch_model.bin": b"pickle",
    "flax_model.msgpack": b"flax",
    "README.md": b"words",
    "examples/extra.safetensors": b"nested",
    "examples/config.json": b"{}",
}
WANTED = {
    "config.json",
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "model-1.safetensors",
    "model-2.safetensors",
    "model.safetensors.index.json",
}


@dataclass
class Hub:
    """A hub on loopback that serves `org/model` from `files` and notes what it was asked for."""

    files: dict[str, bytes]
    status: int = 200
    error_code: str = "RepoNotFound"
    refused: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    fetched: list[tuple[str, str, str | None]] = field(default_factory=list)
    served_bytes: dict[str, int] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def wait_for_others(self) -> None:
        """Until all that is not refused has gone out: a client that is refused one file gives up the others."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.served_bytes.keys() >= WANTED - self.refused and time.monotonic() < deadline:
            time.sleep(0.01)

    def names(self, method: str = "GET") -> list[str]:
        return [name for asked, name, _ in self.fetched if asked == method]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/") and not path.startswith("/api/models/"):
            return self.answer(404, b"{}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        if not path.removeprefix("/api/models").startswith("/org/model/"):
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.hub.status != 200:
            return self.answer(self.hub.status, b"{}", {"X-Error-Code": self.hub.error_code})
        _, _, rest = path.partition("/org/model/")
        kind, revision, *name = rest.split("/", 2)
        if revision not in ("main", COMMIT):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if kind == "revision":
            siblings = [{"rfilename": name} for name in self.hub.files]
            return self.answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode())
        if kind == "tree":
            tree = [{"type": "file", "path": n, "size": len(b), "oid": f"{n:0>40}"} for n, b in self.hub.files.items()]
            return self.answer(200, json.dumps(tree).encode())
        return self.answer_file(name[0])

    def answer_file(self, name: str) -> None:
        content, wanted = self.hub.files[name], self.headers.get("Range")
        self.hub.fetched.append((self.command, name, wanted))
        if self.command == "GET" and name in self.hub.refused:
            self.hub.wait_for_others()
            return self.answer(403, b"")
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206 if wanted else 200, content[start:], headers, name=name)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after.pop(name, None)
        self.wfile.write(body[:cut])
        self.hub.served_bytes[name] = self.hub.served_bytes.get(name, 0) + len(body[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub(dict(FILES))
    handler = type("BoundHandler", (Handler,), {"hub": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


FIND = """
import sys
from tilewise.checkpoint.hub import find_model
from tilewise.errors import TilewiseError
try:
    print(find_model(sys.argv[1], revision=sys.argv[2] or None, download_dir=sys.argv[3] or None))
except TilewiseError as error:
    print(type(error).__name__, error)
    sys.exit(2)
"""


def find_in_child(
    home: Path, model: str = "org/model", *, revision: str = "", download_dir: str = "", **variables: str
) -> tuple[int, str]:
    """Call `find_model` in a fresh interpreter with `home` as its only home; return (exit status, last line)."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf")}
    environment |= {"PYTHONPATH": str(Path(tilewise.__file__).parents[1]), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-c", FIND, model, revision, download_dir]
    done = run_command(command, env=environment | variables)
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.strip().splitlines()[-1]


def test_a_hub_id_downloads_the_wanted_files_and_never_code_or_pickles(hub: Hub, tmp_path: Path) -> None:
    status, folder = find_in_child(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
    assert status == 0
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {name: FILES[name] for name in WANTED}
    assert set(hub.names("HEAD")) | set(hub.names("GET")) == WANTED
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_second_call_fetches_nothing_again_and_offline_mode_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    first = find_in_child(tmp_path, HF_ENDPOINT=hub.url)
    assert first[0] == 0
    hub.fetched.clear()
    assert find_in_child(tmp_path, HF_ENDPOINT=hub.url) == first
    assert hub.names("GET") == []
    hub.tokens.clear()
    assert find_in_child(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == first
    assert hub.tokens == set()


def test_download_dir_replaces_the_cache_folder_and_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    where = tmp_path / "models"
    status, folder = find_in_child(tmp_path, HF_ENDPOINT=hub.url, revision=COMMIT, download_dir=str(where))
    assert status == 0
    assert Path(folder).is_relative_to(where)


def test_a_connection_cut_inside_a_shard_is_resumed_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files["model-1.safetensors"] = whole = WEIGHTS * 24
    hub.cut_after["model-1.safetensors"] = cut = 15 << 20
    status, folder = find_in_child(tmp_path, HF_ENDPOINT=hub.url)
    assert status == 0
    assert (Path(folder) / "model-1.safetensors").read_bytes() == whole
    first, second = [wanted for method, name, wanted in hub.fetched if (method, name) == ("GET", "model-1.safetensors")]
    assert first is None
    assert second is not None
    resumed_at = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 0 < resumed_at <= cut
    assert hub.served_bytes["model-1.safetensors"] == cut + len(whole) - resumed_at


def test_files_that_are_complete_survive_a_download_that_failed(hub: Hub, tmp_path: Path) -> None:
    hub.refused.add("model-2.safetensors")
    status, line = find_in_child(tmp_path, HF_ENDPOINT=hub.url)
    assert status == 2
    assert line.startswith("DownloadError Downloading org/model failed")
    complete = {path.name for path in (tmp_path / "hf" / "hub").glob("models--org--model/snapshots/*/*")}
    assert complete
    assert "model-2.safetensors" not in complete
    hub.fetched.clear()
    hub.refused.clear()
    assert find_in_child(tmp_path, HF_ENDPOINT=hub.url)[0] == 0
    assert sorted(hub.names()) == sorted(WANTED - complete), "only what was cut off is fetched again"


def test_offline_without_a_cache_says_how_to_get_online(hub: Hub, tmp_path: Path) -> None:
    status, line = find_in_child(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert status == 2
    assert line.startswith("DownloadError org/model is no folder here, is not (completely) in the cache")
    assert "HF_HUB_OFFLINE" in line


def test_an_unreachable_hub_says_what_to_check(tmp_path: Path) -> None:
    status, line = find_in_child(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 2
    assert line.startswith("DownloadError")
    assert "HF_ENDPOINT" in line


def test_an_unknown_model_or_revision_says_so(hub: Hub, tmp_path: Path) -> None:
    status, line = find_in_child(tmp_path, "org/nothing", HF_ENDPOINT=hub.url)
    assert (status, line.partition(" ")[0]) == (2, "DownloadError")
    assert re.search(mentions("org/nothing", "folder", "hub"), line)
    status, line = find_in_child(tmp_path, revision="v9", HF_ENDPOINT=hub.url)
    assert (status, line.partition(" ")[0]) == (2, "DownloadError")
    assert re.search(mentions("revision", "v9"), line)


def test_a_gated_model_says_how_to_get_access(hub: Hub, tmp_path: Path) -> None:
    hub.status, hub.error_code = 403, "GatedRepo"
    status, line = find_in_child(tmp_path, HF_ENDPOINT=hub.url)
    assert status == 2
    assert "gated" in line
    assert "HF_TOKEN" in line


def test_a_repository_without_safetensors_is_refused_after_the_look(hub: Hub, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in FILES.items() if not name.endswith(".safetensors")}
    status, line = find_in_child(tmp_path, HF_ENDPOINT=hub.url)
    assert status == 2
    assert re.search(mentions("config.json", ".safetensors"), line)
    assert not {"pytorch_model.bin", "modeling_internvl_chat.py"} & set(hub.names())


FAKE_MODELSCOPE = """
import json, os
def snapshot_download(model_id, **options):
    os.makedirs("served", exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        open(os.path.join("served", name), "w").close()
    json.dump([model_id, options], open("asked.json", "w"))
    return os.path.abspath("served")
"""


@pytest.mark.parametrize(
    ("model", "variables"), [("modelscope:org/m", {}), ("org/m", {"TILEWISE_USE_MODELSCOPE": "1"})]
)
def test_modelscope_is_asked_by_prefix_or_variable_with_the_same_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, variables: dict[str, str]
) -> None:
    (tmp_path / "modelscope.py").write_text(FAKE_MODELSCOPE)
    monkeypatch.chdir(tmp_path)
    search = os.pathsep.join([str(tmp_path), str(Path(tilewise.__file__).parents[1])])
    status, folder = find_in_child(tmp_path, model, revision="v1", **variables, PYTHONPATH=search)
    assert (status, folder) == (0, str(tmp_path / "served"))
    hub_id, options = json.loads((tmp_path / "asked.json").read_text())
    assert (hub_id, options["revision"]) == ("org/m", "v1")
    assert options["allow_patterns"] == ["*.safetensors", "*.json", "*.model", "merges.txt"]


@pytest.mark.skipif(importlib.util.find_spec("modelscope") is not None, reason="modelscope is installed")
def test_modelscope_without_its_package_names_what_to_install(tmp_path: Path) -> None:
    status, line = find_in_child(tmp_path, "modelscope:org/model")
    assert status == 2
    assert "pip install modelscope" in line


def test_a_local_folder_or_a_link_to_one_is_found_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model(str(folder)) == folder
    assert find_model(str(link)) == link
    assert find_model("org/model") == Path("org/model")
    assert find_model("~/link") == link


def test_what_is_no_model_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name, message in (("", r"holds no config\.json"), ("file", "is a file"), ("broken", "link to nothing")):
        with pytest.raises(CheckpointError, match=message):
            find_model(str(tmp_path / name))


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c", "../a", "a/", "a\0b/c", "", "x" * 5000]
)
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(model: str) -> None:
    with pytest.raises(CheckpointError, match=mentions("folder", "hub id")):
        find_model(model)


@pytest.mark.parametrize("given", [{"revision": "v1"}, {"download_dir": "v1"}, {"download_dir": Path("v1")}])
def test_a_revision_or_download_dir_of_something_local_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text("{}")
    (name,) = given
    for model in (str(tmp_path), None):
        with pytest.raises(ConfigError, match=f"{name}='v1'") as refusal:
            find_model(model, **given)
        assert refusal.value.param == name
