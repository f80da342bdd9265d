"""Tests of the Hugging Face Hub with a local fake server: streaming, pinned commits and network errors.

huggingface_hub reads HF_ENDPOINT when it is imported, so the client is a separate process. It runs all
scenarios and prints one JSON object for each.
"""

import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.tasks.sources import huggingface as hub
from lexloom.tasks.sources.source import HubSource, find_source

COMMIT = "a" * 40
ROWS = 250


def json_lines() -> bytes:
    rows = [{"text": f"{'even' if n % 2 == 0 else 'odd'} document", "label": n % 2} for n in range(ROWS)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"word{'x' * n}" for n in range(ROWS)]}), sink, row_group_size=99)
    return sink.getvalue()


def with_names() -> bytes:
    """Return a table with class names in its metadata, like the Hub's data sets."""
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
    }
    table = pa.table({"text": ["good", "bad"], "label": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


FILES = {
    "owner/lines": ("train.jsonl", json_lines()),
    "owner/table": ("data/test.parquet", parquet()),
    "owner/named": ("data/train.parquet", with_names()),
    "owner/flaky": ("train.jsonl", json_lines()),
}


class StandIn(BaseHTTPRequestHandler):
    """A fake Hub with the endpoints that streaming a data set needs."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked[path] += 1
        name = "/".join(path.removeprefix("/api").split("/")[2:4])
        if name == "owner/unplugged":
            self.close_connection = True  # hang up without a word
        elif name == "owner/down" or (name == "owner/flaky" and self.asked[path] <= 2 and "/api/" in path):
            self.answer(503, b"{}")
        elif name == "owner/gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.endswith("/revision/gone"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif name not in FILES:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            self.serve(path, *FILES[name])

    do_HEAD = do_GET  # noqa: N815

    def serve(self, path: str, file: str, content: bytes) -> None:
        if "/tree/" in path:
            below = path.partition(f"/tree/{COMMIT}")[2].strip("/")
            listed = {"path": file, "type": "file", "size": len(content), "oid": "b" * 40}
            folder = str(Path(file).parent)
            if folder != (below or "."):
                listed = {"path": folder, "type": "directory", "oid": "c" * 40}
            self.answer(200, json.dumps([listed]).encode())
        elif path.startswith("/api/"):
            self.answer(
                200, json.dumps({"id": "x", "sha": COMMIT, "siblings": [{"rfilename": file}]}).encode()
            )
        elif path.endswith(f"/resolve/{COMMIT}/{file}"):
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            status = 206 if "Range" in self.headers else 200
            headers = {
                "ETag": '"c"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
                "Content-Range": span,
            }
            self.answer(status, part, headers)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


CLIENT = """
import json, sys, tempfile, time
from pathlib import Path
import pyarrow.parquet as pq
from lexloom.tasks.sources import huggingface as hub
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source

sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.001))  # the hub's own libraries wait, too
for scenario in json.loads(sys.argv[1]):
    config = CorpusConfig(**scenario)
    out = Path(tempfile.mkdtemp(dir="."))
    try:
        source = locate_source(config)
        summary = hub.with_retries(lambda: corpus.function(source, config, out))  # as the stage's task does
        rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        names = summary.facts.get("label_names")
        found = {"key": source.key, "revision": source.revision, "rows": rows, "label_names": names}
        print(json.dumps(found), flush=True)
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
"""

SCENARIOS = {
    "lines": {"source": "hf:owner/lines", "label_column": "label"},
    "named": {"source": "hf:owner/named", "label_column": "label"},
    "table": {"source": "hf:owner/table::test"},
    "limited": {"source": "hf:owner/lines@main:default:train", "limit": 3},
    "pinned": {"source": f"hf:owner/lines@{COMMIT}", "limit": 3},
    "flaky": {"source": "hf:owner/flaky", "limit": 3},
    "down": {"source": "hf:owner/down"},
    "unplugged": {"source": "hf:owner/unplugged"},
    "failing late": {"source": f"hf:owner/down@{COMMIT}"},
    "missing": {"source": "hf:owner/missing"},
    "no revision": {"source": "hf:owner/lines@gone"},
    "gated": {"source": "hf:owner/gated"},
    "no split": {"source": "hf:owner/lines::test"},
    "no column": {"source": "hf:owner/lines", "text_column": "body"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(folder / "cache"),
        "LEXLOOM_STORE": str(folder / "store"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(list(SCENARIOS.values()))],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return dict(zip(SCENARIOS, map(json.loads, done.stdout.splitlines()), strict=True))


def test_json_lines_are_streamed_with_their_labels(results: dict[str, dict[str, Any]]) -> None:
    rows = results["lines"]["rows"]
    assert len(rows) == ROWS
    assert [(row["text"], row["label"]) for row in rows[:2]] == [
        ("even document", "0"),
        ("odd document", "1"),
    ]


def test_class_names_of_the_hub_are_kept(results: dict[str, dict[str, Any]]) -> None:
    assert results["named"]["label_names"] == ["neg", "pos"]
    assert [row["label"] for row in results["named"]["rows"]] == ["1", "0"]
    assert results["lines"]["label_names"] is None


def test_parquet_is_streamed_in_order(results: dict[str, dict[str, Any]]) -> None:
    assert [row["text"] for row in results["table"]["rows"]] == [f"word{'x' * n}" for n in range(ROWS)]


def test_a_limit_stops_reading(results: dict[str, dict[str, Any]]) -> None:
    assert len(results["limited"]["rows"]) == 3


def test_a_branch_is_resolved_to_its_commit(results: dict[str, dict[str, Any]]) -> None:
    assert results["lines"]["revision"] == COMMIT
    assert results["lines"]["key"] == results["pinned"]["key"]


def test_failed_hub_requests_are_retried(results: dict[str, dict[str, Any]]) -> None:
    assert len(results["flaky"]["rows"]) == 3
    assert StandIn.asked["/api/datasets/owner/flaky"] == 3


@pytest.mark.parametrize(
    ("scenario", "error", "message"),
    [
        ("down", "NetworkError", "the Hugging Face Hub failed for hf:owner/down (status 503)"),
        ("unplugged", "NetworkError", "the Hugging Face Hub can't be reached for hf:owner/unplugged ("),
        (
            "failing late",
            "NetworkError",
            f"the Hugging Face Hub failed for hf:owner/down@{COMMIT} (",
        ),
        ("missing", "FileNotFoundError", "hf:owner/missing: the data set does not exist"),
        ("no revision", "FileNotFoundError", "hf:owner/lines@gone: the data set has no such revision"),
        ("gated", "PermissionError", "hf:owner/gated requires a login"),
        ("no split", "ValueError", "hf:owner/lines::test can't be read from the Hugging Face Hub"),
        ("no column", "ValueError", "hf:owner/lines has no column 'body': it has 'text', 'label'"),
    ],
)
def test_hub_errors_are_one_sentence(
    scenario: str, error: str, message: str, results: dict[str, dict[str, Any]]
) -> None:
    assert (results[scenario].get("error"), results[scenario].get("message", "")[: len(message)]) == (
        error,
        message,
    )


def test_only_network_errors_are_retried(results: dict[str, dict[str, Any]]) -> None:
    assert StandIn.asked["/api/datasets/owner/down"] == 5
    assert StandIn.asked["/api/datasets/owner/missing"] == 1


def test_a_pinned_commit_needs_no_network() -> None:
    found = find_source(f"hf:owner/name@{COMMIT}:en:validation")
    assert isinstance(found, HubSource)
    assert (found.dataset, found.revision, found.config, found.split) == (
        "owner/name",
        COMMIT,
        "en",
        "validation",
    )


def test_the_key_depends_on_commit_configuration_and_split() -> None:
    keys = {
        find_source(f"hf:owner/name@{commit}{rest}").key
        for commit in (COMMIT, "b" * 40)
        for rest in ("", ":en", ":en:test", "::test")
    }
    assert len(keys) == 8


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:a b", "hf:owner/name@"])
def test_a_malformed_name_is_rejected_with_the_syntax(name: str) -> None:
    with pytest.raises(ValueError, match=r"use hf:owner/name\[@revision\]\[:config\]\[:split\]"):
        find_source(name)


# models


class TransportError(Exception):
    """The name that the Hub's libraries use with any HTTP library."""


