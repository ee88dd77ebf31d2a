"""What describes a policy: its observation, action, network."""

from __future__ import annotations

import dataclasses

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array, JsonObject
from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.policies.switch import Switch
from alohas2r.sim.scene import Scene

FORMAT_VERSION = 1
CHECK_TOLERANCE = 1e-4
ACTIVATIONS = ("swish", "relu", "tanh", "elu")  # between the layers of a network


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """What the actions mean.

    Attributes:
      joints: actuator names in order.
      scale: change of a joint's target by a full action (rad; m of finger travel).
      low, high: limits of the targets (rad, m).
      control_period_s: time between actions.
    """

    joints: tuple[str, ...]
    scale: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    control_period_s: float


@dataclasses.dataclass(frozen=True)
class ObservationPart:
    """A named slice of the observation vector."""

    name: str
    size: int
    unit: str


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """Everything but the weights.

    Attributes:
      kind: "state" for a policy on named state observations.
      phase: name of the task.
      observation: the parts of the observation vector, in order.
      history: what the policy remembers.
      action: what its actions mean.
      hidden: hidden layers; activation: between them.
    """

    kind: str
    phase: str
    observation: tuple[ObservationPart, ...]
    history: HistoryConfig
    action: ActionSpec
    hidden: tuple[int, ...]
    activation: str

    @property
    def observation_size(self) -> int:
        """Length of the observation vector."""
        return sum(part.size for part in self.observation)


OBSERVATIONS = ("rgbd", "depth", "rgb", "stereo", "state")
# Kinds of policies on pictures: by imitation, by reinforcement, by imitation from pairs; two by reinforcement.
STUDENT, PIXELS, STEREO, STAGED_PIXELS = "student", "pixels", "stereo", "staged_pixels"
# A student whose insertion reinforcement corrected where the robot stands; one whose tempo it set as well.
RESIDUAL, PACED = "residual", "paced"
TARGET = "target_in_base"  # where the object is commanded to, in the arm's base frame
# Of a policy of one arm.
ONE_ARM_PROPRIOCEPTION = (("joint_pos", 8, "rad, m"), ("joint_pos_minus_target", 8, "rad, m"))
PROPRIOCEPTION = (
    ("left/joint_pos", 8, "rad, m"),
    ("right/joint_pos", 8, "rad, m"),
    ("left/joint_pos_minus_target", 8, "rad, m"),
    ("right/joint_pos_minus_target", 8, "rad, m"),
)


@dataclasses.dataclass(frozen=True)
class CameraSpec:
    """The wrist cameras, left first.

    Attributes:
      size: side of the square pictures (pixels).
      fovy_deg: vertical field of view.
      depth_cutoff: depth beyond this counts as unknown, 0 (m).
    """

    size: int = 32
    fovy_deg: float = FOVY_DEG
    depth_cutoff: float = DEPTH_CUTOFF

    def __post_init__(self) -> None:
        check(8 <= self.size <= 512, f"size must be in 8..512 pixels, not {self.size}")
        check(0 < self.fovy_deg < 180, f"fovy_deg must be in (0, 180), not {self.fovy_deg}")
        check(0.05 <= self.depth_cutoff <= 10, "depth_cutoff must be in 0.05..10 m")


