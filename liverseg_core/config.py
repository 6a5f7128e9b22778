"""Settings: one frozen section per stage. Flags > environment > YAML > defaults (flows/settings.py merges).

A core function gets only its own section, and that section is exactly what its artifact's key hashes and
what MLflow records. What changes speed but never results (workers, device) lives in `compute` alone.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Triple = tuple[PositiveInt, PositiveInt, PositiveInt]
Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Probability = Annotated[float, Field(ge=0, le=1)]


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError("the lower end first, then a higher one")
    return window


def _each_once(axes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError("each axis once")
    return axes


def _listed(hosts: object) -> object:
    """One name alone is what an environment variable most often holds."""
    return [name.strip() for name in hosts.split(",")] if isinstance(hosts, str) else hosts


class Section(BaseModel):
    """A frozen section that refuses unknown keys and numbers that JSON, and so no key, can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    def canonical(self) -> dict[str, Any]:
        """The section as plain JSON values, for keys and for tracking."""
        return self.model_dump(mode="json")


class IngestConfig(Section):
    """How a scan becomes a stored case."""

    spacing_mm: Spacing | None = (1.0, 1.0, 1.0)
    """Target spacing; null keeps the scan's own, times `shrink`."""
    shrink: PositiveFloat = 1.0
    """With `spacing_mm: null`: 2 halves every axis."""
    interpolation: Literal["linear", "cubic"] = "linear"
    """Of the scan. Cubic (third order) is sharper, and overshoots at hard borders."""
    label_interpolation: Literal["vote", "nearest"] = "vote"
    positions_per_class: PositiveInt = 2000
    """How many voxel positions of each class a case remembers for patch sampling."""
    spacing_overrides: Annotated[str | None, Field(exclude=True)] = None
    """A CSV `case,x,y,z` in mm, maybe with `axes` such as LPS behind, that corrects wrong headers; in
    the keys of the cases it names alone."""


class SplitConfig(Section):
    """Which cases train and which validate."""

    validation: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = 0.2
    """A number of cases, or a fraction of the labelled ones."""
    seed: int = 0
    datalist: str | None = None
    """A `dataset_0.json` with `training` and `validation` lists; overrides the draw."""
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    """Cross-validation: this fold validates, counted from 0, in place of the drawn cases; all: each in turn,
    and their models together as one."""

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> Self:
        if isinstance(self.fold, int) and self.fold >= self.folds:
            raise ValueError(f"a fold from 0 to {self.folds - 1}, or all")
        if self.fold is not None and self.datalist is not None:
            raise ValueError("folds, or a datalist")
        return self


