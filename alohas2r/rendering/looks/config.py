"""The looks "transfer" as declared tables: what may differ from world to world, and by how much.

`visual_randomization.TABLE` is today's looks: a dark table, red and blue objects, a sensor without exposure. Here is
what real ALOHAs differ in. Each class is the ranges of one thing; a range (low, high) is drawn uniformly unless it
says otherwise. A cause is what can be left out by itself, and what is reported by itself.
"""

from __future__ import annotations

import dataclasses

from alohas2r.config import check
from alohas2r.errors import ConfigError, did_you_mean

# Numbers of a texture, in this order; see `texture`.
COLUMNS = (
    *(
        "kind",
        "frequency",
        "cosine",
        "sine",
        "along",
        "across",
    ),  # of TEXTURES; 1/m; turn; phases in periods
    *("red", "green", "blue", "strength"),  # second colour, and how much of it there is at most
    *("grain", "seed"),  # unevenness of the albedo; of the noise
    *("seam", "seam_dark"),  # in a period, 0 for none; light that it swallows
    *("first_along", "first_across", "second_along", "second_across"),  # of two noises, 1/period
    *(
        "specular",
        "shininess",
    ),  # of gloss: 0..1 and the exponent; negative for the geom's own material
)

Range = tuple[float, float]

# Two families of generators that share no texture, no kind of clutter and no random number: what is learnt on one is
# measured on the other.
TRAIN, HELD_OUT = "train", "held_out"
FAMILIES = (TRAIN, HELD_OUT)

# Textures, in the order of their numbers; 0 is none.
TEXTURES = (
    "plain",
    *("checks", "stripes", "wood", "cloth", "metal", "print"),
    *("bricks", "dots", "marble", "plaid", "terrazzo", "zigzag"),
)
FAMILY_TEXTURES = {TRAIN: TEXTURES[1:7], HELD_OUT: TEXTURES[7:]}

# What can be left out by itself, in the order of their random streams.
CAUSES = (
    *("table", "room", "objects", "grippers", "clutter", "light", "exposure", "colour", "optics"),
    *("without_colour", "depth", "mount"),
)

# Things that are drawn beside the scene's geoms: the table's rails, then clutter.
RAILS = 4
CLUTTER_KINDS = ("box", "box", "box", "box", "cylinder", "cylinder", "capsule", "capsule")
EXTRA_KINDS = ("box",) * RAILS + CLUTTER_KINDS
OUT_OF_SIGHT = (0.0, 0.0, 1e4)  # m; where extra things are that an episode has not

# Surfaces with a texture of their own.
SLOTS = ("table", "socket", "peg", "clutter", "room")


def _check_ranges(config: object, **limits: Range) -> None:
    """Raises ConfigError unless each named range lies within its limits."""
    for name, (least, most) in limits.items():
        low, high = getattr(config, name)
        check(
            least <= low <= high <= most,
            f"{name} = ({low:g}, {high:g}) must be a range within {least:g}..{most:g}",
        )


