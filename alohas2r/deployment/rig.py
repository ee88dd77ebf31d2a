"""Arms, cameras and time for a run: what stands behind `--robot aloha|aloha-ros|emulated|sim`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alohas2r.config import check
from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, SIDES
from alohas2r.embodiment.robots import REAL, ROBOTS, RobotName
from alohas2r.errors import RobotFault
from alohas2r.rendering import stereo
from alohas2r.rendering.protocol import CAMERAS
from alohas2r.robots import simulated
from alohas2r.robots.base import Camera, Robot
from alohas2r.robots.dynamixel.arm import NO_OFFSETS, DynamixelConfig, GripperLinkage
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.emulator.cameras import EmulatedCameras
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.hidden import HiddenConfig
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.interbotix import InterbotixConfig, InterbotixRobot
from alohas2r.robots.realsense.camera import RealSenseCamera
from alohas2r.robots.realsense.config import STREAM, RealSenseConfig, find_cameras
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, StubCamera
from alohas2r.robots.wrist_camera import LooksRenderer, Renderer, SensorRenderer
from alohas2r.sim import changed, scene
from alohas2r.sim.changed import NOMINAL, WorldParams

if TYPE_CHECKING:
    from alohas2r.deployment.trials import Trials

# An emulator is a Python process beside this one: it answers later than servos do, and in a stepped
# world nothing is late.
EMULATED_REPLY_S = 0.03
STEPPED_REPLY_S = 0.5


@dataclasses.dataclass(frozen=True)
class RigConfig:
    """Which arms and cameras.

    Attributes:
      robot: "aloha": two arms on their buses; "aloha-ros": through Interbotix' ROS nodes; "emulated":
        two emulated buses with physics behind them; "sim": simulated arms without a bus.
      stepped: whether simulated time stands still between control steps.
      ports: serial ports of the left and the right arm.
      serials: serial numbers of the left and the right camera.
      recordings: recordings (.db3) of the left and the right camera, instead of cameras.
      stub_cameras: pictures that cost nothing and show nothing, to time the loop alone.
      size: side of the pictures that the policy takes (pixels).
      fovy_deg: their field of view.
      depth_cutoff: depth beyond which they show nothing (m).
      stereo: whether the pictures of the cameras' right imagers are taken as well.
      exposure_us: fixed exposure of the cameras; None: automatic.
      gripper_closed_rad: servo angles at which the left and the right gripper's fingers just touch;
        a single number holds for both, None: as the scene's.
      upside_down: which of the cameras are mounted turned by 180 degrees, left first.
      stream_size: width and height in which both cameras stream (pixels).
      joint_offsets_rad: by how much the servos of each arm's six joints read too much, left arm first.
      delays: side, and how late its arm and its camera are (s); None: not measured.
      seed: of the simulated episodes and the emulator.
      world: table of a foreign world that "sim" stands in, or its shipped name; "": the own scene.
      params: what is otherwise in the own scene than in the nominal one.
    """

    robot: RobotName
    stepped: bool = False
    ports: tuple[str, str] = DynamixelConfig.ports
    serials: tuple[str, str] | None = None
    recordings: tuple[str, str] | None = None
    stub_cameras: bool = False
    size: int = 32
    fovy_deg: float = FOVY_DEG
    depth_cutoff: float = DEPTH_CUTOFF
    stereo: bool = False
    exposure_us: float | None = None
    gripper_closed_rad: float | tuple[float, float] | None = None
    upside_down: tuple[bool, bool] = (False, False)
    stream_size: tuple[int, int] = STREAM
    joint_offsets_rad: tuple[tuple[float, ...], tuple[float, ...]] = (NO_OFFSETS, NO_OFFSETS)
    delays: tuple[tuple[str, float | None, float | None], ...] = ()
    seed: int = 0
    world: str = ""
    params: WorldParams = NOMINAL

    def __post_init__(self) -> None:
        """Checks that the settings fit together."""
        check(self.robot in ROBOTS, f"robot must be one of {', '.join(ROBOTS)}, not '{self.robot}'")
        given = [self.serials is not None, self.recordings is not None, self.stub_cameras]
        check(sum(given) <= 1, "choose one of cameras, recordings and stub cameras")
        check(not self.world or self.robot == "sim", "a world needs --robot sim")
        check(
            self.params == NOMINAL or not (self.real or self.world),
            "--world-params change the project's own simulated scene: they need --robot sim or emulated",
        )
        if self.real:
            check(not self.stepped, f"the time of --robot {self.robot} cannot be stepped")
            check(not self.stub_cameras, f"--robot {self.robot} needs cameras that see")
            check(
                any(given),
                f"--robot {self.robot} needs the serial numbers of its two cameras, left first;"
                " alohas2r doctor lists what is plugged in",
            )
        else:
            check(self.serials is None, f"--robot {self.robot} draws its own pictures: no cameras")
            check(self.gripper_closed_rad is None, f"--robot {self.robot} has the scene's grippers")
        check(
            self.robot == "aloha" or not any(map(any, self.joint_offsets_rad)),
            f"joint offsets need --robot aloha; --robot {self.robot} has none. Take them out of the robot file",
        )
        check(
            not (self.stereo and any(self.upside_down)),
            "the right imager of a camera that is mounted upside down sits on the left of its colour: a policy that"
            " sees pairs of pictures needs cameras mounted upright",
        )
        check(
            not (self.stereo and self.world),
            "a foreign world draws no pictures of right imagers; choose a policy that sees none",
        )
        _ = self.linkages  # raises if an angle is out of range
        if self.serials is not None:
            check(self.serials[0] != self.serials[1], "both cameras have the same serial number")

    @property
    def real(self) -> bool:
        """Whether real arms move."""
        return self.robot in REAL

    @property
    def linkages(self) -> tuple[GripperLinkage, GripperLinkage]:
        """The cranks of the left and the right gripper."""
        closed = self.gripper_closed_rad
        if closed is None:
            return GripperLinkage(), GripperLinkage()
        left, right = closed if isinstance(closed, tuple) else (closed, closed)
        return GripperLinkage.measured(left), GripperLinkage.measured(right)


class Simulation(NamedTuple):
    """The world of simulated or emulated arms, whose truth no robot knows.

    Attributes:
      place: puts everything somewhere, at rest, from joint positions [nq] and targets [14].
      advance: lets one control period pass; None where time passes by itself.
      state: returns joint positions [nq], velocities [nv] and targets [14].
    """

    place: Callable[[np.ndarray, np.ndarray], object]
    advance: Callable[[], object] | None
    state: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Rig(NamedTuple):
    """Entered arms and cameras.

    Attributes:
      robot: both arms.
      cameras: the left and the right wrist camera.
      trials: the episodes of a simulated run, and its pacer; None on real arms, or where they are not judged.
      simulation: the world of the arms; None of real ones and in foreign worlds.
    """

    robot: Robot
    cameras: Sequence[Camera]
    trials: Trials | None
    simulation: Simulation | None = None


@contextlib.contextmanager
def open_rig(
    config: RigConfig,
    passive: bool = False,
    episodes: int = 1,
    episode_s: float = 10.0,
    judged: bool = True,
) -> Iterator[Rig]:
    """Connects arms and cameras; leaves arms that hold holding.

    Args:
      config: which.
      passive: only ever reads.
      episodes: how many a simulated run has.
      episode_s: how long each lasts.
      judged: whether simulated episodes are those of the evaluation protocol, and judged.

    Raises:
      RobotFault: a port, servo or camera is missing or not as expected.
      BackendUnavailable: a package for it is missing.
    """
    with contextlib.ExitStack() as stack:
        world: Simulation | None = None
        cameras: Sequence[Camera] = ()
        if config.robot == "aloha":
            settings = DynamixelConfig(
                ports=config.ports,
                linkages=config.linkages,
                joint_offsets_rad=config.joint_offsets_rad,
            )
            robot: Robot = DynamixelRobot(settings, passive)
        elif config.robot == "aloha-ros":
            robot = InterbotixRobot(InterbotixConfig(linkages=config.linkages), passive)
        elif config.robot == "emulated":
            emulator = stack.enter_context(
                Emulator(
                    EmulatorConfig(
                        not config.stepped, config.seed, set_up=True, hidden=_hidden(config.params)
                    )
                )
            )
            world = _emulated_world(emulator, config.stepped)
            reply_s = STEPPED_REPLY_S if config.stepped else EMULATED_REPLY_S
            settings = DynamixelConfig(ports=emulator.ports, reply_timeout_s=reply_s)
            robot = DynamixelRobot(settings, passive)
            if config.recordings is None and not config.stub_cameras:
                cameras = EmulatedCameras(emulator, _renderer(config)).cameras()
        elif config.world:
            from alohas2r.deployment.worlds import open_world

            drawn = config.recordings is None and not config.stub_cameras
            arms, eyes, played = stack.enter_context(
                open_world(
                    config.world,
                    config.size,
                    config.fovy_deg,
                    episodes,
                    config.seed,
                    episode_s,
                    realtime=not config.stepped,
                    pictures=drawn,
                )
            )
            lenses = [stack.enter_context(camera) for camera in eyes or _cameras(config)]
            yield Rig(stack.enter_context(arms), lenses, played)
            return
        else:
            arms = SimulatedWorld(config.params)
            world = _simulated_world(arms)
            robot = SimulatedRobot(arms)
            if config.recordings is None and not config.stub_cameras:
                cameras = simulated.cameras(arms, _renderer(config))
        trials = None
        if world is not None and judged:
            trials = _trials(world, config, episodes, episode_s)
        lenses = [stack.enter_context(camera) for camera in cameras or _cameras(config)]
        arms_in_use = stack.enter_context(robot)
        problems = arms_in_use.setup_problems()
        if problems:
            raise RobotFault(f"What the arms say would be misread. {' '.join(problems)}")
        yield Rig(arms_in_use, lenses, trials, world)


def _cameras(config: RigConfig) -> Sequence[Camera]:
    """Returns the cameras of real arms, recordings of them, or stubs."""
    if config.stub_cameras:
        return [StubCamera(side, config.size, paired=config.stereo) for side in SIDES]
    settings = [
        RealSenseConfig(
            width=config.stream_size[0],
            height=config.stream_size[1],
            size=config.size,
            fovy_deg=config.fovy_deg,
            depth_cutoff=config.depth_cutoff,
            exposure_us=config.exposure_us,
            upside_down=upside_down,
            stereo=config.stereo,
        )
        for upside_down in config.upside_down
    ]
    if config.recordings is not None:
        return [
            RealSenseCamera(side, recording=file, config=one, repeat=True)
            for side, file, one in zip(SIDES, config.recordings, settings, strict=True)
        ]
    serials = config.serials or ("", "")
    plugged = [camera.serial for camera in find_cameras()]
    missing = [serial for serial in serials if serial not in plugged]
    if missing:
        raise RobotFault(
            f"No RealSense camera has the serial number {' or '.join(missing)}. Plugged in:"
            f" {', '.join(plugged) or 'none'}. Check the numbers and the USB 3 cables."
        )
    return [
        RealSenseCamera(side, serial=serial, config=one)
        for side, serial, one in zip(SIDES, serials, settings, strict=True)
    ]


def _renderer(config: RigConfig) -> Renderer:
    from alohas2r.rendering import registry as renderers

    options: dict[str, object] = {"width": config.size, "height": config.size, "batch": 1}
    if config.stereo:
        options["cameras"] = stereo.cameras(CAMERAS)
    insert = scene.load("insert")
    renderer: Renderer = renderers.make("raycast", insert, **options)
    looks = changed.looks(config.params, insert)
    if looks is not None:
        renderer = LooksRenderer(renderer, looks)
    if config.params.sensor:
        renderer = SensorRenderer(renderer, config.size)
        renderer.render(insert.home_qpos[None])  # compiles, which no control step has time for
    return renderer


def _hidden(params: WorldParams) -> HiddenConfig:
    """Returns what an emulated robot hides in a changed world."""
    return HiddenConfig(command_delay_s=params.delay * CONTROL_PERIOD_S, peg_mm=params.peg)


def _trials(world: Simulation, config: RigConfig, episodes: int, episode_s: float) -> Trials:
    from alohas2r.deployment.trials import Reading, Trials, World
    from alohas2r.tasks.protocol import EVAL_V1, modified

    read = World(world.place, world.advance, Reading(world.state))
    rules = EVAL_V1
    if config.params.peg != NOMINAL.peg:
        rules = modified(EVAL_V1, peg_mm=config.params.peg)
    return Trials(read, episodes, config.seed, not config.stepped, episode_s, rules)


def _emulated_world(emulator: Emulator, stepped: bool) -> Simulation:
    def state() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        world = emulator.state()
        return world.qpos, world.qvel, world.goals

    def place(qpos: np.ndarray, targets: np.ndarray) -> None:
        emulator.place(qpos, goals=targets)

    return Simulation(place, emulator.step if stepped else None, state)


def _simulated_world(arms: SimulatedWorld) -> Simulation:
    def state() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return arms.data.qpos, arms.data.qvel, arms.told

    return Simulation(arms.place, arms.advance, state)