class NetworkConfig(Section):
    """A network by name. What a network does not know keeps its default, or the settings are refused."""

    name: Literal["unet", "ahnet", "resenc"] = "unet"
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (16, 32, 64, 128)
    """Features of each level; each level below the first halves every axis. unet, resenc."""
    norm: Literal["instance", "batch"] = "instance"
    """unet, resenc; ahnet has batch norm."""
    residual_units: Annotated[int, Field(ge=0)] = 1
    """Residual units a level; 0: plain convolutions. unet."""
    blocks: tuple[PositiveInt, ...] | None = None
    """Residual blocks of each level. resenc: 1, 3, 4, then 6 a level; ahnet: its four are 3, 4, 6, 3."""
    psp_blocks: Annotated[int, Field(ge=0, le=4)] = 2
    """Pyramid pooling at so many scales: each doubles what x and y of a patch must divide by. ahnet."""
    upsample: Literal["transpose", "trilinear", "nearest"] = "transpose"
    """Only transpose is deterministic on a GPU. ahnet."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = {
            "unet": {"channels", "norm", "residual_units"},
            "ahnet": {"blocks", "psp_blocks", "upsample"},
            "resenc": {"channels", "norm", "blocks"},
        }[self.name]
        for name, field in type(self).model_fields.items():
            if name not in {"name", *known} and getattr(self, name) != field.default:
                raise ValueError(f"no {name} with {self.name}, which knows {', '.join(sorted(known))}")
        levels = 4 if self.name == "ahnet" else len(self.channels)
        if self.blocks is not None and len(self.blocks) != levels:
            raise ValueError(f"blocks for each of the {levels} levels of {self.name}")
        return self


class AugmentConfig(Section):
    """What happens to a patch, each with its probability; in this order, as a scanner would have it."""

    affine_probability: Probability = 0.0
    """torchio's RandomAffine, around the patch's centre."""
    scales: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Scale factors of each axis are drawn from 1 − scales to 1 + scales."""
    degrees: Annotated[float, Field(ge=0)] = 10.0
    label_interpolation: Literal["nearest", "vote"] = "nearest"
    """Vote: the class with the largest linear weight, which leaves no steps on a border."""
    flip_probability: Probability = 0.0
    """Of each axis by itself. A flipped abdomen is nobody's."""
    gamma_probability: Probability = 0.0
    log_gamma: PositiveFloat = 0.3
    brightness_probability: Probability = 0.0
    brightness: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Intensities are multiplied by a factor from 1 − brightness to 1 + brightness; 0 is mid-window."""
    contrast_probability: Probability = 0.0
    contrast: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """As brightness, but about the patch's mean and within its range."""
    blur_probability: Probability = 0.0
    blur_sigma: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)] = (0.5, 1.0)
    """Gaussian, in voxels, drawn for each axis."""
    low_resolution_probability: Probability = 0.0
    smallest_zoom: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Down to this share of the voxels along each axis and up again."""
    noise_probability: Probability = 0.0
    noise_std: PositiveFloat = 0.1
    """The largest, in units of the normalised intensity."""
    on: Literal["loader", "device"] = "loader"
    """Device: the loader only reads, and the device that trains augments. The same patches but for rounding,
    and other noise."""


class TrainConfig(Section):
    """The training recipe."""

    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    patch_size: Triple = (96, 96, 96)
    batch_size: PositiveInt = 2
    """Patches of a step, over all processes."""
    steps: PositiveInt = 26_250
    class_mixture: Annotated[tuple[Probability, ...], Field(min_length=3, max_length=5)] = (0.2, 0.3, 0.5)
    """How often a patch is drawn around background, liver, tumour, any voxel of both, or anywhere at all."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How far from the patch's centre the drawn voxel may lie, as a share of half a patch."""
    window_hu: Annotated[tuple[float, float], AfterValidator(_rising)] = (-200.0, 300.0)
    """Mapped linearly to (−1, 1), clipped outside."""
    loader: Literal["stream", "queue"] = "stream"
    """Queue: torchio's, for comparison. Slow, reads whole volumes, and starts a new epoch when resumed."""
    queue_volume: Triple = (256, 256, 200)
    """Cropped or padded to this before patches are drawn. queue."""
    loss: Literal["dice", "dice_ce", "bce"] = "dice_ce"
    batch_dice: bool = True
    """One Dice over all voxels of a step's patches; false: the mean of each patch's."""
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Nesterov's, of sgd."""
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from nothing to its full value."""
    gradient_clip: PositiveFloat | None = 12.0
    accumulate: PositiveInt = 1
    """Parts that a step's batch is computed in, one after another; batch norm and Dice see one part."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which then is what is validated and becomes the model."""
    validate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between validations during training; 0: none."""
    validate_cases: PositiveInt = 4
    """So many of the validation cases take part in them."""
    patience: PositiveInt | None = None
    """Training ends after so many validations without a better one."""
    start_from: Annotated[str | None, Field(exclude=True)] = None
    """A model whose weights training begins with: models:/NAME@ALIAS, runs:/ID or a folder. Its weights are
    in the key, whatever they are called."""
    choose: Literal["last", "best"] = "last"
    """Which weights become the model: the last, or those with the best validation."""
    checkpoint_every: PositiveInt = 100
    log_every: PositiveInt = 10
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"a batch_size that accumulate = {self.accumulate} divides")
        if not self.validate_every and (self.patience or self.choose == "best"):
            raise ValueError("validate_every above 0 with patience or choose: best")
        return self


class EvaluateConfig(Section):
    """Sliding-window inference, what becomes of its labels, and what is shown of it."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of a window that overlaps its neighbour."""
    weights: Literal["gaussian", "hann", "constant"] = "hann"
    """How much the voxels of a window count, from its middle to its faces."""
    batch_size: PositiveInt = 4
    mirror: Annotated[tuple[Literal["x", "y", "z"], ...], AfterValidator(_each_once)] = ()
    """Windows are predicted mirrored along these axes too, in every combination: 2, 4 or 8 times the work."""
    air_hu: float | None = -500.0
    """Windows with no voxel from here up are background unpredicted; null: none."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Of the network on a GPU; a CPU computes in fp32, and windows are added up in it everywhere."""
    largest_liver: bool = False
    """Only the largest connected part of liver and tumour is kept."""
    tumour_inside_liver: bool = False
    """Tumours that no liver adjoins become background."""
    smallest_lesion_ml: Annotated[float, Field(ge=0)] = 0.0
    """Predicted tumours smaller than this become liver."""
    tune: bool = False
    """These three are chosen instead, as they make the validation cases best, and recorded with the model."""
    pictures: Annotated[int, Field(ge=0)] = 4
    """How many of the worst cases get an overlay picture."""
    nsd_tolerance_mm: Annotated[float, Field(gt=0, le=100)] = 2.0
    """What the normalised surface distance forgives; published tables name theirs (docs/measures.md)."""