@dataclasses.dataclass(frozen=True)
class StudentNetworkConfig:
    """Shapes of the networks.

    Attributes:
      hidden: hidden layers after pictures and proprioception are joined.
      activation: between them.
      filters: of the three convolutions.
      embedding: numbers that each picture is reduced to.
      depth_side: side to which a depth picture is reduced where no convolution sees it.
      places: numbers that each place of the encoder's last pictures is reduced to, which keeps where something is
        beside what it is; 0 for their mean over all places alone. Source: ours, see docs/ablations.md.
      patches: numbers of each patch of 4 x 4 pixels of a depth picture, and of each 2 x 2 of these patches, beside
        the reduced picture; () for none. Source: ours, likewise.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    activation: str = "swish"
    filters: tuple[int, int, int] = (32, 64, 64)
    embedding: int = 64
    depth_side: int = 8
    places: int = 0
    patches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choices = ", ".join(ACTIVATIONS)
        check(self.activation in ACTIVATIONS, f"activation must be one of {choices}")
        check(
            len(self.hidden) > 0 and min(*self.hidden, *self.filters, self.embedding) >= 1,
            "a network needs one or more layers of one or more units",
        )
        check(1 <= self.depth_side <= 64, f"depth_side must be in 1..64, not {self.depth_side}")
        check(0 <= self.places <= 1024, f"places must be in 0..1024, not {self.places}")
        check(
            len(self.patches) in (0, 2) and min(self.patches, default=1) >= 1,
            "patches must be none or two numbers >= 1",
        )


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """Everything but the weights.

    Attributes:
      kind: STUDENT; RESIDUAL, PACED of one with corrections; STEREO of one that sees pairs of pictures; PIXELS of a
        policy that observes no switch and sees depth in patches; or STAGED_PIXELS of two such policies.
      phase: name of the task.
      observation: "rgbd", "depth", "rgb", "stereo", or "state" for the teacher's own observation.
      cameras: what the pictures are like.
      proprioception: the parts of the vector that is observed beside the pictures, in order.
      history: what is remembered of that vector.
      switch: when insertion takes over; the policy observes its state.
      action: what the actions mean.
      network: shapes.
    """

    kind: str
    phase: str
    observation: str
    cameras: CameraSpec
    proprioception: tuple[ObservationPart, ...]
    history: HistoryConfig
    switch: Switch
    action: ActionSpec
    network: StudentNetworkConfig

    def __post_init__(self) -> None:
        choices = ", ".join(OBSERVATIONS)
        check(
            self.observation in OBSERVATIONS,
            f"observation must be one of {choices}, not '{self.observation}'",
        )
        check(
            not self.network.patches or self.cameras.size % 8 == 0,
            f"patches need pictures whose side is a multiple of 8, not {self.cameras.size}",
        )
        check(
            not self.from_pixels or (self.observation == "depth" and bool(self.network.patches)),
            "a policy from pixels observes depth, in patches",
        )
        check(
            (self.kind == STEREO) == self.paired == isinstance(self, StereoSpec),
            "pairs of pictures are observed by a policy of the kind 'stereo' alone",
        )
        check(
            (self.kind == STAGED_PIXELS) == isinstance(self, StagedPixelsSpec),
            "two policies from pixels are described by 'staged_pixels' alone",
        )
        check(
            (self.kind in (RESIDUAL, PACED)) == isinstance(self, ResidualSpec),
            "a student with corrections is described by 'residual' or 'paced' alone",
        )

    @property
    def views(self) -> tuple[str, ...]:
        """What its wrist cameras are called: by their sides, or "wrist" that of a policy of one arm."""
        return ("wrist",) if len(self.action.joints) == PER_ARM else SIDES

    @property
    def switches(self) -> bool:
        """Whether it observes which stage it is in."""
        return self.kind in (STUDENT, RESIDUAL, PACED, STEREO, STAGED_PIXELS)

    @property
    def from_pixels(self) -> bool:
        """Whether reinforcement learning made it, of depth that is kept as whole numbers."""
        return self.kind in (PIXELS, STAGED_PIXELS)

    @property
    def paired(self) -> bool:
        """Whether each camera's left imager is seen in colour, and its right one in grey."""
        return self.observation == "stereo"

    @property
    def commanded(self) -> bool:
        """Whether it is told where to bring the object."""
        return any(part.name == TARGET for part in self.proprioception)

    @property
    def convolves_depth(self) -> bool:
        """Whether convolutions see depth."""
        return self.observation == "depth" and self.kind == STUDENT

    @property
    def vector(self) -> str:
        """Name of the vector that is observed beside the pictures."""
        return "observation" if self.observation == "state" else "proprioception"

    @property
    def vector_size(self) -> int:
        """Its length."""
        return sum(part.size for part in self.proprioception)

    @property
    def features(self) -> int:
        """Numbers the network gets of it, with what is remembered."""
        return self.history.size(self.vector_size)

    @property
    def has_rgb(self) -> bool:
        """Whether colour is observed."""
        return self.observation in ("rgbd", "rgb", "stereo")

    @property
    def has_depth(self) -> bool:
        """Whether depth is observed."""
        return self.observation in ("rgbd", "depth")

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], str, str]]:
        """What `StudentPolicy.act` takes: name -> shape, dtype, unit."""
        size = self.cameras.size
        inputs: dict[str, tuple[tuple[int, ...], str, str]] = {}
        for view in self.views:
            if self.has_rgb:
                inputs[f"{view}_rgb"] = ((size, size, 3), "uint8", "sRGB")
            if self.paired:
                inputs[f"{view}_grey"] = ((size, size), "uint8", "luma")
            if self.has_depth:
                inputs[f"{view}_depth"] = ((size, size), "float32", "m")
        inputs[self.vector] = ((self.vector_size,), "float32", "rad, m")
        if self.switches:
            inputs["switched"] = ((), "bool", "1")
        return inputs

    def named_pictures(self, rgb: Array, depth: Array) -> dict[str, Array]:
        """Returns pictures of all cameras as `inputs` names them; of NumPy or JAX arrays as they are.

        Args:
          rgb: [N, C, H, W, 3] uint8, of pairs 4 channels, see `envs.vision.Seen`; or None.
          depth: [N, C, H, W] m, or None.
        """
        named: dict[str, Array] = {}
        for at, view in enumerate(self.views):
            if rgb is not None:
                named[f"{view}_rgb"] = rgb[:, at, ..., :3]
            if rgb is not None and self.paired:
                named[f"{view}_grey"] = rgb[:, at, ..., 3]
            if depth is not None:
                named[f"{view}_depth"] = depth[:, at]
        return named