@pytest.mark.parametrize("cached", [True, False])
def test_the_cache_is_used_if_the_hub_does_not_respond(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def model_info(self: object, model: str, **options: Any) -> None:
        asked.append(options)
        raise TransportError("timed out")

    def download(model: str, **options: Any) -> str:
        asked.append(options)
        if not cached:
            raise FileNotFoundError("not in the cache")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    if cached:
        assert hub.download_model("owner/name", "owner/name", "v2", ["*.json"]) == tmp_path
    else:
        with pytest.raises(hub.NetworkError, match=r"can't be reached for owner/name \(timed out\)"):
            hub.download_model("owner/name", "owner/name", "v2", ["*.json"])
    probe, fetch = asked
    assert probe == {"revision": "v2", "timeout": hub.TIMEOUT_SECONDS}
    assert fetch == {"revision": "v2", "allow_patterns": ["*.json"], "local_files_only": True}


def test_a_nonexistent_model_is_not_looked_up_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    class RepositoryNotFoundError(Exception):
        pass

    def model_info(*_: object, **options: Any) -> None:
        raise RepositoryNotFoundError("no")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(FileNotFoundError, match="does not exist on the Hugging Face Hub"):
        hub.download_model("owner/name", "owner/name", None, [])


def test_files_are_downloaded_if_the_hub_responds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda model, revision, allow_patterns: tmp_path / model / str(revision) / allow_patterns[0],
    )
    assert hub.download_model("a name", "model", None, ["x"]) == tmp_path / "model" / "None" / "x"
