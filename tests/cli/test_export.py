"""The commands export, serve and bench-policy, and evaluate on an exported file."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("jax2onnx")
pytest.importorskip("websockets")

import onnx
import onnx_cases

from alohas2r import cli
from alohas2r.cli import app
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.remote.client import PolicyClient

pytestmark = pytest.mark.compiles
ROOT = pathlib.Path(cli.__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """An artifact and its file."""
    return onnx_cases.exported("staged", tmp_path_factory)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = app.main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["export", "serve", "bench-policy"])
def test_help_says_what_each_option_is_for(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    rows = [line.split("│")[1] for line in out.splitlines() if "--" in line and "│" in line]
    assert len(rows) >= 5
    for row in rows:
        assert len(row.split()) >= 3
    assert command in run(capsys, "--help")[1]


def test_export_writes_a_file_that_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    artifact = onnx_cases.save_pick(tmp_path / "pick")
    file = tmp_path / "new" / "policy.onnx"
    arguments = ("export", artifact, "--out", file, "--opset", 18, "--fp16", "--samples", 16)
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["opset"], result["fp16"], result["path"]) == (18, True, str(file))
    assert result["bytes"] == file.stat().st_size
    assert result["verified"]["samples"] == 16
    assert OnnxPolicy.load(file).hash == result["policy"]
    assert onnx.load(str(file)).opset_import[0].version == 18
    code, out, _ = run(capsys, "export", artifact, "--out", file, "--samples", 8)
    assert code == 0
    assert "verified: max difference" in out
    assert OnnxPolicy.load(file).export["opset"] == 17


@pytest.mark.long
def test_a_shipped_policy_is_exported_into_a_new_folder_of_its_own_name(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = pathlib.Path("params/pick/policy.onnx")
    code, out, err = run(capsys, "export", "params/pick", "--out", file, "--samples", 8, "--json")
    assert code == 0, err
    assert OnnxPolicy.load(tmp_path / file).hash == json.loads(out)["policy"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export", "POLICY"], 2, ["'--out'", "export --help"]),
        (["export", "POLICY", "--out", "policy.pb"], 1, ["must end in .onnx"]),
        (["export", "POLICY", "--out", "/dev/null/policy.onnx"], 1, ["/dev/null"]),
        (["export", "POLICY", "--out", "x.onnx", "--opset", "7"], 1, ["opset = 7", "13.."]),
        (["export", "POLICY", "--out", "x.onnx", "--opset", "new"], 2, ["--opset", "integer"]),
        (["export", "POLICY", "--out", "x.onnx", "--samples", "1"], 2, ["--samples"]),
        (["export", "nowhere", "--out", "x.onnx"], 1, ["nowhere holds no policy"]),
        (["export", "FILE", "--out", "x.onnx"], 1, ["holds no policy"]),
        (["serve"], 2, ["Missing argument 'policy'", "serve --help"]),
        (["serve", "nowhere.onnx"], 1, ["There is no nowhere.onnx", "alohas2r export"]),
        (["serve", "POLICY"], 1, ["is a folder", "alohas2r export"]),
        (["serve", "JUNK"], 1, ["junk.onnx is cut off"]),
        (["serve", "FILE", "--port", "70000"], 2, ["--port", "65535"]),
        (["serve", "FILE", "--port", "TAKEN"], 1, ["Cannot listen", "choose another"]),
        (["serve", "FILE", "--host", "203.0.113.1", "--port", "0"], 1, ["Cannot listen"]),
        (["serve", "FILE", "--max-bytes", "10"], 1, ["max_message_bytes = 10", "1024.."]),
        (["serve", "FILE", "--max-clients", "0"], 1, ["max_clients = 0"]),
        (["serve", "FILE", "--api-key", "schlüssel"], 1, ["ASCII"]),
        (["bench-policy", "nowhere.onnx"], 1, ["There is no nowhere.onnx"]),
        (["bench-policy", "JUNK"], 1, ["junk.onnx is cut off"]),
        (["bench-policy", "FILE", "--acts", "0"], 2, ["--acts"]),
        (["bench-policy", "FILE", "--rate", "0"], 1, ["rate_hz = 0"]),
        (["evaluate", "nowhere.onnx"], 1, ["nowhere.onnx could not be read"]),
        (["evaluate", "JUNK"], 1, ["junk.onnx is cut off"]),
        (["evaluate", "FILE"], 1, ["expects other observations"]),
    ],
)
def test_bad_input_gets_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    staged: tuple[pathlib.Path, pathlib.Path],
    arguments: list[str],
    code: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(staged[1].read_bytes()[:-1000])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {
            "POLICY": str(staged[0]),
            "FILE": str(staged[1]),
            "JUNK": str(junk),
            "TAKEN": str(taken.getsockname()[1]),
        }
        found, out, err = run(capsys, *(places.get(one, one) for one in arguments))
    assert found == code
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_when_it_is_ready_and_ends_gracefully(
    staged: tuple[pathlib.Path, pathlib.Path], number: signal.Signals
) -> None:
    file = staged[1]
    command = [sys.executable, "-m", "alohas2r.cli", "serve", str(file), "--port", "0", "--json"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "ALOHAS2R_API_KEY": "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith(f"Serving {file} on ws://127.0.0.1:"), line
            assert "with an API key; Ctrl-C" in line
            address = line.split("ws://")[1].split(",")[0]
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
                assert answer.status == 200
            local = OnnxPolicy.load(file)
            with PolicyClient(address, api_key="secret", timeout_s=20) as client:
                for observation in local.examples()[:3]:
                    assert (client.act(observation) == local.act(observation)).all()
                process.send_signal(number)  # while the client is there
                out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out) == {"connections": 1, "refused": 0, "requests": 3, "errors": 0}


def test_bench_policy_shows_all_latencies(
    capsys: pytest.CaptureFixture[str], staged: tuple[pathlib.Path, pathlib.Path]
) -> None:
    few = ("--acts", 12, "--seconds", 0.2, "--rate", 100)
    code, out, err = run(capsys, "bench-policy", staged[1], *few, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["jax"] is None
    for name in ("onnx", "server"):
        assert (result[name]["flat_out"]["count"], result[name]["paced"]["count"]) == (12, 20)
        assert 0 < result[name]["paced"]["p50_ms"] <= result[name]["paced"]["p99_ms"]
    code, out, err = run(capsys, "bench-policy", staged[1], *few, "--no-jax")
    assert code == 0, err
    assert "onnx: flat out: p99 ms" in out
