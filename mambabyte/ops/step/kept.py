"""A module's prepared weights, from one step to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor, nn

from mambabyte.ops.step.cpu import MambaWeights, PreparedMamba


class KeptWeights:
    """Prepares a module's weights, unless it has the same parameters as at the last call.

    What is kept reads the parameters themselves, so a change of their values, by an optimizer, by
    `load_state_dict` or through `.data`, needs no notice. Other tensors, memory or submodules in their place
    are noticed. Copies and unpickled objects begin with nothing kept.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def __reduce__(self) -> tuple[type[KeptWeights], tuple[()]]:
        return KeptWeights, ()

    @property
    def any(self) -> bool:
        """Whether the last call's are kept."""
        return self._kept is not None

    def prepare(self, module: nn.Module, weights: Callable[[], MambaWeights]) -> PreparedMamba:
        """The fp32 weights of the module, which `weights` collects."""
        kept = self._kept
        if kept is not None and kept.is_current():
            return kept.prepared
        prepared, parameters = PreparedMamba(weights()), list(module.parameters())
        addresses = [parameter.data_ptr() for parameter in parameters]
        self._kept = None
        if prepared.addresses.issubset(addresses):  # no copies, and nothing that hooks have computed
            registries = [names for m in module.modules() for names in (m._modules, m._parameters)]
            self._kept = _Kept(prepared, registries, _registered(registries), parameters, addresses)
        return prepared


class _Kept(NamedTuple):
    prepared: PreparedMamba
    registries: list[dict[str, Any]]  # each module's own, of its submodules and parameters
    registered: list[Any]
    parameters: Sequence[Tensor]
    addresses: list[int]

    def is_current(self) -> bool:
        registered = _registered(self.registries)
        return (
            len(registered) == len(self.registered)
            and all(map(is_, registered, self.registered))
            and list(map(Tensor.data_ptr, self.parameters)) == self.addresses
            and all(map(Tensor.is_contiguous, self.parameters))
        )


def _registered(registries: list[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, registries)))
