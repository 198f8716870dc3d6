"""MegaByte (arXiv 2305.07185, section 2): a global Transformer over patches of P bytes, a local one in each.

    T bytes   P patch size   D global width   D_G = D / P   D_L local width

The global input of patch k is the concatenation of its P byte embeddings of width D_G, with positions added.
A trainable patch is put in front and the last one dropped, so the global output for patch k has seen the
patches before it. Its P slices of width D_G, projected to D_L, are added slot by slot to the local input: the
embedding of the byte before, or a trainable pad in slot 0. The output of slot p of patch k predicts byte
kP + p; the head is the local embedding.

`logits[:, t]` is therefore the paper's output at place t + 1; if t + 1 begins a patch, it is slot 0 of a
patch of which no byte is known. Place 0, a document's first byte, is never predicted here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mambabyte.config.settings import setting
from mambabyte.errors import UserError
from mambabyte.models.byte_lm import VOCABULARY, FlopsPerByte, State
from mambabyte.models.documentwise import DocumentwiseByteLM
from mambabyte.models.hyperparameters import ByteLMConfig
from mambabyte.models.layers import Stack, initialise
from mambabyte.models.states import map_tensors


@dataclass
class MegaByteConfig(ByteLMConfig):
    patch_size: int = setting(default=4, at_least=1, at_most=10**6)
    max_length: int = setting(
        default=8192, at_least=1, at_most=2**30
    )  # positions of bytes the global model knows
    d_model: int = setting(default=192, at_least=1, at_most=10**6)
    n_layer: int = setting(default=2, at_least=1, at_most=10**4)
    n_head: int = setting(default=4, at_least=1, at_most=10**5)
    d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 4 * d_model when null
    local_d_model: int = setting(default=192, at_least=1, at_most=10**6)
    local_n_layer: int = setting(default=2, at_least=1, at_most=10**4)
    local_n_head: int = setting(default=4, at_least=1, at_most=10**5)
    local_d_ff: int | None = setting(default=None, at_least=1, at_most=10**7)  # 4 * local_d_model when null
    norm_epsilon: float = setting(default=1e-5, at_least=1e-12, at_most=1)
    initializer_std: float = setting(default=0.006, above=0, at_most=10**3)  # the paper's
    embedding_std: float = setting(default=0.006, above=0, at_most=10**3)  # of the bytes' embeddings

    def __post_init__(self) -> None:
        self.require_multiple("d_model", "n_head", 2)
        self.require_multiple("local_d_model", "local_n_head", 2)
        self.require_multiple("d_model", "patch_size")


class MegaByte(DocumentwiseByteLM):
    """The state holds the context of the current patch (B, P, D_L) and its bytes so far (B, r); then keys and
    values, for the pad and the patches read in each global layer, and for slots 0 .. r in each local one."""

    config: MegaByteConfig

    def __init__(self, config: MegaByteConfig) -> None:
        super().__init__(config)
        patch, width, local = config.patch_size, config.d_model // config.patch_size, config.local_d_model
        self.global_embedding = nn.Embedding(VOCABULARY, width)
        self.global_positions = nn.Embedding(config.max_length, width)
        self.global_pad = nn.Embedding(patch, width)
        self.global_stack = Stack(
            config.d_model, config.n_layer, config.n_head, config.d_ff, config.norm_epsilon,
            rms=False, activation="relu",
        )  # fmt: skip
        self.to_local = nn.Linear(width, local, bias=False)
        self.local_embedding = nn.Embedding(VOCABULARY, local)
        self.local_positions = nn.Embedding(patch, local)
        self.local_pad = nn.Embedding(1, local)
        self.local_stack = Stack(
            local, config.local_n_layer, config.local_n_head, config.local_d_ff, config.norm_epsilon,
            rms=False, activation="relu",
        )  # fmt: skip
        self.lm_head = nn.Linear(local, VOCABULARY, bias=False)
        std = config.initializer_std
        initialise(self, std, depth=1, truncated=True)
        initialise(self.global_stack, std, config.n_layer, truncated=True)
        initialise(self.local_stack, std, config.local_n_layer, truncated=True)
        for embedding in (self.global_embedding, self.local_embedding):
            nn.init.normal_(embedding.weight, std=config.embedding_std)
        self.lm_head.weight = self.local_embedding.weight
        self.add_further_heads()

    def initial_state(self, batch_size: int) -> State:
        config, weight = self.config, self.lm_head.weight
        context = weight.new_zeros(batch_size, config.patch_size, config.local_d_model)
        nothing = weight.new_zeros(batch_size, 0, dtype=torch.int64)
        caches = self.global_stack.empty_caches(batch_size) + self.local_stack.empty_caches(batch_size)
        return [(context, nothing), *caches]

    def _read(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        if state is None:
            return self._read_patches(bytes, None)
        begun = state[1][0].shape[1] > 0
        if begun and (state[0][1].shape[1] > 0 or bytes.shape[1] < self.config.patch_size):
            return self._read_within_patch(bytes, state)
        return self._read_patches(bytes, state)

    def _read_patches(self, bytes: Tensor, state: State | None) -> tuple[Tensor, State]:
        """From the start of a patch: all patches at once through the global model, then the local one."""
        patch, (batch, length) = self.config.patch_size, bytes.shape
        whole = length // patch * patch
        before = None if state is None else state[1 : 1 + self.config.n_layer]
        contexts, global_caches = self._global(bytes[:, :whole], before)
        if state is not None and contexts.shape[1] == whole // patch:
            contexts = torch.cat([state[0][0].unsqueeze(1).to(contexts.dtype), contexts], dim=1)
        patches = contexts.shape[1]
        previous = pad(bytes, (0, patches * patch - length)).view(batch * patches, patch)[:, :-1]
        fresh = None if state is None else self.local_stack.empty_caches(batch * patches)
        out, local_caches = self._local(contexts.flatten(0, 1), previous, 0, fresh)
        hidden = out.reshape(batch, patches * patch, -1)[:, 1 : length + 1]
        if state is None:
            return hidden, []
        known = length - whole + 1
        last = map_tensors(lambda x: x.unflatten(0, (batch, patches))[:, -1, :known], local_caches)
        return hidden, [(contexts[:, -1], bytes[:, whole:].long()), *global_caches, *last]

    def _read_within_patch(self, bytes: Tensor, state: State) -> tuple[Tensor, State]:
        """From inside a patch to its end. The byte that completes it takes one step of the global model."""
        patch, split = self.config.patch_size, 1 + self.config.n_layer
        context, read = state[0]
        global_caches, local_caches = state[1:split], state[split:]
        slots, needed = bytes[:, : patch - 1 - read.shape[1]], patch - read.shape[1]
        hidden = []
        if slots.shape[1]:
            out, local_caches = self._local(context, slots, read.shape[1] + 1, local_caches)
            hidden.append(out)
        read = torch.cat([read, bytes[:, :needed].long()], dim=1)
        if read.shape[1] == patch:
            contexts, global_caches = self._global(read, global_caches)
            context, read = contexts[:, 0], read[:, :0]
            out, local_caches = self._local(context, read, 0, self.local_stack.empty_caches(len(bytes)))
            hidden.append(out)
        after: State = [(context, read), *global_caches, *local_caches]
        if bytes.shape[1] > needed:
            out, after = self._read(bytes[:, needed:], after)
            hidden.append(out)
        return torch.cat(hidden, dim=1), after

    def _global(self, bytes: Tensor, caches: State | None) -> tuple[Tensor, State]:
        """Context (B, K, P, D_L) of the patches after those in `bytes`; without caches, also the first."""
        patch, (batch, length) = self.config.patch_size, bytes.shape
        known = 0 if caches is None else caches[0][0].shape[1]
        first = max(0, known - 1) * patch
        if first + length > self.config.max_length:
            raise UserError(
                f"this MegaByte has positions for {self.config.max_length} bytes and was given "
                f"{first + length}; use shorter windows, or train with a larger model.max_length"
            )
        positions = torch.arange(first, first + length, device=bytes.device)
        x = self.global_embedding(bytes.long()) + self.global_positions(positions)
        x = x.reshape(batch, length // patch, self.config.d_model)
        if known == 0:
            x = torch.cat([self.global_pad.weight.reshape(1, 1, -1).expand(batch, 1, -1), x], dim=1)
        if x.shape[1] == 0:
            return x.new_zeros(batch, 0, patch, self.config.local_d_model), caches or []
        out, caches = self.global_stack(x, caches)
        return self.to_local(out.unflatten(-1, (patch, -1))), caches

    def _local(
        self, context: Tensor, previous: Tensor, first: int, caches: State | None
    ) -> tuple[Tensor, State]:
        """What the head reads (N, slots, D_L) in the slots of N patches from slot `first` on, given their
        context (N, P, D_L) and the byte before each slot, except for slot 0, which gets the pad."""
        x = self.local_embedding(previous.long())
        if first == 0:
            x = torch.cat([self.local_pad.weight.expand(len(x), 1, -1), x], dim=1)
        slots = slice(first, first + x.shape[1])
        x = x + self.local_positions.weight[slots] + context[:, slots]
        return self.local_stack(x, caches)

    def blocks(self) -> list[nn.Module]:
        return [*self.global_stack.layers, *self.local_stack.layers]

    def flops_per_byte(self, context_length: int) -> FlopsPerByte:
        """A patch's global step divided by its bytes, and a local step over P keys for each byte."""
        config = self.config
        patch, local = config.patch_size, config.local_d_model
        global_step = self.global_stack.flops(context_length / patch) / patch
        projections = 2 * (config.d_model // patch) * local + 2 * local * VOCABULARY
        return self.flops(global_step + self.local_stack.flops(patch) + projections)

    def uses_per_byte(self, layer: str) -> float:
        return 1 / self.config.patch_size if layer.startswith("global_stack.") else 1.0


MegaByteConfig.model = MegaByte