class RegisterConfig(Section):
    """Where models are tracked and when one becomes champion."""

    model: str = "liverseg"
    experiment: str = "liverseg"
    tracking_uri: str | None = None
    """Default: SQLite beside the store."""
    patience_s: Annotated[float, Field(ge=0, exclude=True)] = 120.0
    """How long a stage waits for a tracking server that does not answer."""
    tolerance: Annotated[float, Field(ge=0, exclude=True)] = 0.0
    """A candidate whose mean Dice (of liver and tumour, by case) is lower by no more than this still becomes
    champion. In no key, like the limits below: they decide who is champion, not what is registered."""
    liver_loss: Annotated[float, Field(ge=0, exclude=True)] = 0.01
    """A candidate is refused when its liver Dice is surely lower by more than this, whatever tumours say."""
    tumour_loss: Annotated[float, Field(ge=0, exclude=True)] = 0.03
    """The same of its tumour Dice; a tumour found where there is none counts as 0, none as 1."""
    confidence: Annotated[float, Field(gt=0, lt=1, exclude=True)] = 0.95
    """How sure: of the paired bootstrap's interval, the upper end must be below."""


class RetrainConfig(Section):
    """How a model is trained again when data has come."""

    warm_start: bool = True
    """Begin with the champion's weights; its network must be the recipe's."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of a training that begins so; None: `train.steps`."""


class ReportConfig(Section):
    """What the report of an evaluation shows of single cases."""

    worst: Annotated[int, Field(ge=0)] = 5
    """Cases shown in three planes, lowest Dice first."""
    viewed: Annotated[int, Field(ge=0)] = 3
    """Cases to scroll through in the page, lowest tumour Dice first."""
    filmed: Annotated[int, Field(ge=0)] = 2
    """Cases of which films are made."""
    megabytes: Annotated[float, Field(gt=0)] = 15.0
    """The page's size at most; volumes in it are made coarser until they fit."""


class ComputeConfig(Section):
    """Changes how fast, never what: in no key."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Dask worker processes; null: one per core, fewer where memory is short; 0: no Dask, in this process."""
    dask: str | None = None
    """Address of a running Dask scheduler."""
    train_deployment: str | None = None
    """A Prefect deployment of the flow `train` that is to train, say on GPUs; null: this process does."""
    device: str = "auto"
    processes: PositiveInt = 1
    """Processes that share each step's batch in training, one GPU each."""
    compile: bool = False
    """torch.compile the network; results agree to rounding."""
    channels_last: bool | None = None
    """Order of a network's voxels in memory; null: with channels last on a GPU, which prefers it."""
    deterministic: bool = False
    """Deterministic kernels on the GPU too, where there are any; on the CPU they always are. With ahnet torch
    warns of its pooling, which repeats all the same unless `upsample` is trilinear."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    resident_mb: Annotated[int, Field(ge=0)] = 2048
    """Training cases that fit in this much memory together are read once."""

    @model_validator(mode="after")
    def _a_gpu_each(self) -> Self:
        if self.processes > 1 and self.device.startswith("cuda:"):
            raise ValueError(f"device cuda or auto with processes = {self.processes}: each takes a GPU")
        return self


class S3Config(Section):
    """How a server is asked: in no key."""

    endpoint: str | None = None
    """Another S3 server; default: where AWS_ENDPOINT_URL points, then AWS."""
    region: str | None = None
    anonymous: bool = False
    """Read S3 without credentials: public buckets."""
    attempts: PositiveInt = 6
    """How often a request is made before its failure counts."""
    backoff_s: PositiveFloat = 0.5
    """Wait before the second attempt; it doubles each time."""
    timeout_s: PositiveFloat = 30.0
    """Longest silence of a server; a request ends after ten times as long."""


class RemoteConfig(S3Config):
    """How a source behind s3:// or https:// is read: in no key."""

    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Hosts, or host:port, that may be asked over plain HTTP and at addresses that are not public."""


class StorageConfig(S3Config):
    """How a store behind s3:// is reached: in no key."""

    copies: str | None = None
    """Folder of each machine for work under way and for copies of what is read; default: the user's cache."""


class Settings(Section):
    """The whole configuration."""

    source: str | None = None
    source_md5: str | None = None
    """Expected MD5 of the tar; checking it reads the whole tar."""
    store: Annotated[str, Field(pattern=r"^([^:]+|s3://[^/:?#]+(/[^?#]*)?)$")] = "liverseg-store"
    """A folder, or `s3://bucket/prefix`."""
    ingest: IngestConfig = IngestConfig()
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")
    report: ReportConfig = ReportConfig()
    retrain: RetrainConfig = RetrainConfig()
    compute: ComputeConfig = ComputeConfig()
    remote: RemoteConfig = RemoteConfig()
    storage: StorageConfig = StorageConfig()