STEREO_NETWORKS = ("cost", "early", "attention")
RIGHTS = ("seen", "left", "black")  # what stands for the right picture


@dataclasses.dataclass(frozen=True)
class StereoNetworkConfig:
    """What looks at pairs of pictures. Source: ours, but where it says otherwise.

    Attributes:
      network: "cost": both grey pictures go through one stem and are compared at shifts along the rows; "early": the
        right picture is a fourth channel; "attention": both go through one stem, and each place of the left picture
        looks along its row of the right one. Source of the last: DEXTRAH's student.
      stem: numbers of each column of four rows of a grey picture that are compared.
      filters: numbers of each patch of 4 x 4 pixels, and of each 2 x 2 of them.
      shifts: disparities that are compared, 0 .. shifts - 1 pixels.
      heads, layers: of the attention.
      right: "seen"; or, to find out what the right picture is good for, "left" for the left one's grey in its place,
        or "black" for none.
    """

    network: str = "cost"
    stem: int = 8
    filters: tuple[int, int] = (24, 48)
    shifts: int = 8
    heads: int = 4
    layers: int = 2
    right: str = "seen"

    def __post_init__(self) -> None:
        for name, choices in (("network", STEREO_NETWORKS), ("right", RIGHTS)):
            value = getattr(self, name)
            check(value in choices, f"{name} must be one of {', '.join(choices)}, not '{value}'")
        check(
            min(self.stem, *self.filters, self.heads, self.layers) >= 1,
            "stem, filters, heads and layers must be numbers >= 1",
        )
        check(1 <= self.shifts <= 64, f"shifts must be in 1..64, not {self.shifts}")
        check(
            self.filters[0] % self.heads == 0,
            f"filters[0] must be a multiple of heads = {self.heads}, not {self.filters[0]}",
        )


@dataclasses.dataclass(frozen=True)
class StereoSpec(StudentSpec):
    """A student that sees pairs of pictures: colour of the left imager, grey of the right one.

    Attributes:
      stereo: what looks at them.
    """

    stereo: StereoNetworkConfig = StereoNetworkConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        side = self.cameras.size
        check(side % 8 == 0, f"pairs of pictures need a side that is a multiple of 8, not {side}")
        check(
            self.stereo.shifts <= side,
            f"shifts = {self.stereo.shifts} must not exceed the {side} pixels of a picture's side",
        )


@dataclasses.dataclass(frozen=True)
class ResidualSpec(StudentSpec):
    """A student to whose arms a residual is added while it inserts; see `policies.online.insertion`.

    Attributes:
      corrections: hidden layers of the residual.
      share: how much of the residual is added to the student's actions.
    """

    corrections: tuple[int, ...] = (256, 256)
    share: float = 0.15

    @property
    def tempo(self) -> bool:
        """Whether the residual sets the tempo as well."""
        return self.kind == PACED

    @property
    def student(self) -> StudentSpec:
        """What is corrected."""
        return StudentSpec(**{**_common(self), "kind": STUDENT})


@dataclasses.dataclass(frozen=True)
class StagedPixelsSpec(StudentSpec):
    """Two policies from pixels: the first drives each arm as if it were alone, until the second takes over both.

    What is not said here is of the second one, which observes no switch.

    Attributes:
      pick: the first policy.
      targets: where each arm brings its object meanwhile, in its base frame, left first (m).
    """

    pick: StudentSpec
    targets: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        pick = self.pick
        check(
            pick.kind == PIXELS and pick.commanded and len(pick.views) == 1,
            "the first policy must be one from pixels, of one arm that is told where to bring its object",
        )
        three_each = [len(target) for target in self.targets] == [3] * len(self.views)
        check(three_each, "targets must be three numbers for each arm")
        for name, own, other in (
            ("pictures", self.cameras, pick.cameras),
            ("moving averages", self.history, pick.history),
            ("action scales", self.action.scale, pick.action.scale),
        ):
            check(own == other, f"both policies must have the same {name}, not {own} and {other}")

    @property
    def insert(self) -> StudentSpec:
        """The second policy."""
        return StudentSpec(**{**_common(self), "kind": PIXELS})


