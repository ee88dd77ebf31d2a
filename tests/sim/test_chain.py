from __future__ import annotations

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from alohas2r.sim import scene
from alohas2r.sim.chain import JOINTS, Chain, jacobian


@pytest.mark.parametrize("name", ["pick", "insert", "insert_contact"])
def test_the_jacobian_is_that_of_mujoco(name: str) -> None:
    loaded = scene.load_physics(name)
    model = loaded.model
    data = mujoco.MjData(model)
    draw = np.random.default_rng(0)
    for arm in loaded.arms:
        chain = Chain.of(loaded, arm)
        gripper = model.jnt_bodyid[np.flatnonzero(model.jnt_qposadr == arm.qpos[JOINTS - 1])[0]]
        for _ in range(3):
            data.qpos[:] = loaded.home_qpos
            data.qpos[arm.qpos[:JOINTS]] += draw.normal(scale=0.4, size=JOINTS)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            point = data.xpos[gripper] + draw.normal(scale=0.1, size=3)
            moved, turned = np.zeros((3, model.nv)), np.zeros((3, model.nv))
            mujoco.mj_jac(model, data, moved, turned, point, gripper)
            expected = np.concatenate([moved, turned])[:, arm.qvel[:JOINTS]]
            hinges = chain.hinges(jnp.asarray(data.qpos[arm.qpos[:JOINTS]]))
            np.testing.assert_allclose(jacobian(*hinges, jnp.asarray(point)), expected, atol=1e-5)
