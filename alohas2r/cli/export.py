"""Commands that turn a policy into one file, serve it, and say how fast it is."""

from __future__ import annotations

import os
import pathlib
from typing import Annotated

import typer

from alohas2r.cli.app import Json, Seed, command, library, policy_folder
from alohas2r.cli.display import announcing, show, working
from alohas2r.cli.options import API_KEY, Host
from alohas2r.errors import ArtifactError, ConfigError

File = Annotated[
    pathlib.Path,
    typer.Argument(help="An exported policy, such as policy.onnx.", show_default=False),
]


@command("export", "Deploy")
def export_policy(
    policy: Annotated[
        str, typer.Argument(help="Folder of a policy, such as params/pick.", show_default=False)
    ],
    out: Annotated[pathlib.Path, typer.Option(help="The file to write (.onnx).")],
    opset: Annotated[
        int, typer.Option(help="Version of the operators; a lower one suits an older onnxruntime.")
    ] = 17,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Store kernels as float16: half the size, same speed.")
    ] = False,
    samples: Annotated[
        int, typer.Option(min=8, help="How many inputs to compare onnxruntime and JAX on.")
    ] = 256,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Export a policy to one ONNX file that a robot's computer runs without JAX.

    Scaling, normalization, networks and limits are all in the file. It is written only if it gives
    the policy's actions on many inputs, also after each weight and each input has been disturbed;
    recorded observations in it are checked again wherever it is loaded.
    """
    folder = policy_folder(policy)  # before the folder of `out` is made, which may have its name
    library("rendering.video").check_path(out, ".onnx")
    exporter = library("policies.onnx.export")
    with working("Exporting"):
        result = exporter.export(
            folder, out, opset=opset, fp16=fp16, verify_samples=samples, seed=seed
        )
    show(result, f"{policy} as one file", as_json)


@command("serve", "Deploy")
def serve(
    policy: File,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(help=f"What clients must send; safer in the environment: {API_KEY}."),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(help="A longer request closes the connection.")
    ] = 1_048_576,
    max_clients: Annotated[
        int, typer.Option(help="So many connections at once; more are refused.")
    ] = 32,
    as_json: Json = False,
) -> None:
    """Serve an exported policy to robots and programs over a websocket, until Ctrl-C.

    Speaks the protocol of OpenPI, so its client drives this policy. Each connection has a memory of
    its own; GET /healthz says whether the server is there. Afterwards: how much there was to do.
    """
    check_file(policy)
    server = library("policies.remote.server")
    key = os.environ.get(API_KEY, "") if api_key is None else api_key
    settings = server.ServerConfig(host, port, key, max_bytes, max_clients)
    result = server.serve(policy, settings, announcing(f"Serving {policy}", key))
    show(result, f"Served {policy}", as_json)


def check_file(path: pathlib.Path) -> None:
    """Makes sure that there is a file, and says what to do with the folder of a policy.

    Raises:
      ConfigError: it is a folder. ArtifactError: there is nothing.
    """
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder; alohas2r export {path} --out policy.onnx makes the file."
        )
    if not path.is_file():
        raise ArtifactError(f"There is no {path}; alohas2r export makes one.")
