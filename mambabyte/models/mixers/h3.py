"""H3 (arXiv 2212.14052): a shift SSM and a diagonal SSM, S4D, between gates. `block=h3` puts the same gates
around any other mixer."""

from __future__ import annotations

from dataclasses import dataclass

from mambabyte.config.settings import setting
from mambabyte.models.mixers.blocks import H3Block
from mambabyte.models.mixers.mixer import Place
from mambabyte.models.mixers.s4d import S4D, S4DConfig


@dataclass
class H3Config(S4DConfig):
    d_conv: int = setting(default=4, at_least=1, at_most=10**5)  # states of the shift SSM

    def build(self, place: Place) -> H3Block:  # type: ignore[override]
        s4d = S4D(place.width, self.d_state, self.dt_min, self.dt_max, self.init)
        return H3Block(s4d, place.width, self.d_conv)
