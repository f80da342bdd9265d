"""A pretrained decoder is downloaded from the Hugging Face Hub, of which a local server takes the place.

huggingface_hub reads HF_ENDPOINT when it is imported, so the client is a separate process.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from lexloom.tasks.sources.initial_model import locate_initial_model
from tests.models.decoders import write_decoder
from tests.tasks.sources.test_huggingface import COMMIT, StandIn

CLIENT = """
import json, sys
from lexloom.tasks.sources.initial_model import locate_initial_model

found = locate_initial_model(sys.argv[1])
files = sorted(path.name for path in found.folder.iterdir())
print(json.dumps({"name": found.name, "digest": found.digest, "files": files}))
"""


class Models(StandIn):
    """A Hub with one model, `owner/decoder`, whose files are in `folder`."""

    folder: ClassVar[Path]

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        files = sorted(each.name for each in self.folder.iterdir())
        if path.startswith("/api/models/owner/decoder/tree/"):
            listed = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": name}
                for name in files
            ]
            self.answer(200, json.dumps(listed).encode())
        elif path.startswith("/api/models/owner/decoder"):
            siblings = [{"rfilename": name} for name in files]
            body = {"id": "owner/decoder", "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())
        elif path.startswith(f"/owner/decoder/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            self.answer(
                200, (self.folder / name).read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            )
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815


def test_a_model_of_the_hub_has_the_key_of_its_folder_and_needs_only_its_safetensors(tmp_path: Path) -> None:
    Models.folder = tmp_path / "hub"
    write_decoder(Models.folder, "qwen2")
    local = locate_initial_model(str(Models.folder))
    (Models.folder / "pytorch_model.bin").write_bytes(b"pickled")
    (Models.folder / "README.md").write_text("not needed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, "hf:owner/decoder@main"],
        env=os.environ
        | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["name"], found["digest"]) == ("owner/decoder@main", local.digest)
    assert found["files"] == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
