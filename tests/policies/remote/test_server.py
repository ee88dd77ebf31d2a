"""The policy server: its protocol, driven by the published client too, and what it withstands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pip_cases
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("jax2onnx")
pytest.importorskip("msgpack")
pytest.importorskip("websockets")

import msgpack
import onnx_cases
import websockets
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import serve as sync_serve

from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.remote import messages, server
from alohas2r.policies.remote.client import PolicyClient
from alohas2r.policies.remote.server import ServerConfig

pytestmark = pytest.mark.alone

ROOT = pathlib.Path(server.__file__).resolve().parents[3]

# Serves in a process of its own; the last line of output is what `serve` returned.
SERVE = """
import json, sys
from alohas2r.policies.remote import server
found = server.serve(
    sys.argv[1],
    server.ServerConfig(port=0, **json.loads(sys.argv[2])),
    ready=lambda host, port: print(port, flush=True),
)
heavy = [name for name in ("jax", "flax", "brax", "mujoco", "onnx") if name in sys.modules]
print(json.dumps({**found, "heavy": heavy}))
"""


class Running:
    """A server process."""

    def __init__(self, file: pathlib.Path, settings: Mapping[str, Any]) -> None:
        command = [sys.executable, "-c", SERVE, str(file), json.dumps(settings)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline() or 0)
        assert self.port, self.process.communicate()[1]
        self.url = f"ws://127.0.0.1:{self.port}"

    def memory(self) -> int:
        """Returns the resident memory in bytes."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """Ends it with a signal and returns what it printed."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        assert err == ""
        return json.loads(out)


@contextlib.contextmanager
def running(file: pathlib.Path, **settings: Any) -> Iterator[Running]:
    found = Running(file, settings)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
            found.process.communicate()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return onnx_cases.exported("staged", tmp_path_factory)[1]


@pytest.fixture(scope="module")
def served(file: pathlib.Path) -> Iterator[Running]:
    with running(file) as found:
        yield found
        found.stop()


