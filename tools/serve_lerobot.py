"""Serves a policy that LeRobot trained, as OpenPI's servers speak, for `alohas2r evaluate --server`.

It runs in LeRobot's own environment; docs/datasets.md says how. It takes "state" [14], "images" with cam_left_wrist and
cam_right_wrist ([3, H, W] uint8) and "prompt", and answers with targets [steps, 14], for policies that predict a chunk
of actions from one observation (ACT, for one).
"""

from __future__ import annotations

import argparse
import http
import pathlib
import threading
import time
from collections.abc import Callable

import numpy as np
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from alohas2r.core.types import JsonObject, Untyped
from alohas2r.errors import ArtifactError
from alohas2r.policies.remote.messages import RESET, TIMING, decode, encode

MAX_BYTES = 1 << 24  # of a request
Infer = Callable[[JsonObject], np.ndarray]  # an observation -> actions [steps, 14]


class LeRobotPolicy:
    """A policy in a folder as LeRobot saves it ("pretrained_model").

    Args:
      folder: with config.json and weights.
      device: of the policy: cpu, cuda.
    """

    def __init__(self, folder: pathlib.Path, device: str = "cpu"):
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        self._torch: Untyped = torch
        config: Untyped = PreTrainedConfig.from_pretrained(folder)
        config.device = device
        self.kind = str(config.type)
        self.steps = int(config.n_action_steps)
        self._policy: Untyped = get_policy_class(config.type).from_pretrained(folder, config=config)
        self._policy.eval()
        self._before, self._after = make_pre_post_processors(config, pretrained_path=str(folder))

    def __call__(self, observation: JsonObject) -> np.ndarray:
        """Returns the actions [steps, 14] for an observation: as many as the policy was trained to carry out."""
        torch = self._torch
        asked: dict[str, object] = {
            "observation.state": torch.tensor(np.asarray(observation["state"], np.float32)),
            "task": str(observation.get("prompt", "")),
        }
        for name, picture in observation["images"].items():
            scaled = torch.tensor(np.asarray(picture)).float() / 255
            asked[f"observation.images.{name}"] = scaled
        with torch.inference_mode():
            chunk = self._after(self._policy.predict_action_chunk(self._before(asked)))
        return chunk[0, : self.steps].float().cpu().numpy()


def answer(infer: Infer, message: bytes) -> bytes | str:
    """Returns the answer to a request, or as text what is wrong with it."""
    started = time.monotonic()
    try:
        observation = decode(message)
        observation.pop(RESET, None)  # nothing is remembered from one chunk to the next
        actions = infer(observation)
    except (ArtifactError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    took = 1000 * (time.monotonic() - started)
    return encode({"actions": actions.astype(np.float32), TIMING: {"infer_ms": took}})


def make_server(infer: Infer, said: JsonObject, host: str, port: int) -> Server:
    """Returns a server that answers any number of connections, one request at a time.

    Args:
      infer: gives the actions. said: the first frame of each connection. host, port: where it listens.
    """
    one_at_a_time = threading.Lock()

    def handle(connection: ServerConnection) -> None:
        connection.send(encode(said))
        for message in connection:
            if isinstance(message, bytes):
                with one_at_a_time:
                    reply = answer(infer, message)
                connection.send(reply)

    def health(connection: ServerConnection, request: Request) -> Response | None:
        healthy = request.path == "/healthz"
        return connection.respond(http.HTTPStatus.OK, "OK\n") if healthy else None

    return serve(handle, host, port, compression=None, max_size=MAX_BYTES, process_request=health)


def main() -> None:
    """Serves the policy that the command line names, until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("policy", type=pathlib.Path, help="LeRobot's folder pretrained_model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    policy = LeRobotPolicy(options.policy, options.device)
    said: JsonObject = {"policy": f"lerobot {policy.kind}", "action_horizon": policy.steps}
    with make_server(policy, said, options.host, options.port) as server:
        print(f"Serving {options.policy} on ws://{options.host}:{options.port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.shutdown()


if __name__ == "__main__":
    main()
