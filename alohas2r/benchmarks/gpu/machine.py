"""What there is to compute on."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping

from alohas2r.benchmarks.gpu.job import Job
from alohas2r.core import machine as core_machine
from alohas2r.errors import BackendUnavailable

PACKAGES = (
    *(
        "jax",
        "jaxlib",
        "jax-cuda12-plugin",
        "jax-cuda13-plugin",
        "warp-lang",
        "mujoco",
        "mujoco-mjx",
    ),
    *("brax", "flax", "optax", "numpy", "onnxruntime"),
)


def device(job: Job) -> None:
    """Notes what there is to compute on.

    Raises:
      BackendUnavailable: no GPU that both JAX and Warp can use, unless all is tiny and on the CPU anyway.
    """
    import jax
    import warp as wp

    from alohas2r.deployment import doctor

    first = jax.devices()[0]
    cuda = wp.get_cuda_device_count()
    (line,) = doctor.gpu()
    driver = line.text.rpartition(",")[2].strip() if first.platform == "gpu" else None
    here = core_machine.describe_machine()
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    published: Mapping[str, float] = {}
    with contextlib.suppress(ImportError):  # without the extra "export"
        from alohas2r.learning.pipeline import PUBLISHED_S as published
    job.note(
        platform=first.platform,
        name=first.device_kind if first.platform == "gpu" else here["processor"],
        driver=driver,
        warp=str(wp.get_device()),
        cpu=here["processor"],
        cores=here["cores"],
        python=here["python"],
        packages=versions,
        published_s=dict(published),
    )
    if not job.tiny and (first.platform != "gpu" or not cuda):
        raise BackendUnavailable(
            f"No NVIDIA GPU that both JAX and Warp can use (JAX: {first.platform}, Warp: {wp.get_device()}): install"
            " 'alohas2r[warp]' and 'jax[cuda13]'; --tiny runs everything small, on the CPU."
        )
