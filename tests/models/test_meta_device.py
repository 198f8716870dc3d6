"""What a model on the meta device is: the model that `build` makes, without values, and quickly there."""

import subprocess
import sys

import pytest
import torch

from mambabyte.models import MambaByteConfig
from mambabyte.models.meta_device import on_meta_device, repeated
from tests.models.every_model import MODELS


def described(model):
    """All that loading takes over from a model without values."""
    return {
        name: (parameter.shape, parameter.dtype, parameter.requires_grad, parameter.__dict__)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


@pytest.mark.parametrize("name", MODELS)
def test_it_has_the_shapes_and_marks_of_a_built_model(name):
    with on_meta_device():
        model = MODELS[name].build()
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert described(model) == described(MODELS[name].build())
    assert [type(module) for module in model.modules()] == [
        type(module) for module in MODELS[name].build().modules()
    ]


def test_nothing_is_drawn():
    before = torch.get_rng_state()
    with on_meta_device():
        MambaByteConfig(d_model=16, n_layer=1).build()
    assert torch.equal(torch.get_rng_state(), before)


def test_it_does_not_import_the_compiler():
    code = (
        "import sys, torch\n"
        "from mambabyte.checkpoints.building import shapes\n"
        "from mambabyte.models import MambaByteConfig\n"
        "shapes(MambaByteConfig(d_model=16, n_layer=1))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_copied_layers_share_nothing():
    with on_meta_device():
        first, second, third = repeated(lambda: MambaByteConfig(d_model=16, n_layer=1).build(), 3)
    first.register_forward_hook(print)
    first.backbone.layers[0].mixer.lora = torch.nn.Linear(1, 1)
    assert not second._forward_hooks
    assert not hasattr(second.backbone.layers[0].mixer, "lora")
    parameters = [id(p) for model in (first, second, third) for p in model.parameters()]
    assert len(set(parameters)) == len(parameters)


def test_repeated_modules_have_values_of_their_own():
    torch.manual_seed(0)
    one, other = repeated(lambda: torch.nn.Linear(2, 2), 2)
    assert not torch.equal(one.weight, other.weight)