def _check_shares(config: object, *names: str) -> None:
    """Raises ConfigError unless each named share lies in 0..1."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value <= 1, f"{name} must be in 0..1, not {value}")


@dataclasses.dataclass(frozen=True)
class SurfaceRanges:
    """A table, a wall or a floor. Source: what tables of laboratories look like; nothing is measured.

    Attributes:
      albedo: mean of the three colours. saturation: squared when drawn, so that grey is common.
      textured: share with a texture; period: of its pattern (m, logarithmic); contrast: of its two colours.
      seams: share with seams; seam_spacing: between them (m); seam_dark: light that they swallow.
      glossy: share with gloss of its own; specular, shininess: of it, as in a material of MuJoCo (0..1).
    """

    albedo: Range = (0.0, 1.0)
    saturation: Range = (0.0, 1.0)
    textured: float = 0.75
    period: Range = (0.02, 0.3)
    contrast: Range = (0.1, 1.0)
    seams: float = 0.3
    seam_spacing: Range = (0.12, 0.6)
    seam_dark: Range = (0.2, 0.9)
    glossy: float = 0.5
    specular: Range = (0.0, 0.9)
    shininess: Range = (0.03, 0.7)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(
            self,
            **dict.fromkeys(("albedo", "saturation", "contrast", "seam_dark"), (0.0, 1.0)),
            **dict.fromkeys(("period", "seam_spacing"), (1e-3, 10.0)),
            **dict.fromkeys(("specular", "shininess"), (0.0, 1.0)),
        )
        _check_shares(self, "textured", "seams", "glossy")


@dataclasses.dataclass(frozen=True)
class TableRanges:
    """The table's shape. Source: half of ALOHA's own is 0.61 x 0.37 m; others are larger, with or without rails.

    Attributes:
      half_x, half_y: half sizes (m). rails: share with rails; rail_width, rail_height: half of them (m).
    """

    half_x: Range = (0.61, 1.0)
    half_y: Range = (0.37, 0.8)
    rails: float = 0.5
    rail_width: Range = (0.005, 0.025)
    rail_height: Range = (0.002, 0.02)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, half_x=(0.1, 5.0), half_y=(0.1, 5.0))
        _check_ranges(self, rail_width=(1e-4, 1.0), rail_height=(1e-4, 1.0))
        _check_shares(self, "rails")


@dataclasses.dataclass(frozen=True)
class ObjectLookRanges:
    """Socket and peg: any hue, also alike or like the table. Source: docs/transfer.md.

    Attributes:
      lightness: mean of the three colours. saturation: the root is taken when drawn: mostly coloured.
      own: share with the objects' own hues, blue and red. alike: share in which both have one colour.
      table: share in which one of them has the table's colour.
      end: share in which the socket's closed end has another colour than its sides.
      textured: share with a texture; period (m, logarithmic), contrast: of it.
      glossy, specular, shininess: as of a surface.
    """

    lightness: Range = (0.05, 0.95)
    saturation: Range = (0.0, 1.0)
    own: float = 0.25
    alike: float = 0.12
    table: float = 0.12
    end: float = 0.5
    textured: float = 0.4
    period: Range = (0.01, 0.08)
    contrast: Range = (0.1, 0.9)
    glossy: float = 0.5
    specular: Range = (0.0, 0.9)
    shininess: Range = (0.03, 0.7)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(
            self,
            **dict.fromkeys(
                ("lightness", "saturation", "contrast", "specular", "shininess"), (0.0, 1.0)
            ),
            period=(1e-3, 1.0),
        )
        _check_shares(self, "own", "alike", "table", "end", "textured", "glossy")
        check(self.own + self.alike + self.table <= 1, "own + alike + table must not exceed 1")


@dataclasses.dataclass(frozen=True)
class GripperRanges:
    """Arms and hands: grey to black, some fingers with tape. Source: ALOHA 1 and 2 are printed black or grey.

    Attributes:
      lightness: of all parts. spread: of one part against the others. tape: share of fingers' halves with tape of any
        colour.
      fingers: by how much all fingers look shifted, +- (m): along themselves, apart, towards the camera. Where a
        camera shows its own fingers must not tell how it is mounted: other hands have other fingers.
    """

    lightness: Range = (0.01, 0.6)
    spread: float = 0.25
    tape: float = 0.15
    fingers: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, lightness=(0.0, 1.0))
        check(
            all(0 <= most <= 0.05 for most in self.fingers),
            "fingers must be three numbers in 0..0.05 m",
        )
        _check_shares(self, "spread", "tape")


@dataclasses.dataclass(frozen=True)
class ClutterRanges:
    """Things that lie about; they have no physics. Source: docs/transfer.md.

    Attributes:
      count: fewest and most. clearance: least distance to an object at the episode's start (m).
      near: share that lies within `reach` (m) of an object, where it is seen; the rest lies anywhere in `area` (m).
      box, box_height: half sizes (m). radius, length: of cylinders, half (m). cable_radius, cable_length: of capsules,
        half (m).
      upright: share of the cylinders that stand.
      textured, period, contrast, glossy, specular, shininess: as of objects.
    """

    count: tuple[int, int] = (0, 8)
    clearance: float = 0.04
    near: float = 0.7
    reach: float = 0.16
    area: tuple[float, float] = (0.4, 0.3)
    box: Range = (0.008, 0.05)
    box_height: Range = (0.003, 0.03)
    radius: Range = (0.008, 0.035)
    length: Range = (0.01, 0.05)
    cable_radius: Range = (0.002, 0.012)
    cable_length: Range = (0.03, 0.1)
    upright: float = 0.5
    textured: float = 0.5
    period: Range = (0.01, 0.1)
    contrast: Range = (0.1, 1.0)
    glossy: float = 0.5
    specular: Range = (0.0, 0.9)
    shininess: Range = (0.03, 0.7)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, count=(0, len(CLUTTER_KINDS)), contrast=(0.0, 1.0))
        sizes = ("box", "box_height", "radius", "length", "cable_radius", "cable_length", "period")
        _check_ranges(self, **dict.fromkeys(sizes, (1e-4, 1.0)))
        _check_shares(self, "near", "upright", "textured", "glossy")
        check(0 <= self.clearance <= 0.5, "clearance must be in 0..0.5 m")


@dataclasses.dataclass(frozen=True)
class LightRanges:
    """Lamps. Source: docs/transfer.md; directions and places vary as in today's looks.

    Attributes:
      level: of all light (product of two draws, so that the ends are rare; logarithmic).
      direct: light of the lamps beside the ambient 0.55; squared when drawn; 0 is flat light without shadows.
      on: share of the lamps that burn. tint: coldest to warmest, of 1 (blue and red differ by so much).
      position: of each lamp (m, each axis). angle: of its direction (degrees). shadows: share of the episodes with any.
    """

    level: Range = (0.2, 5.0)
    direct: Range = (0.0, 2.5)
    on: float = 0.7
    tint: Range = (-0.4, 0.4)
    position: float = 1.0
    angle: float = 25.0
    shadows: float = 0.75

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, level=(0.01, 100.0), direct=(0.0, 10.0), tint=(-0.9, 0.9))
        _check_shares(self, "on", "shadows")


@dataclasses.dataclass(frozen=True)
class CameraRanges:
    """The colour camera, from radiance to numbers.

    Source: ranges of common colour cameras; docs/transfer.md.

    Attributes:
      exposure: factor on radiance (product of two draws; logarithmic). With automatic exposure it is the power
        `compensation` of it.
      automatic: share with automatic exposure; target: mean that it seeks; lag: share of the way (in logarithms) that
        it goes in a step of 50 ms; most: largest factor either way.
      white_balance: of red and blue against green (logarithms).
      mixed: share whose colour channels are mixed at random.
      grey: share without colour: a grey picture. dark: share without any picture: black.
      gamma: exponent (logarithmic); 1/2.2 for sRGB, 1 for none.
      blur: share of a pixel's light that its neighbours along an axis get. vignetting: light lost in the corners.
      noise: of each colour of each pixel, for bright light; it grows with the gain.
    """

    exposure: Range = (0.2, 5.0)
    compensation: float = 0.4
    automatic: float = 0.6
    target: Range = (0.2, 0.5)
    lag: Range = (0.08, 1.0)
    most: float = 20.0
    white_balance: Range = (-0.35, 0.35)
    mixed: float = 0.1
    grey: float = 0.07
    dark: float = 0.04
    gamma: Range = (0.45, 1.3)
    blur: Range = (0.0, 0.5)
    vignetting: Range = (0.0, 0.5)
    noise: Range = (0.0, 0.03)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, exposure=(0.01, 100.0), target=(0.01, 1.0), lag=(0.01, 1.0))
        _check_ranges(self, white_balance=(-2.0, 2.0), gamma=(0.2, 5.0), blur=(0.0, 0.66))
        _check_ranges(self, vignetting=(0.0, 1.0), noise=(0.0, 0.5))
        _check_shares(self, "automatic", "mixed", "grey", "dark", "compensation")
        check(self.most >= 1, "most must be at least 1")


@dataclasses.dataclass(frozen=True)
class DepthRanges:
    """Depth as a D405 makes it. Source: its data sheet (baseline 18 mm, 70 mm at least, +-2%).

    Attributes:
      baseline: of the two imagers (m). steps: of the disparity in a pixel of the sensor; width: of the sensor's picture
        of the field of view (pixels).
      nearest: what is nearer is not seen (m, per episode). scale: error of all distances.
      noise: standard deviation of the disparity (pixels of the sensor).
      shadow: share of the episodes whose stereo shadow lies on the left of near things; on the right otherwise.
      speckles: share of single pixels with a wrong distance; dropout: of lost ones.
      blobs: share of the picture lost in patches. shiny: share of what shines that is lost.
      edges: share of the pixels at an edge of depth that are lost. blackout: share of whole pictures that are lost.
    """

    baseline: float = 0.018
    steps: float = 32.0
    width: float = 480.0
    nearest: Range = (0.06, 0.08)
    scale: Range = (0.98, 1.02)
    noise: Range = (0.02, 0.15)
    shadow: float = 0.5
    speckles: Range = (0.0, 0.015)
    dropout: Range = (0.0, 0.03)
    blobs: Range = (0.0, 0.06)
    shiny: Range = (0.0, 1.0)
    edges: Range = (0.0, 0.6)
    blackout: Range = (0.0, 0.03)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, nearest=(0.0, 0.3), scale=(0.5, 2.0), noise=(0.0, 2.0))
        shares = ("speckles", "dropout", "blobs", "shiny", "edges", "blackout")
        _check_ranges(self, **dict.fromkeys(shares, (0.0, 1.0)))
        _check_shares(self, "shadow")
        for name in ("baseline", "steps", "width"):
            check(getattr(self, name) > 0, f"{name} must be positive")


@dataclasses.dataclass(frozen=True)
class MountRanges:
    """How a wrist camera sits and what it shows. Source: today's looks; docs/transfer.md.

    Attributes:
      position: +- along each axis of the camera's body (m). angle: most, about any axis (degrees).
      fov: of the whole field of view (degrees, added). principal: shift of the picture (pixels of 32).
    """

    position: tuple[float, float, float] = (0.0125, 0.005, 0.005)
    angle: float = 5.0
    fov: Range = (-3.0, 3.0)
    principal: Range = (-2.0, 2.0)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check_ranges(self, fov=(-20.0, 20.0), principal=(-16.0, 16.0))
        check(0 <= self.angle <= 90, "angle must be in 0..90 degrees")


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """The looks "transfer".

    Attributes:
      family: of generators: "train" or "held_out", which training never uses.
      causes: which of CAUSES differ; what is left out is as in the scene's own looks. Drawn independently: a cause has
        the same values whichever others there are.
      table_surface, room_surface: of the table; of walls and floor.
    """

    family: str = TRAIN
    causes: tuple[str, ...] = CAUSES
    table: TableRanges = TableRanges()
    table_surface: SurfaceRanges = SurfaceRanges()
    room_surface: SurfaceRanges = SurfaceRanges(period=(0.1, 1.0), contrast=(0.0, 0.6))
    objects: ObjectLookRanges = ObjectLookRanges()
    grippers: GripperRanges = GripperRanges()
    clutter: ClutterRanges = ClutterRanges()
    light: LightRanges = LightRanges()
    camera: CameraRanges = CameraRanges()
    depth: DepthRanges = DepthRanges()
    mount: MountRanges = MountRanges()

    def __post_init__(self) -> None:
        """Checks names.

        Raises:
          ConfigError: an unknown family or cause.
        """
        check(
            self.family in FAMILIES,
            f"Unknown family '{self.family}'.{did_you_mean(self.family, FAMILIES)}",
        )
        for cause in self.causes:
            check(cause in CAUSES, f"Unknown cause '{cause}'.{did_you_mean(cause, CAUSES)}")


TODAY, NOMINAL = "today", "nominal"
TRANSFER, TRANSFER_HELD_OUT = "transfer", "transfer held out"
# Sets of looks by name; None for those of `visual_randomization.TABLE`.
LOOKS: dict[str, TransferConfig | None] = {
    TODAY: None,
    NOMINAL: TransferConfig(causes=()),
    TRANSFER: TransferConfig(grippers=GripperRanges(fingers=(0.012, 0.004, 0.012))),
    TRANSFER_HELD_OUT: TransferConfig(family=HELD_OUT),
}


def find_looks(name: bool | str | TransferConfig) -> TransferConfig | None:
    """Returns the ranges of a set of looks; None for today's and for none at all.

    Args:
      name: one of LOOKS; true for "today", false for looks without randomization; or the ranges themselves.

    Raises:
      ConfigError: an unknown name.
    """
    if isinstance(name, bool):
        return None
    if isinstance(name, TransferConfig):
        return name
    if name not in LOOKS:
        raise ConfigError(f"Unknown looks '{name}'.{did_you_mean(name, LOOKS)}")
    return LOOKS[name]
