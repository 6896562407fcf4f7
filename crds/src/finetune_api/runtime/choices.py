"""The choices that a plan makes and a trainer carries out. Separate from run_config.py, which needs pydantic."""

from enum import StrEnum


class Method(StrEnum):
    """What is trained."""

    FFT = "fft"
    """Full finetuning: every weight."""
    LORA = "lora"
    """Low-rank adapters on a frozen base."""
    QLORA = "qlora"
    """Low-rank adapters on a base in four or eight bits."""


class Engine(StrEnum):
    """Who owns gradients and optimizer state."""

    SINGLE = "single"
    DDP = "ddp"
    FSDP2 = "fsdp2"
    HSDP = "hsdp"
    """FSDP2 inside each node, replicated across nodes."""
    ZERO1 = "zero1"
    ZERO2 = "zero2"
    ZERO3 = "zero3"


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Number format of the forward and backward pass; master weights of trained parameters stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Rounding(StrEnum):
    """How fp32 weights become the bf16 ones that the model computes with."""

    STOCHASTIC = "stochastic"
    """Up or down at random, with the weight as the mean: small updates are seen at once."""
    NEAREST = "nearest"


class WeightFormat(StrEnum):
    """What the optimizer keeps of a weight of full finetuning between two steps."""

    FP32 = "fp32"
    BF16 = "bf16"
    """Only the bf16 weight that the model computes with, rounded stochastically after each update: 4 bytes less."""


class OptimizerName(StrEnum):
    """How trained weights are updated."""

    ADAMW = "adamw"
    """AdamW (Loshchilov and Hutter 2019)."""
    ADAMW_8BIT = "adamw_8bit"
    """The same, with moments in eight bits between two steps (Dettmers et al. 2022)."""


class BaseFormat(StrEnum):
    """How the matrices of a frozen base are stored: four bits an element with a scale for every 64, or eight."""

    NF4 = "nf4"
    """Quantiles of the normal distribution, which weights resemble (Dettmers et al. 2023)."""
    FP4 = "fp4"
    INT8 = "int8"
    """Integers, with a scale for every row (the weights of LLM.int8, Dettmers et al. 2022)."""


class Recompute(StrEnum):
    """Which layers compute their activations again in the backward pass, instead of keeping them."""

    NONE = "none"
    SELECTIVE = "selective"
    """Every second one."""
    FULL = "full"
    AUTO = "auto"
    """As few as the memory of the device allows."""


class OnBadRow(StrEnum):
    REFUSE = "refuse"
    SKIP = "skip"


class LoraBias(StrEnum):
    """Biases of the base that are trained beside adapters."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"
    """Those of layers with an adapter."""


class LoraInit(StrEnum):
    """What an adapter begins with: A, beside a B of zeros, or factors of a part of the base, which leaves it."""

    DEFAULT = "default"
    """Uniform, as Kaiming et al. (2015) initialise a linear layer; B is zero."""
    GAUSSIAN = "gaussian"
    """Normal, with a deviation of 1 / rank; B is zero."""
    OLORA = "olora"
    """From W = Q R, the first rows of R and columns of Q (Büyükakyüz 2024)."""
    PISSA = "pissa"
    """The largest singular values of W with their vectors (Meng et al. 2024)."""
    PISSA_NITER_1 = "pissa_niter_1"
    """The same by a randomised decomposition with N iterations (Halko et al. 2009)."""
    PISSA_NITER_2 = "pissa_niter_2"
    PISSA_NITER_4 = "pissa_niter_4"
    PISSA_NITER_8 = "pissa_niter_8"
    PISSA_NITER_16 = "pissa_niter_16"
    PISSA_NITER_32 = "pissa_niter_32"
    PISSA_NITER_64 = "pissa_niter_64"

    @property
    def changes_base(self) -> bool:
        """Whether a part of the base leaves it."""
        return self not in {LoraInit.DEFAULT, LoraInit.GAUSSIAN}
