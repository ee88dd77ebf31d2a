"""Settings of a distillation, its presets, and what runs it."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check, later
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.actuation import ControlConfig
from alohas2r.envs.noise import NoiseConfig
from alohas2r.envs.task import PYRAMIDAL
from alohas2r.envs.vision import SensesConfig
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.policies import spec
from alohas2r.policies.spec import CameraSpec, StereoNetworkConfig, StudentNetworkConfig
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.sim.variation import VariationConfig
from alohas2r.tasks.insert.config import INSERT_NOISE, InsertConfig
from alohas2r.tasks.insert.hold_out import HoldOutConfig
from alohas2r.tasks.protocol import EVAL_V2, SERVO_POS, TRANSFER_SCALE

# Streams of random numbers.
ENVS_STREAM, SENSES_STREAM, SHIFT_STREAM, ORDER_STREAM, WEIGHTS_STREAM, TUTOR_STREAM = range(6)
PICTURES_AT_ONCE = 512  # samples that are encoded at once
WORLD_SIZE = 256  # environments that one thread simulates, draws and decides for at a time
GUIDES = ("", "insertion", "all")
CHECK_ROWS = 16  # observations in the artifact's check


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A distillation. Source of the numbers: the published report, or docs/ablations.md where they differ from it.

    Attributes:
      observation: what the student observes, one of policies.spec.OBSERVATIONS.
      iterations: rounds of collecting and learning.
      steps: control steps of every environment per iteration.
      num_envs: environments side by side.
      batch: samples of a gradient step; divides steps * num_envs.
      epochs: passes over an iteration's samples.
      learning_rate: of Adam, at the start and at the end; between them it changes linearly.
      shift: pictures are shifted at random by up to so many pixels before the encoder.
      shifts: different shifts of a sample; 1 to epochs. Fewer save time where the encoder is frozen.
      finetune: whether a pretrained encoder goes on learning.
      auxiliary: weight of predicting where the objects are from the pictures, and from pairs of them the inverse
        depth; 0 for none.
      ahead: the student also predicts the teacher's actions in the next so many steps, less than `steps`; only the
        present one is ever taken.
      average: the policy is the exponential average of the parameters, of which each gradient step keeps this
        share (less in the first steps); 0 for the newest parameters.
      precision: errors are weighted by the teacher's standard deviation to the power of minus this; 0 for alike.
      history: what is remembered of the proprioception.
      cameras: pictures. network: shapes. stereo: what looks at pairs of pictures.
      task: the episodes. hold_out: missing objects.
      control: action delay. senses: what the student's observation suffers.
      noise: what the teacher's does.
      contacts, variation, cone: as in `envs.task.EnvConfig`.
      protocol: that of the evaluations on the way; the task's own if empty.
      draws: a label is the mean of the teacher's actions on so many independent measurements of the state, each with
        its own memory. From one measurement to the next they scatter about as much as all that a student fails to
        predict. 1 for a state student, which observes what the teacher does.
      guide: whether controllers on the exact state say what to do instead of the teacher: "insertion" (once it has
        taken over, that of `tasks.insert.guide`), "all" (before as well, that of `tasks.grasping`), or "" for neither.
      engine: sizes of the buffers of the engine "warp".
      evaluations: evaluations on the way, evenly spread; the last is at the end.
      evaluation_episodes: episodes of each.
      checkpoints: how many on the way, evenly spread.
    """

    observation: str = "rgbd"
    iterations: int = 400
    steps: int = 6
    num_envs: int = 1024
    batch: int = 256
    epochs: int = 4
    learning_rate: tuple[float, float] = (1e-3, 3e-5)
    shift: int = 1
    shifts: int = 1
    finetune: bool = False
    auxiliary: float = 0.1
    ahead: int = 0
    average: float = 0.999
    precision: float = 0.0
    history: HistoryConfig = HistoryConfig((0.35, 0.1))
    cameras: CameraSpec = CameraSpec()
    network: StudentNetworkConfig = StudentNetworkConfig(
        hidden=(320, 256, 256), embedding=48, places=16, patches=(16, 24)
    )
    stereo: StereoNetworkConfig = StereoNetworkConfig()
    task: InsertConfig = InsertConfig(steps=200)
    hold_out: HoldOutConfig = HoldOutConfig((0.07, 0.18))
    control: ControlConfig = ControlConfig()
    noise: NoiseConfig = INSERT_NOISE
    contacts: bool = False
    variation: VariationConfig = VariationConfig()
    cone: str = PYRAMIDAL
    protocol: str = ""
    draws: int = 4
    guide: str = later("")
    senses: SensesConfig = SensesConfig()
    engine: BufferConfig = BufferConfig()
    evaluations: int = 2
    evaluation_episodes: int = 256
    checkpoints: int = 40

    def __post_init__(self) -> None:
        choices = ", ".join(spec.OBSERVATIONS)
        check(
            self.observation in spec.OBSERVATIONS,
            f"observation must be one of {choices}, not '{self.observation}'",
        )
        for name in ("iterations", "steps", "num_envs", "batch", "epochs"):
            check(
                1 <= getattr(self, name) <= 10**7,
                f"{name} must be 1 or more, not {getattr(self, name)}",
            )
        check(
            (self.steps * self.num_envs) % self.batch == 0,
            f"batch = {self.batch} must divide steps * num_envs = {self.steps * self.num_envs}",
        )
        check(min(self.learning_rate) > 0, "learning_rate must be two numbers > 0")
        check(0 <= self.shift <= 16, f"shift must be in 0..16 pixels, not {self.shift}")
        check(1 <= self.shifts <= self.epochs, f"shifts must be in 1..{self.epochs} (epochs)")
        check(0 <= self.auxiliary <= 100, f"auxiliary must be in 0..100, not {self.auxiliary}")
        check(
            0 <= self.ahead < self.steps, f"ahead must be in 0..{self.steps - 1} (less than steps)"
        )
        check(0 <= self.average < 1, f"average must be in [0, 1), not {self.average}")
        check(0 <= self.precision <= 4, f"precision must be in 0..4, not {self.precision}")
        check(1 <= self.draws <= 64, f"draws must be in 1..64, not {self.draws}")
        check(
            self.draws == 1 or self.observation != "state",
            f"draws must be 1 for a state student, not {self.draws}",
        )
        check(
            self.guide in GUIDES,
            f"guide must be one of {', '.join(GUIDES[1:])}, or empty, not '{self.guide}'",
        )
        check(0 <= self.evaluations <= 10_000, "evaluations must be in 0..10000")
        check(1 <= self.evaluation_episodes <= 100_000, "evaluation_episodes must be in 1..100000")
        check(0 <= self.checkpoints <= 100_000, "checkpoints must be in 0..100000")

    @property
    def sees(self) -> bool:
        """Whether the student has senses of its own, rather than the teacher's observation."""
        return self.observation != "state"

    @property
    def samples(self) -> int:
        """Samples of one iteration."""
        return self.steps * self.num_envs