def spec_class(kind: str) -> type[PolicySpec] | type[StudentSpec]:
    """Returns what describes a policy of a kind; of a staged one on the state, its last part."""
    of_kind = {STEREO: StereoSpec, STAGED_PIXELS: StagedPixelsSpec}
    of_kind |= {RESIDUAL: ResidualSpec, PACED: ResidualSpec}
    return of_kind.get(kind, StudentSpec if kind in (STUDENT, PIXELS) else PolicySpec)


def staged_pixels_spec(
    pick: StudentSpec, insert: StudentSpec, switch: Switch, targets: Array
) -> StagedPixelsSpec:
    """Returns the description of two policies from pixels and the switch between them.

    Args:
      pick: of one arm. insert: of both. switch: when the second takes over.
      targets: [2, 3] where each arm brings its object, in its base frame (m).

    Raises:
      ConfigError: they do not go together.
    """
    check(
        insert.kind == PIXELS and len(insert.views) == 2,
        "the second policy must be one from pixels, of both arms",
    )
    places = tuple(tuple(float(value) for value in place) for place in np.asarray(targets))
    named = _common(insert) | {"kind": STAGED_PIXELS, "switch": switch}
    return StagedPixelsSpec(**named, pick=pick, targets=places)


def _common(spec: StudentSpec) -> JsonObject:
    """Returns the values of a description's fields that all students have, by name."""
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(StudentSpec)}


def make_spec(
    model: Scene,
    observation: str,
    network: StudentNetworkConfig,
    cameras: CameraSpec,
    memory: HistoryConfig,
    switch: Switch,
    scale: float,
    state_parts: tuple[ObservationPart, ...] = (),
    stereo: StereoNetworkConfig | None = None,
) -> StudentSpec:
    """Returns the description of a student on a two-arm scene.

    Args:
      model: the scene.
      observation: one of OBSERVATIONS.
      network: shapes. cameras: pictures. memory: of the proprioception.
      switch: of the teacher. scale: change of a target by a full action (rad; m).
      state_parts: the teacher's observation; needed by a state student.
      stereo: what looks at pairs of pictures; the default if None.

    Raises:
      ConfigError: unknown observation.
    """
    parts = tuple(ObservationPart(*part) for part in PROPRIOCEPTION)
    if observation == "state":
        parts = state_parts
    common = (cameras, parts, memory, switch, action_spec(model, scale), network)
    if observation == "stereo":
        stereo = stereo or StereoNetworkConfig()
        return StereoSpec(STEREO, model.name, observation, *common, stereo=stereo)
    return StudentSpec(STUDENT, model.name, observation, *common)


def make_pixel_spec(
    model: Scene,
    network: StudentNetworkConfig,
    cameras: CameraSpec,
    memory: HistoryConfig,
    scale: float,
) -> StudentSpec:
    """Returns the description of a policy that reinforcement learning makes of wrist depth.

    Args:
      model: the scene; with one arm the policy is told where to bring the object.
      network: shapes. cameras: pictures. memory: of the proprioception.
      scale: change of a target by a full action (rad; m).
    """
    parts = PROPRIOCEPTION
    if len(model.arms) == 1:
        parts = (*ONE_ARM_PROPRIOCEPTION, (TARGET, 3, "m"))
    return StudentSpec(
        kind=PIXELS,
        phase=model.name,
        observation="depth",
        cameras=cameras,
        proprioception=tuple(ObservationPart(*part) for part in parts),
        history=memory,
        switch=Switch(),
        action=action_spec(model, scale),
        network=network,
    )


def action_spec(model: Scene, scale: float) -> ActionSpec:
    """Returns what the actions of all arms of a scene mean; those of a single arm have no side in their names."""
    ctrl = np.concatenate([arm.ctrl for arm in model.arms])
    single = len(model.arms) == 1
    return ActionSpec(
        joints=tuple(
            name if single else f"{arm.name}/{name}"
            for arm in model.arms
            for name in embodiment_joints.ACTUATORS
        ),
        scale=scale,
        low=tuple(float(x) for x in model.ctrl_low[ctrl]),
        high=tuple(float(x) for x in model.ctrl_high[ctrl]),
        control_period_s=embodiment_joints.CONTROL_PERIOD_S,
    )
