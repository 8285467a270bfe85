"""Uploads to a small server that answers as the hub does, and downloads of the same folder by revision."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from modeling.decoder.modeling_periln import PeriLNForCausalLM
from tests.modeling.decoder.tiny_decoder import tiny_decoder
from tests.train.conftest import Exported
from tests.train.export.hub_server import TOKEN, HubServer, Repository, hub
from train.config.errors import ConfigError
from train.export import __main__ as export
from train.export import formats
from train.export.push import Push, PushError, faults, upload

DOWNLOAD = """
import json, sys
from transformers import AutoModelForCausalLM
repo, revision, tokens = sys.argv[1], sys.argv[2] or None, json.loads(sys.argv[3])
import torch
model = AutoModelForCausalLM.from_pretrained(repo, revision=revision, trust_remote_code=True)
print(json.dumps(model(torch.tensor(tokens)).logits[:, -1].tolist()))
"""

INSPECT = """
import json, sys
from analysis.inspect.loading import load
from analysis.inspect.models import named
from train.data.text.tokenizer import load_tokenizer
name = named([sys.argv[1]])[0].name
loaded = load(name, trust=True)
assert loaded.max_length == 32 and len(load_tokenizer(name)) == len(loaded.tokenizer) == 300
import torch
print(json.dumps(loaded.model(torch.tensor(json.loads(sys.argv[2]))).logits[:, -1].tolist()))
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between attempts
        yield running