PRESETS = {
    "default": DistillConfig(),
    "transfer": DistillConfig(
        task=InsertConfig(
            steps=300,
            physics=EVAL_V2.insert.physics,
            objects=EVAL_V2.insert.objects,
            switch=EVAL_V2.insert.switch,
            inside=EVAL_V2.insert.inside,
        ),
        control=ControlConfig(scale=TRANSFER_SCALE),
        noise=EVAL_V2.insert.noise,
        senses=SensesConfig(joint_pos=SERVO_POS, looks="transfer"),
        contacts=True,
        variation=EVAL_V2.variation,
        protocol=EVAL_V2.name,
    ),
    "quick": DistillConfig(
        iterations=20,
        num_envs=64,
        steps=4,
        batch=64,
        evaluations=0,
        checkpoints=4,
    ),
}
DEPTH_ONLY_SIZE = (
    64  # pixels; side of the depth-only student's pictures. Source: the published report.
)


# pixels, by engine; side of the pictures of which students see pairs: disparities are small.
STEREO_SIZE = {"cpu": 48, "warp": 64}


def find_preset(name: str, observation: str = "rgbd", engine: str = "cpu") -> DistillConfig:
    """Returns a preset for an observation.

    Args:
      name: of the preset. observation: one of policies.spec.OBSERVATIONS.
      engine: the pictures of pairs are larger where a GPU draws them.

    Raises:
      ConfigError: unknown preset or observation.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS)}")
    if observation not in spec.OBSERVATIONS:
        raise ConfigError(
            f"Unknown observation '{observation}'.{did_you_mean(observation, spec.OBSERVATIONS)}"
        )
    draws = 1 if observation == "state" else PRESETS[name].draws
    preset = dataclasses.replace(PRESETS[name], observation=observation, draws=draws)
    if observation == "depth":
        cameras = dataclasses.replace(preset.cameras, size=DEPTH_ONLY_SIZE)
        preset = dataclasses.replace(preset, cameras=cameras)
    if observation == "stereo":
        cameras = dataclasses.replace(preset.cameras, size=STEREO_SIZE[engine])
        preset = dataclasses.replace(preset, cameras=cameras)
    return preset


def choose_engine(engine: str, renderer: str, sees: bool) -> tuple[str, str]:
    """Returns an engine and a renderer that go together.

    Args:
      engine: "cpu"; "warp"; or "auto": "warp" where there is CUDA and no renderer is named that needs a CPU.
      renderer: see `rendering.registry`. On the engine "warp" pictures stay on its device, so "auto" is "warp".
      sees: whether there are pictures at all.

    Raises:
      ConfigError: an unknown name, or two that do not go together.
    """
    if engine == engines.AUTO and renderer not in ("auto", "warp"):
        engine = "cpu"
    engine = engines.choose(engine)
    if engine != "warp" or not sees:
        return engine, renderer
    if renderer not in ("auto", "warp"):
        raise ConfigError(
            f"The engine 'warp' cannot be combined with the renderer '{renderer}': pictures are drawn on the same"
            " device. Use the renderer 'warp', or the engine 'cpu'."
        )
    return engine, "warp"
