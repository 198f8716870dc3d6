"""MambaByte (arXiv 2401.13660): a stack of Mamba-1 blocks (arXiv 2312.00752, section 3.4) on raw bytes.

    B batch   L length   d model width   D = expand * d inner channels
    N state size   W convolution width   R rank of the step-size projection

A block adds mixer(norm(x)) to the residual stream x, which is fp32 even under autocast. The mixer projects to
x and z (B, L, D), convolves x causally, derives from it the step size and the projections B, C of the scan,
scans, gates by z and projects back. Parameter names are those of mamba_ssm's MambaLMHeadModel;
`checkpoints.formats` reads and writes its files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, ByteLM, FlopsPerByte, State
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import ResidualNorm, run_layers
from mambabyte.models.lora import is_adapted, weight_of
from mambabyte.models.mamba_stepper import MambaByteStepper
from mambabyte.models.meta_device import repeated
from mambabyte.models.ngram_embedding import NGramEmbedding
from mambabyte.models.projection import Projection, prepared_at_once
from mambabyte.models.selective_state_space import SelectiveStateSpace, scan_flops
from mambabyte.ops import backend_for, causal_conv1d
from mambabyte.ops.halves import halves
from mambabyte.ops.recomputation import recomputable
from mambabyte.ops.step import (
    EmbeddingWeights,
    KeptWeights,
    MambaBlockWeights,
    MambaWeights,
    PreparedMamba,
    mamba_step,
    step_backend,
)

if TYPE_CHECKING:
    from mambabyte.ops.step.drawing import TritonDrawing
    from mambabyte.ops.step.triton import TritonStepper


@dataclass
class MambaByteConfig(ByteLMConfig):
    """The paper's models are `norm: layer`, untied; `norm: rms`, tied are Mamba's own choices."""

    d_model: int = setting(default=256, at_least=1, at_most=10**6)
    n_layer: int = setting(default=4, at_least=1, at_most=10**4)
    d_state: int = setting(default=16, at_least=1, at_most=10**5)
    d_conv: int = setting(default=4, at_least=1, at_most=10**5)
    expand: int = setting(default=2, at_least=1, at_most=10**3)
    dt_rank: int | None = setting(default=None, at_least=1, at_most=10**6)  # ceil(d_model / 16) when null
    dt_min: float = setting(default=1e-3, at_least=1e-10, at_most=10**3)
    dt_max: float = setting(default=1e-1, above=0, at_most=10**3)
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    tie_embeddings: bool = False
    ngram: int = setting(default=1, at_least=1, at_most=16)
    ngram_buckets: int = setting(default=8192, at_least=1, at_most=10**9)
    ngram_width: int = setting(default=48, at_least=1, at_most=10**5)

    def __post_init__(self) -> None:
        self.require_ascending("dt_min", "dt_max")
        for name in ("ngram_buckets", "ngram_width") if self.ngram == 1 else ():
            value, default = getattr(self, name), getattr(type(self), name)
            if value != default:
                raise UserError(
                    f"model.ngram=1 embeds no n-grams, so model.{name}={value} would be ignored: set "
                    f"model.ngram=2 or more, or model.{name}={default}"
                )

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def time_step_rank(self) -> int:
        return self.dt_rank or math.ceil(self.d_model / 16)


class Mixer(SelectiveStateSpace):
    """A Mamba block without norm and residual connection: (B, L, d) -> (B, L, d). The output projection is
    divided by sqrt(layers), because it adds to the residual stream."""

    def __init__(self, config: MambaByteConfig) -> None:
        super().__init__()
        inner = config.d_inner
        self.in_proj = Projection(config.d_model, 2 * inner)
        # Only holds the weights; the op is `causal_conv1d`.
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.add_scan(inner, config.time_step_rank, config.d_state)
        self.out_proj = Projection(inner, config.d_model)
        self.initialise_scan(config.dt_min, config.dt_max)
        if not self.A_log.is_meta:  # which has no values
            with torch.no_grad():
                self.out_proj.weight.div_(math.sqrt(config.n_layer))

    def projected(self) -> list[Tensor]:
        """The weights of the projections, those within adapters too."""
        return [module.weight for module in self.modules() if isinstance(module, Projection)]

    def forward(
        self, hidden: Tensor, state: tuple[Tensor, ...] | None, document_start: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:  # fmt: skip
        conv_state, scan_state = (None, None) if state is None else state
        x, z = halves(self.in_proj(hidden))
        x, conv_state = self._convolve(x, conv_state, document_start, keep_state)
        y, scan_state = self.scan(x, z, scan_state, document_start)
        return self.out_proj(y), None if conv_state is None else (conv_state, scan_state)

    def _convolve(
        self, x: Tensor, state: Tensor | None, document_start: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        weight = self.conv1d.weight.squeeze(1)
        inputs = (x, weight, self.conv1d.bias, state, document_start)
        if keep_state:
            return _convolution(*inputs, return_final_state=True)
        # Named, so that backward takes the same one.
        backend = backend_for(x.device, x.dtype, "causal_conv1d", width=weight.shape[1])
        convolution = partial(_convolution, backend=backend)
        return recomputable(convolution(*inputs), convolution, *inputs), None


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, document_start: Tensor | None,
    **options: Any,
) -> Any:  # fmt: skip
    return causal_conv1d(x, weight, bias, state, document_start=document_start, **options)


class Block(nn.Module):
    """Add, norm, mix. The next block's norm adds this one's output to the residual stream."""

    def __init__(self, config: MambaByteConfig) -> None:
        super().__init__()
        self.norm = ResidualNorm(config.d_model, config.norm_epsilon, config.norm == "rms")
        self.mixer = Mixer(config)

    def forward(
        self, residual: Tensor, update: Tensor | None, state: tuple[Tensor, ...] | None,
        document_start: Tensor | None, keep_state: bool,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:  # fmt: skip
        normed, residual = self.norm(residual, update)
        update, state = self.mixer(normed, state, document_start, keep_state)
        return residual, update, state

    def weights(self) -> MambaBlockWeights:
        norm, mixer, conv = self.norm, self.mixer, self.mixer.conv1d
        return MambaBlockWeights(
            norm.weight, norm.bias, weight_of(mixer.in_proj),
            conv.weight.squeeze(1), conv.bias,  # type: ignore[arg-type]
            weight_of(mixer.x_proj), weight_of(mixer.dt_proj), mixer.dt_proj.bias,
            mixer.A_log, mixer.D, weight_of(mixer.out_proj),
        )  # fmt: skip


class Backbone(nn.Module):
    def __init__(self, config: MambaByteConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, config.d_model)
        if config.ngram > 1:
            self.ngram_embedding = NGramEmbedding(
                config.ngram, config.ngram_buckets, config.ngram_width, config.d_model
            )
        self.layers = nn.ModuleList(repeated(partial(Block, config), config.n_layer))
        self.norm_f = ResidualNorm(config.d_model, config.norm_epsilon, config.norm == "rms")


class MambaByte(ByteLM):
    """The paper's model. Each layer's state is its last W-1 inputs (B, W-1, D) and the scan's (B, D, N). With
    n-gram embeddings, which the paper has not, the last bytes come before them."""

    config: MambaByteConfig
    recurrent = True

    def __init__(self, config: MambaByteConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        self.add_further_heads()
        self._kept_weights = KeptWeights()

    def hidden(
        self, bytes: Tensor | bytes, state: State | None = None, document_start: Tensor | None = None
    ) -> Tensor:
        bytes = self.as_batch(bytes, state, document_start)
        return self._read(bytes, state, document_start, keep_state=False)[0]

    def prefill_hidden(self, bytes: Tensor | bytes, state: State | None = None) -> tuple[Tensor, State]:
        return self._read(self.as_batch(bytes, state), state, None, keep_state=True)

    def step(self, byte: Tensor | bytes, state: State) -> tuple[Tensor, State]:
        if step_backend(self.lm_head.weight) != "cpu":
            return super().step(byte, state)
        if not self._kept_weights.any and is_adapted(self):  # of which nothing is ever kept
            return super().step(byte, state)
        column = self.as_column(byte)
        try:
            history, layers = self._parts(state)
            x, history = self._embed(column, history)
            logits, layers = mamba_step(x[:, 0], layers, self._kept_weights.prepare(self, self.step_weights))
        except Exception:  # each byte has no time for a look at the caller's mistakes
            self.as_batch(column, state)
            raise
        return logits, history + layers

    def stepper(
        self, state: State, weights: str = "fp32", keep_hidden: bool = False
    ) -> MambaByteStepper | TritonStepper:
        """What goes on from a copy of the state, where `step_backend` names a kernel. It reads today's
        parameters, and does not notice when others take their place. On CUDA it steps only.

        Args:
            weights: how the linear layers and the head are stored: see `PreparedMamba` for a CPU and
                `TritonStep` for CUDA.
            keep_hidden: see `MambaStepper`; on CUDA it is not to be had.
        """
        if step_backend(self.lm_head.weight) == "triton":
            from mambabyte.ops.step.triton import TritonStepper

            history, layers = self._parts(state)
            before = history[0][0] if history else None
            return TritonStepper(self.step_weights(), self._embedding_weights(), before, layers, weights)
        prepared = PreparedMamba(self.step_weights(), weights, self._embedding_weights())
        return MambaByteStepper(self, prepared, state, keep_hidden)

    def drawing(
        self, state: State, logits: Tensor, temperature: float, top_k: int | None, top_p: float | None,
        seed: int, weights: str = "fp32",
    ) -> TritonDrawing:  # fmt: skip
        """What draws the bytes after a state and its logits (B, 256) on a CUDA device, where `step_backend`
        says `triton`."""
        from mambabyte.ops.step.drawing import TritonDrawing

        history, layers = self._parts(state)
        before = history[0][0] if history else None
        return TritonDrawing(
            self.step_weights(), self._embedding_weights(), before, layers, logits, temperature, top_k, top_p,
            seed, weights,
        )  # fmt: skip

    def step_weights(self) -> MambaWeights:
        """What `PreparedMamba` takes: what the layers compute with, their adapters included."""
        backbone, config = self.backbone, self.config
        blocks = [layer.weights() for layer in backbone.layers]  # type: ignore[operator]
        return MambaWeights(
            blocks, backbone.norm_f.weight, backbone.norm_f.bias, weight_of(self.lm_head),
            config.norm_epsilon, config.norm == "rms",
        )  # fmt: skip

    def _embedding_weights(self) -> EmbeddingWeights:
        backbone, longest = self.backbone, self.config.ngram
        if longest == 1:
            return EmbeddingWeights(backbone.embedding.weight)
        ngrams = backbone.ngram_embedding
        projection = weight_of(ngrams.projection)
        return EmbeddingWeights(backbone.embedding.weight, longest, ngrams.tables, projection)

    def initial_state(self, batch_size: int) -> State:
        config, zeros = self.config, self.lm_head.weight.new_zeros
        shapes = [(config.d_conv - 1, config.d_inner), (config.d_inner, config.d_state)]
        layers = [tuple(zeros(batch_size, *shape) for shape in shapes) for _ in range(config.n_layer)]
        if config.ngram == 1:
            return layers
        return [(self.backbone.ngram_embedding.initial_history(batch_size),), *layers]

    def _read(
        self, bytes: Tensor, state: State | None, document_start: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, State]:
        """What the heads read and, with `keep_state`, the state after the bytes."""
        backbone = self.backbone
        mixers: list[Any] = [layer.mixer for layer in backbone.layers]
        history, layers = ([], None) if state is None else self._parts(state)
        x, history = self._embed(bytes, history, document_start)
        with prepared_at_once([w for m in mixers for w in m.projected()], [m.A_log for m in mixers]):
            out, layers = run_layers(backbone.layers, backbone.norm_f, x, layers, document_start, keep_state)
        return out, history + layers

    def _parts(self, state: State) -> tuple[State, State]:
        """The state of the n-grams, if there are any, and that of the layers."""
        ngrams = int(self.config.ngram > 1)
        return state[:ngrams], state[ngrams:]

    def _embed(
        self, bytes: Tensor, history: State, document_start: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The layers' input (B, L, d), and the state of the n-grams after it."""
        x = self.backbone.embedding(bytes.long())
        if self.config.ngram == 1:
            return x, []
        before = history[0][0] if history else None
        added, after = self.backbone.ngram_embedding(bytes, before, document_start)
        return x + added, [(after,)]

    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.layers)

    def matrices(self, block: nn.Module) -> list[nn.Module]:
        return [block.mixer.in_proj, block.mixer.out_proj]  # type: ignore[union-attr, list-item]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """Matrix products, convolution, scan, the head, at any context length."""
        config = self.config
        d, inner, rank, states = config.d_model, config.d_inner, config.time_step_rank, config.d_state
        layer = 2 * inner * (3 * d + config.d_conv) + scan_flops(inner, rank, states)
        ngrams = 2 * (config.ngram - 1) * config.ngram_width * d
        return self.flops(config.n_layer * layer + 2 * d * VOCABULARY + ngrams)


MambaByteConfig.model = MambaByte