def folder_of(folder: Path) -> PeriLNForCausalLM:
    """Write a small model folder."""
    model = tiny_decoder()
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# tiny\n")
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_exported_uploaded_and_downloaded_by_revision(
    exported: Exported, server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(exported.run), str(tmp_path / "out"), "--no-figure", "--format", "periln"]
    assert export.main([*arguments, "--push", "owner/tiny", "--revision", "v1/a"]) == 0
    repository = server.repositories["owner/tiny"]
    assert repository.is_private
    assert repository.branches == {"main": {}, "v1/a": contents(tmp_path / "out")}
    assert 'from_pretrained("owner/tiny", ' in (tmp_path / "out/README.md").read_text()
    said = capsys.readouterr().out
    assert f"uploaded {len(contents(tmp_path / 'out'))} files (" in said
    assert " to owner/tiny, private, branch v1/a\n" in said
    assert "\n  model.safetensors  " in said
    assert TOKEN not in said
    about = [request for request in server.requests if "owner/tiny" in request]
    assert len(about) >= 4
    assert {server.tokens[request] for request in about} == {TOKEN}

    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN}
    environment.pop("HF_HUB_OFFLINE", None)
    tokens = [[1, 2, 3, 4]]
    model = PeriLNForCausalLM.from_pretrained(tmp_path / "out")
    expected = model(torch.tensor(tokens)).logits[:, -1].tolist()
    for place, command in (
        (tmp_path, ["-I", "-c", DOWNLOAD, "owner/tiny", "v1/a", json.dumps(tokens)]),
        (ROOT, ["-c", INSPECT, "owner/tiny@v1/a", json.dumps(tokens)]),
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_public_repository_is_public_only_when_asked_for(server: HubServer, tmp_path: Path) -> None:
    folder_of(tmp_path / "model")
    lines = upload(tmp_path / "model", Push("owner/open", public=True))
    assert not server.repositories["owner/open"].is_private
    assert lines[0].endswith(" to owner/open, public, branch main")
    stored = server.repositories["owner/open"].branches["main"]
    stored |= {
        "old-00001-of-2.safetensors": b"",
        "model.safetensors.index.json": b"",
        "old_periln.py": b"",
        "my.png": b"1",
    }
    upload(tmp_path / "model", Push("owner/open", public=True))  # again, over an earlier upload
    assert stored == contents(tmp_path / "model") | {"my.png": b"1"}
    before = dict(stored)
    (tmp_path / "model/README.md").write_text("changed")
    with pytest.raises(ConfigError, match="exists and is public; pass --public too"):
        upload(tmp_path / "model", Push("owner/open"))
    upload(tmp_path / "model", Push("owner/closed"))
    with pytest.raises(ConfigError, match="exists and is private; omit --public"):
        upload(tmp_path / "model", Push("owner/closed", public=True))
    assert server.repositories["owner/open"].branches["main"] == before


def test_a_refused_token_is_one_clear_message(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "model")
    before = contents(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", other := "hf_" + "b" * 34)
    with pytest.raises(PushError) as caught:
        upload(tmp_path / "model", Push("owner/tiny", revision="v1"))
    refused, remedy = str(caught.value).splitlines()
    assert refused == "the hub refused the token for owner/tiny (401); it must be valid and allowed to write there"
    folder = tmp_path / "model"
    assert remedy == (
        f"{folder} is complete; to upload it again: hf upload owner/tiny {folder} . --private --revision v1"
    )
    assert other not in str(caught.value)
    assert contents(folder) == before
    assert not server.repositories


def test_the_command_ends_with_1_and_leaves_the_folder(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = Path(__file__).parents[1] / "stored_run", tmp_path / "out"

    def exported(run: Path, out: Path, **_: object) -> formats.Exported:
        folder_of(out)
        return formats.Exported(3, False, ["exported as PeriLNForCausalLM"])

    monkeypatch.setattr(formats, "export", exported)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    assert export.main([str(run), str(out), "--push", "owner/tiny"]) == 1
    said = capsys.readouterr()
    assert said.out == f"step 3 of {run} -> {out}\nexported as PeriLNForCausalLM\n"
    assert [line.partition(" ")[0] for line in said.err.splitlines()] == ["the", str(out)]
    assert (out / "model.safetensors").is_file()
    server.repositories["owner/tiny"] = Repository(is_private=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert export.main([str(run), str(tmp_path / "again"), "--push", "owner/tiny"]) == 2
    assert "owner/tiny exists and is public; pass --public too" in capsys.readouterr().err
    assert server.repositories["owner/tiny"].branches == {"main": {}}


def test_no_message_contains_the_token(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret\x01")  # no header may contain it
    with pytest.raises(PushError) as caught:
        upload(tmp_path / "model", Push("owner/tiny"))
    assert "secret" not in str(caught.value)


def test_a_server_that_breaks_off_leaves_the_folder(server: HubServer, tmp_path: Path) -> None:
    folder_of(tmp_path / "model")
    before = contents(tmp_path / "model")
    server.breaks_off = True
    with pytest.raises(PushError, match=r"^the upload to owner/tiny failed: .+\n.* is complete; to upload it again: "):
        upload(tmp_path / "model", Push("owner/tiny"))
    assert contents(tmp_path / "model") == before
    assert server.repositories["owner/tiny"].branches == {"main": {}}
    server.breaks_off = False
    upload(tmp_path / "model", Push("owner/tiny"))
    assert server.repositories["owner/tiny"].branches["main"] == before


def test_a_server_that_is_not_there_is_one_clear_message(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "model")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(PushError, match=r"^the upload to owner/tiny failed: "):
            upload(tmp_path / "model", Push("owner/tiny"))


def test_what_cannot_succeed_is_refused_before_the_export(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(__file__).parents[1] / "stored_run"
    for arguments, fragment in (
        (["--public"], "--public: has no effect without --push REPO"),
        (["--revision", "v1"], "--revision: has no effect without --push REPO"),
        (["--push", "tiny"], "'tiny' is not the name of a repository; write OWNER/NAME"),
        (["--push", "owner/ti ny"], "is not the name of a repository"),
        (["--push", "owner/tiny", "--revision", "a b"], "'a b' cannot name a branch"),
    ):
        assert export.main([str(run), str(tmp_path / "out"), *arguments]) == 2
        assert fragment in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert faults(Push("owner/tiny")) == [
        "--push: there is no token; run `hf auth login`, or set HF_TOKEN to one that may write"
    ]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (fault,) = faults(Push("owner/tiny"))
    assert "HF_HUB_OFFLINE is set" in fault
    assert not (tmp_path / "out").exists()
    assert not server.requests
