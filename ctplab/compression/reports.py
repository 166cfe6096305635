"""What a compression did: to every weight matrix, and to the model as a whole."""

from dataclasses import dataclass, field

from torch import Tensor

from ctplab.models import Model
from ctplab.models.anatomy import blocks, parameter_name
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.specs import CompressionSpec

Parts = dict[str, Tensor]
NOTICED = 0.02
"""Share of the blocks' weights that may stay uncompressed without a word: routers, convolutions."""


@dataclass(frozen=True)
class LayerReport:
    """What happened to one weight matrix."""

    name: str
    method: str
    loss: float
    """Squared output error per token, summed over outputs."""
    fallback: str | None
    weights: int
    bytes: int
    products: str = "as the model"
    """The number format of the matrix products (see ``compression/products``)."""


@dataclass(frozen=True)
class CompressionReport:
    """What happened to a model, and the packed weights to save."""

    spec: CompressionSpec
    layers: tuple[LayerReport, ...]
    untouched: tuple[str, ...]
    """Parameters with at least two dimensions that were not compressed."""
    calibration: str
    """Fingerprint of the calibration tokens."""
    tokens: int
    """Calibration tokens."""
    seconds: float
    parts: dict[str, Parts] = field(repr=False)
    left: dict[str, int] = field(default_factory=dict)
    """Matrices inside the blocks that were not compressed -> their numbers of weights."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over the compressed matrices: codes, masks, scales and zeros."""
        return 8 * sum(layer.bytes for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def block_bits_per_weight(self) -> float:
        """The same over all matrices inside the blocks: those that were left as they are count 16 bits a weight."""
        left, done = sum(self.left.values()), sum(layer.weights for layer in self.layers)
        return (8 * sum(layer.bytes for layer in self.layers) + 16 * left) / (done + left)

    @property
    def warnings(self) -> list[str]:
        """What the user should know: fallbacks, weights left as they are, and Hessians of less than full rank."""
        found = [f"{layer.name}: {layer.fallback}" for layer in self.layers if layer.fallback]
        left, done = sum(self.left.values()), sum(layer.weights for layer in self.layers)
        if left > NOTICED * (done + left):
            names = sorted(self.left, key=lambda name: -self.left[name])
            found.append(
                f"{left / (done + left):.0%} of the blocks' weights were not compressed ({', '.join(names[:2])}, ...): "
                f"they are multiplied in a way that is not watched; all in all {self.block_bits_per_weight:.2f} bits a "
                "weight of the blocks"
            )
        widest = max((int(p["shape"][1]) for p in self.parts.values()), default=0)
        if self.tokens < widest:
            found.append(
                f"{self.tokens} calibration tokens are fewer than the {widest} columns of the widest matrix: its "
                "Hessian is singular but for the dampening; give more windows (samples=) or longer ones (seq_len=)"
            )
        return found


Done = list[tuple[LayerReport, Parts]]


def report_of(model: Model, done: Done, spec: CompressionSpec, calibration: Tensor, seconds: float):
    """The report on everything that :func:`walk` yielded."""
    layers = tuple(report for report, _ in done)
    names = {parameter_name(layer.name, model) for layer in layers}
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.ndim > 1 and n not in names}
    prefixes = tuple(f"{name}." for name, _ in blocks(model))
    left = {n: count for n, count in matrices.items() if n.startswith(prefixes)}
    parts = {report.name: parts for report, parts in done}
    return CompressionReport(
        spec, layers, tuple(matrices), tensor_fingerprint(calibration), calibration.numel(), seconds, parts, left
    )