@contextlib.contextmanager
def open_raw(running: Running, **settings: Any) -> Iterator[ClientConnection]:
    with connect(running.url, compression=None, max_size=None, **settings) as raw:
        raw.recv()  # the metadata
        yield raw


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20)
ARRAYS = arrays.arrays(
    st.sampled_from(["?", "u1", "i2", "<i8", ">f4", "f2", "f4", "f8"]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(
    st.recursive(
        SCALARS | st.floats(allow_nan=False) | ARRAYS,
        lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=10,
    )
)
def test_messages_survive(message: Any) -> None:
    def same(one: Any, other: Any) -> None:
        assert type(one) is type(other)
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            for key in one:
                same(one[key], other[key])
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other

    same(messages.decode(messages.encode(message)), message)


@pytest.mark.parametrize("kind", ["?", "u1", "i8", "f2", "f4"])  # f8 is a Python float
def test_numbers_of_numpy_survive(kind: str) -> None:
    value = np.dtype(kind).type(1)
    found = messages.decode(messages.encode({"value": value}))["value"]
    assert found == value
    assert found.dtype == value.dtype


def test_the_format_of_arrays_is_that_of_openpi() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    wire = {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": "<f4", b"shape": (2, 3)}
    np.testing.assert_array_equal(messages.decode(msgpack.packb({"a": wire}) or b"")["a"], value)
    assert msgpack.unpackb(messages.encode(value)) == {**wire, b"shape": [2, 3]}
    wire = {b"__npgeneric__": True, b"data": 3, b"dtype": "|u1"}
    assert msgpack.unpackb(messages.encode(np.uint8(3))) == wire
    for wrong in (np.array([None]), np.array([1j]), np.zeros(1, "M8[s]"), object()):
        with pytest.raises(TypeError):
            messages.encode({"a": wrong})


def array(**changes: Any) -> bytes:
    """Packs an array with something about it changed."""
    wire = {"__ndarray__": True, "data": bytes(12), "dtype": "<f4", "shape": [3]}
    fields = {name.encode(): value for name, value in {**wire, **changes}.items()}
    return msgpack.packb({"observation": fields}) or b""


IMPOSSIBLE = [
    array(shape=[4]),
    array(shape=[2**31, 2**31]),
    array(shape=[-1, -3]),
    array(shape=[3.0]),
    array(shape=[True, 3]),
    array(shape=[1] * 40 + [3]),
    array(shape=None),
    array(shape={}),
    array(dtype="|O"),
    array(dtype="O"),
    array(dtype="<c8"),
    array(dtype="V12"),
    array(dtype="<U3"),
    array(dtype="f4,f4"),
    array(dtype="S"),
    array(dtype=[["a", "<f4"]]),
    array(dtype=None),
    array(dtype="<f4\x00"),
    array(data="text"),
    array(data=None),
    array(data=[0] * 12),
    msgpack.packb({"a": {b"__npgeneric__": True, b"data": 10**10, b"dtype": "|u1"}}) or b"",
    msgpack.packb({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}}) or b"",
    msgpack.packb({"a": {b"__npgeneric__": True, b"data": 1.0, b"dtype": "M8[s]"}}) or b"",
    b"",
    b"\xc1",
    b"\xa5hell",
    b"\xa2\xff\xff",
    b"\x81\x01\x02",
    b"\x81\x90\x02",
    array() + b"\x00",
    array()[:-1],
    msgpack.packb(msgpack.ExtType(5, b"x")) or b"",
    msgpack.packb(msgpack.Timestamp(1)) or b"",
    msgpack.packb("x" * 2000) or b"",
    msgpack.packb(list(range(100))) or b"",
    msgpack.packb({str(index): 0 for index in range(100)}) or b"",
]
# Short messages that claim to be large, or unfold into many objects.
BOMBS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x00",
    b"\x91" * (1 << 20),
    b"\x81\xa1a" * (1 << 18),
    b"\xdd\x00\x0f\x00\x00" * 1024 + b"\xc0" * (1 << 19),
    (b"\xdc\x00\x40" + b"\x90" * 63) * 10_000,
    b"\xdc\x00\x40" + (b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x90" * 64) * 64) * 64,
    b"\x80" * (1 << 20),
]


@pytest.mark.parametrize("message", [*IMPOSSIBLE, *BOMBS])
def test_decoding_what_is_impossible_is_refused_cheaply(message: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="message"):
        messages.decode(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(message) + 300_000


@given(st.binary(max_size=200), st.integers(0, 10**6), st.integers(0, 255))
def test_decoding_anything_gives_an_object_or_an_artifact_error(
    noise: bytes, place: int, value: int
) -> None:
    good = bytearray(array())
    good[place % len(good)] = value
    for message in (noise, bytes(good)):
        with contextlib.suppress(ArtifactError):
            messages.decode(message)


def test_a_client_gets_the_policys_actions(served: Running, file: pathlib.Path) -> None:
    local = OnnxPolicy.load(file)
    with PolicyClient(served.url) as client:
        assert client.metadata["policy"] == local.hash
        assert client.interface == local.interface
        assert client.metadata["actions"]["joints"] == local.action["joints"]
        for observation in local.examples():
            np.testing.assert_array_equal(client.act(observation), local.act(observation))
            assert 0 < client.timing["infer_ms"] < 1000
        assert client.timing["prev_total_ms"] >= 0


def test_each_connection_has_a_memory_of_its_own(served: Running, file: pathlib.Path) -> None:
    local = OnnxPolicy.load(file)
    examples = local.examples()
    with PolicyClient(served.url) as one, PolicyClient(f"127.0.0.1:{served.port}") as other:
        for observation in examples[:5]:
            one.act(observation)
        first = local.act(examples[7])
        np.testing.assert_array_equal(other.act(examples[7]), first)
        assert np.abs(one.act(examples[7]) - first).max() > 1e-4
        one.reset()
        with pytest.raises(ArtifactError):  # what is refused resets nothing, and the wish stays
            one.act({})
        np.testing.assert_array_equal(one.act(examples[7]), first)


def test_an_error_frame_says_what_was_wrong_and_the_connection_goes_on(
    served: Running, file: pathlib.Path
) -> None:
    local = OnnxPolicy.load(file)
    examples = local.examples()
    with open_raw(served) as raw:
        for wrong, words in (
            (messages.encode({**examples[0], "observation": np.zeros(3)}), "float64 [3]"),
            (messages.encode({"observation": 1.0}), "lacks switched"),
            (messages.encode({**examples[0], "reset": 1}), "'reset' must be true or false"),
            (messages.encode([1]), "not list"),
            ("text", "not str"),
            (b"\xc1", "msgpack"),
        ):
            raw.send(wrong)
            answer = raw.recv()
            assert isinstance(answer, str)
            assert answer.startswith("alohas2r.errors.ArtifactError: ")
            assert words in answer
        raw.send(messages.encode(examples[0]))
        answer = raw.recv()
        assert isinstance(answer, bytes)
        np.testing.assert_array_equal(messages.decode(answer)["actions"][0], local.act(examples[0]))


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health(served: Running) -> None:
    assert fetch(f"http://127.0.0.1:{served.port}/healthz") == (200, "OK\n")
    assert fetch(f"http://127.0.0.1:{served.port}/")[0] == 426  # this is a websocket


def test_limits_key_and_goodbye(file: pathlib.Path) -> None:
    settings = {"api_key": "open sesame", "max_clients": 2, "max_message_bytes": 2048}
    with running(file, **settings) as found:
        assert fetch(f"http://127.0.0.1:{found.port}/healthz")[0] == 200
        for key in ("", "open", "open sesame!", "öffne"):
            with pytest.raises((BackendUnavailable, UnicodeEncodeError)):
                PolicyClient(found.url, api_key=key)
        example = OnnxPolicy.load(file).examples()[0]
        with PolicyClient(found.url, api_key="open sesame") as client:
            headers = {"Authorization": "Api-Key open sesame"}
            with open_raw(found, additional_headers=headers) as raw:
                with pytest.raises(BackendUnavailable, match="503"):
                    PolicyClient(found.url, api_key="open sesame")
                raw.send(bytes(2049))
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    raw.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1009  # message too big
            assert client.act(example).shape == (14,)
            counts = found.stop()
            with pytest.raises(BackendUnavailable, match="1001"):  # going away
                client.act(example)
        assert counts["connections"] == 2
        assert counts["refused"] >= 4
        assert counts["requests"] == 1
        assert counts["heavy"] == []


def test_a_server_within_a_program(file: pathlib.Path) -> None:
    local = OnnxPolicy.load(file)
    example, settings = local.examples()[0], ServerConfig(port=0, api_key="key", max_clients=1)
    found, started, control = server.PolicyServer(local, settings), threading.Event(), []

    async def main() -> None:
        stop = asyncio.Event()
        control.append((asyncio.get_running_loop(), stop))
        await found.run(stop, lambda _: started.set())

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(10)
    url = f"127.0.0.1:{found.port}"
    assert fetch(f"http://{url}/healthz")[0] == 200
    with pytest.raises(BackendUnavailable, match="401"):
        PolicyClient(url)
    with PolicyClient(url, api_key="key") as client:
        with pytest.raises(BackendUnavailable, match="503"):
            PolicyClient(url, api_key="key")
        with pytest.raises(ArtifactError, match="lacks"):
            client.act({})
        np.testing.assert_array_equal(client.act(example), local.fork().act(example))
        loop, stop = control[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        with pytest.raises(BackendUnavailable, match="is gone"):
            client.act(example)
    assert not thread.is_alive()
    assert found.counts == {"connections": 1, "refused": 2, "requests": 2, "errors": 1}


def test_ctrl_c_ends_it_gracefully(file: pathlib.Path) -> None:
    with running(file) as found:
        assert found.stop(signal.SIGINT)["errors"] == 0


def test_what_cannot_be_served(served: Running, file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendUnavailable, match=f"port {served.port}: "):
        server.serve(file, ServerConfig(port=served.port))
    with pytest.raises(BackendUnavailable, match="Cannot listen on"):
        server.serve(file, ServerConfig(host="203.0.113.1", port=0))
    with pytest.raises(ArtifactError, match="could not be read"):
        server.serve(tmp_path / "nowhere.onnx")
    for port, size in ((-1, 1024), (1 << 16, 1024), (0, 0)):
        with pytest.raises(ConfigError):
            ServerConfig(port=port, max_message_bytes=size)


def test_a_client_notices_a_server_that_is_gone_slow_or_none() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BackendUnavailable, match="No policy server"):
        PolicyClient(f"127.0.0.1:{port}")
    greetings = {"/greeting": "hello", "/interface": messages.encode({"interface": {"inputs": 1}})}
    answers: dict[str, Any] = {"/text": "hello", "/junk": b"\xc1", "/slow": None}

    def talk(connection: Any) -> None:
        path = connection.request.path
        connection.send(greetings.get(path, messages.encode({})))
        for _ in connection:
            if answers[path] is not None:
                connection.send(answers[path])

    with sync_serve(talk, "127.0.0.1", 0) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{other.socket.getsockname()[1]}"
        for path, words in (("/greeting", "no metadata"), ("/interface", "inputs")):
            with pytest.raises(BackendUnavailable, match=words):
                PolicyClient(url + path)
        for path in ("/text", "/junk"):
            with PolicyClient(url + path) as client:
                assert client.interface is None
                with pytest.raises(ArtifactError):
                    client.act({})
        with PolicyClient(f"{url}/slow", timeout_s=0.05) as client:
            with pytest.raises(BackendUnavailable, match=r"within 0\.05 s"):
                client.act({})
            with pytest.raises(BackendUnavailable, match="is gone"):  # no late answers
                client.act({})
        other.shutdown()
        thread.join()


# Runs in the other environment, where neither this package nor NumPy 2 is.
OPENPI = """
import sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

assert np.__version__.startswith("1."), np.__version__
port, key, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
client = WebsocketClientPolicy("127.0.0.1", port, api_key=key)
metadata = client.get_server_metadata()
examples = dict(np.load(path))
policy = ActionChunkBroker(client, action_horizon=metadata["action_horizon"])
for observation, switched, wanted in zip(*(examples[k] for k in ("observation", "switched", "actions"))):
    found = policy.infer({"observation": observation, "switched": switched})
    assert found["actions"].shape == (len(metadata["actions"]["joints"]),), found
    np.testing.assert_array_equal(found["actions"], wanted)
    assert found["server_timing"]["infer_ms"] > 0
try:
    client.infer({"observation": examples["observation"][0][:3], "switched": True})
except RuntimeError as error:
    assert "'observation' must be float32 [25], not float32 [3]" in str(error), error
else:
    raise AssertionError("no error")
print("driven", len(examples["actions"]), metadata["policy"])
"""


@pytest.fixture(scope="session")
def openpi_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that holds the unmodified client, made once for all tests."""
    folder = tmp_path_factory.mktemp("openpi") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    # It does not declare the last.
    pip_cases.install("openpi-client", "numpy<2", "typing_extensions", python=python)
    return python


def test_the_published_client_drives_it(
    file: pathlib.Path, openpi_python: str, tmp_path: pathlib.Path
) -> None:
    local = OnnxPolicy.load(file)
    examples = local.examples()
    actions = [local.act(observation) for observation in examples]
    observations = np.stack([one["observation"] for one in examples])
    switched = np.stack([one["switched"] for one in examples])
    path = tmp_path / "examples.npz"
    np.savez(path, observation=observations, switched=switched, actions=np.stack(actions))
    with running(file, api_key="key") as found:
        arguments = [str(found.port), "key", str(path)]
        driven = subprocess.run(
            [openpi_python, "-I", "-c", OPENPI, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert driven.returncode == 0, driven.stderr
        assert driven.stdout.split() == ["driven", str(len(examples)), local.hash]
        assert found.stop()["requests"] == len(examples) + 1


def malformed(draw: np.random.Generator, good: Mapping[str, np.ndarray]) -> bytes | str:
    """Returns a request that no server should answer with an action."""
    packed = messages.encode(good)
    match int(draw.integers(12)):
        case 0:  # cut off
            return packed[: int(draw.integers(len(packed)))]
        case 1:  # too long
            return packed + draw.bytes(int(draw.integers(1, 50)))
        case 2:  # no msgpack
            return b"\xc1" + draw.bytes(int(draw.integers(200)))
        case 3:  # text
            return draw.bytes(20).hex()
        case 4:  # a key is missing
            names = list(good)
            names.pop(int(draw.integers(len(names))))
            return messages.encode({name: good[name] for name in names})
        case 5:  # a key too many
            return messages.encode({**good, draw.bytes(4).hex(): draw.normal(size=3)})
        case 6:  # another shape
            shape = [(24,), (26,), (1, 25), (25, 1), (5, 5), (0,), ()][int(draw.integers(7))]
            return messages.encode({**good, "observation": draw.normal(size=shape)})
        case 7:  # another type
            kind = ["i4", "u1", "?", "i8"][int(draw.integers(4))]
            return messages.encode({**good, "observation": np.zeros(25, kind)})
        case 8:  # not finite
            values = np.array(good["observation"])
            values[int(draw.integers(25))] = [np.nan, np.inf, -np.inf][int(draw.integers(3))]
            return messages.encode({**good, "observation": values})
        case 9:  # no array at all
            wrong: Any = [None, "x", 1, 2.5, [], {}, [1.0, "a"], {"a": {"b": 1}}]
            return messages.encode({**good, "observation": wrong[int(draw.integers(len(wrong)))]})
        case 10:
            return IMPOSSIBLE[int(draw.integers(len(IMPOSSIBLE)))]
        case _:  # bombs; the largest ones a little less often
            index = int(draw.integers(len(BOMBS)))
            return BOMBS[index if draw.random() < 0.1 else index % 5]


def half_a_frame(port: int, draw: np.random.Generator) -> None:
    """Shakes hands by hand, sends a part of a frame or one of an impossible kind, and hangs up."""
    request = (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        if draw.random() < 0.2:
            raw.sendall(request[: int(draw.integers(len(request)))] + draw.bytes(10))
            return
        raw.sendall(request)
        raw.recv(4096)
        frames = (
            b"\x82\xfe\x10\x00" + draw.bytes(100),  # 4096 bytes, of which 100 come
            b"\x82\xff\x7f" + b"\xff" * 7 + draw.bytes(4),  # 2^63 bytes
            b"\xf7\xff" + draw.bytes(50),  # reserved bits and opcode
            b"\x02\xfe\x10\x00" + draw.bytes(4100),  # a fragment without an end
        )
        raw.sendall(frames[int(draw.integers(len(frames)))])


def test_ten_thousand_malformed_requests(file: pathlib.Path) -> None:
    """Each gets an error frame or a closed connection; a good client beside is always served."""
    local = OnnxPolicy.load(file)
    examples = local.examples()
    draw = np.random.default_rng(0)
    stop, served, failures = threading.Event(), [], []

    def be_good(url: str) -> None:
        policy, step = local.fork(), 0
        with PolicyClient(url, timeout_s=20) as client:
            while not stop.is_set():
                observation = examples[step % len(examples)]
                started = time.perf_counter()
                found = client.act(observation)
                served.append(time.perf_counter() - started)
                if not np.array_equal(found, policy.act(observation)):
                    failures.append(step)
                step += 1
                time.sleep(0.02)

    total, answered, closed, frames = 10_000, 0, 0, 0
    memory = []
    with running(file) as found:
        thread = threading.Thread(target=be_good, args=(found.url,))
        thread.start()
        connections = contextlib.ExitStack()
        raw = connections.enter_context(open_raw(found))
        try:
            for index in range(total):
                if index % (total // 10) == 0:
                    memory.append(found.memory())
                if draw.random() < 0.02:
                    half_a_frame(found.port, draw)
                    frames += 1
                    continue
                too_long = draw.random() < 0.01
                request = bytes(1 + (1 << 20)) if too_long else malformed(draw, examples[0])
                try:
                    raw.send(request)
                    answer = raw.recv(timeout=20)
                except websockets.ConnectionClosed:
                    assert too_long
                    closed += 1
                    connections.close()
                    raw = connections.enter_context(open_raw(found))
                else:
                    assert isinstance(answer, str), request
                    answered += 1
            memory.append(found.memory())
        finally:
            connections.close()
            stop.set()
            thread.join()
        counts = found.stop()
    assert answered + closed + frames == total
    assert answered > 9000
    assert closed > 50
    assert frames > 100
    assert counts["errors"] == answered
    assert counts["requests"] == answered + len(served)
    assert not failures
    assert len(served) > 20
    assert max(served) < 5
    # Flat: after the first tenth, in which everything has happened once.
    assert max(memory[1:]) - memory[1] < 8e6, memory
