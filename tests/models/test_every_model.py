"""What every ByteLM promises, asked of every model of every_model.py."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mambabyte import checkpoints
from mambabyte.models import CNNConfig, MixerStackConfig, TransformerConfig, mixers
from tests.models.every_model import MODELS, random_bytes

# fp32 sums in another order, logits of order 1
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(params=MODELS)
def model(request):
    """A model in float32 that is not at its first point: a head that begins at zero says something."""
    torch.manual_seed(0)
    model = MODELS[request.param].build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "A_log" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def record_embeddings(model):
    """A list that fills with (embedded, places): embeddings of input bytes, and where the bytes are."""
    seen = []

    def record(module, inputs, embedded):
        embedded.retain_grad()
        places = torch.arange(inputs[0].numel())
        if module is getattr(model, "local_embedding", None):  # MegaByte's: all bytes of a patch but its last
            slots = model.config.patch_size - 1
            places = places // max(1, slots) * (slots + 1) + places % max(1, slots)
        seen.append((embedded, places))

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 256:
            module.register_forward_hook(record)
    return seen


def receptive_field(config):
    if isinstance(config, CNNConfig):
        return config.receptive_field
    if isinstance(config, TransformerConfig) and config.window is not None:
        return 1 + config.n_layer * (config.window - 1)
    if isinstance(config, MixerStackConfig) and isinstance(config.mixer, mixers.CNNConfig):
        return 1 + sum(config.mixer.reach(layer) for layer in range(config.n_layer))
    return 10**9


@pytest.mark.parametrize("length", [1, 11, 24])
def test_causality_by_gradients_at_every_position(model, length):
    model.double()
    seen = record_embeddings(model)
    logits = model(random_bytes(1, length))
    for t in range(length):
        for embedded, _ in seen:
            embedded.grad = None
        logits[0, t].square().sum().backward(retain_graph=True)
        last_place = max(places.max() for _, places in seen if len(places))
        influence = torch.zeros(last_place + 1, dtype=torch.float64)
        for embedded, places in seen:
            if embedded.grad is not None:
                influence.index_add_(0, places, embedded.grad.abs().sum(-1).flatten())
        # an FFT in fp64 spreads its rounding over all positions
        noise = 1e-12 * influence.max()
        assert (influence[t + 1 :] <= noise).all(), f"the logits at {t} see a later byte"
        before = max(0, t + 1 - receptive_field(model.config))
        assert (influence[before : t + 1] > noise).all(), f"the logits at {t} do not see all that they could"


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 13, 29])
def test_step_equals_forward(model, length):
    bytes = random_bytes(3, length).to(torch.uint8)
    whole = model(bytes)
    assert whole.shape == (3, length, 256)
    state, stepped = model.initial_state(3), []
    for t in range(length):
        logits, state = model.step(bytes[:, t], state)
        stepped.append(logits)
        assert all(tensor.shape[0] == 3 for layer in state for tensor in layer)
    assert torch.allclose(torch.stack(stepped, 1), whole, **CLOSE)


@torch.no_grad()
def test_state_splits_anywhere_and_an_old_state_stays_good(model):
    bytes = random_bytes(2, 29)
    whole = model(bytes)
    for cut in range(1, 29):
        first, state = model.prefill(bytes[:, :cut])
        second, _ = model.prefill(bytes[:, cut:], state)
        assert torch.allclose(torch.cat([first, second], 1), whole, **CLOSE), cut
        # the state of the cut again, after another continuation and in another form
        other = torch.flip(bytes[:, cut:], [1])
        branch = model(torch.cat([bytes[:, :cut], other], 1))[:, cut:]
        assert torch.allclose(model(other, state), branch, **CLOSE), cut
        assert torch.allclose(model(bytes[:, cut:], state), whole[:, cut:], **CLOSE), cut


@torch.no_grad()
def test_two_continuations_of_one_state_do_not_disturb_each_other(model):
    bytes = random_bytes(1, 20)
    _, state = model.prefill(bytes[:, :9])
    _, state = model.step(bytes[:, 9], state)
    left, right, expected = state, state, {}
    for name, seed in (("left", 2), ("right", 3)):
        following = random_bytes(1, 10, seed=seed)
        expected[name] = (following, model(torch.cat([bytes[:, :10], following], 1))[:, 10:])
    for t in range(10):
        (left_bytes, left_logits), (right_bytes, right_logits) = expected["left"], expected["right"]
        logits, left = model.step(left_bytes[:, t], left)
        assert torch.allclose(logits, left_logits[:, t], **CLOSE)
        logits, right = model.step(right_bytes[:, t], right)
        assert torch.allclose(logits, right_logits[:, t], **CLOSE)


def test_gradients_flow_through_a_split_state(model):
    bytes = random_bytes(2, 21)
    gradients = []
    for cut in (None, 10):
        model.zero_grad()
        if cut is None:
            logits = model(bytes)
        else:
            first, state = model.prefill(bytes[:, :cut])
            logits = torch.cat([first, model(bytes[:, cut:], state)], 1)
        cross_entropy(logits[:, :-1].flatten(0, 1), bytes[:, 1:].flatten()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        # fp32 in another order through two layers, relative to the parameter's largest gradient
        assert (gradients[1][name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-7, name


@torch.no_grad()
def test_packed_documents_equal_each_alone(model):
    bytes = random_bytes(3, 60)
    start = torch.zeros(3, 60, dtype=torch.bool)
    start[0, [0, 1, 20, 22]] = True
    start[1, [0]] = True
    start[2, [13, 59]] = True
    documents = [[(0, 1), (1, 20), (20, 22), (22, 60)], [(0, 60)], [(0, 13), (13, 59), (59, 60)]]
    packed = model(bytes, document_start=start)
    for row, parts in enumerate(documents):
        for first, last in parts:
            alone = model(bytes[row : row + 1, first:last])
            assert torch.allclose(packed[row : row + 1, first:last], alone, **CLOSE), (row, first, last)


@torch.no_grad()
def test_a_marked_byte_forgets_the_state_too(model):
    before, bytes = random_bytes(3, 9, seed=2), random_bytes(3, 17)
    _, state = model.prefill(before)
    start = torch.zeros(3, 17, dtype=torch.bool)
    start[0, 0] = start[1, 5] = True
    mixed = model(bytes, state, start)
    continued = model(bytes, state)
    assert torch.allclose(mixed[0], model(bytes)[0], **CLOSE)
    assert torch.allclose(mixed[1, :5], continued[1, :5], **CLOSE)
    assert torch.allclose(mixed[1:2, 5:], model(bytes[1:2, 5:]), **CLOSE)
    assert torch.allclose(mixed[2], continued[2], **CLOSE)
    start[:] = False
    assert torch.allclose(model(bytes, state, start), continued, **CLOSE)


def test_all_bytes_and_positions_are_trained(model):
    bytes = torch.arange(256).roll(5).repeat(2, 2)
    seen = []
    logits = model(bytes)
    logits.register_hook(lambda gradient: seen.append(gradient))
    cross_entropy(logits[:, :-1].flatten(0, 1), bytes[:, 1:].flatten()).backward()
    assert (seen[0][:, :-1].abs().sum(-1) > 0).all(), "a position without a gradient"
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad
        if parameter.shape[0] == 256:
            assert (gradient.abs().sum(-1) > 0).all(), f"a byte that {name} does not train"
        else:
            assert gradient.abs().sum() > 0, name


def test_a_fresh_model_is_near_uniform_and_seeded(request):
    for name, config in MODELS.items():
        torch.manual_seed(3)
        first = config.build()
        torch.manual_seed(3)
        second = config.build()
        assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values())), name
        bytes = random_bytes(2, 50)
        loss = cross_entropy(first(bytes)[:, :-1].flatten(0, 1), bytes[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(256), abs=0.3), name


def test_it_learns_a_sentence(model):
    bytes = torch.tensor([list(b"the cat sat on the mat. the dog sat on the log.")])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = cross_entropy(model(bytes)[0, :-1], bytes[0, 1:])
        loss.backward()
        optimizer.step()
    assert loss < 1.5, "nats; without context, 2.6"


@torch.no_grad()
def test_bf16_autocast(model):
    bytes = random_bytes(2, 30)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(bytes)
        first, state = model.prefill(bytes[:, :13])
        second, _ = model.prefill(bytes[:, 13:], state)
    exact = model(bytes)
    scale = exact.abs().max()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    # eight bits, through a few layers
    assert (low.float() - exact).abs().max() < 0.08 * scale
    assert (torch.cat([first, second], 1).float() - exact).abs().max() < 0.08 * scale
    # a state made in one precision serves the other
    assert (model(bytes[:, 13:], state) - exact[:, 13:]).abs().max() < 0.08 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_low_precision_reads_steps_and_learns(model, dtype):
    bytes = random_bytes(2, 30)
    start = torch.zeros(2, 30, dtype=torch.bool)
    start[0, [0, 7]] = True
    exact = model(bytes, document_start=start)
    model.to(dtype)
    logits = model(bytes, document_start=start)
    assert logits.dtype == dtype
    # eight bits, through a few layers
    assert (logits.float() - exact).abs().max() < 0.08 * exact.abs().max()
    cross_entropy(logits.float().flatten(0, 1), bytes.flatten()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        whole, (first, state) = model(bytes), model.prefill(bytes[:, :13])
        second, _ = model.step(bytes[:, 13], state)
    assert (torch.cat([first, second[:, None]], 1) - whole[:, :14]).abs().max() < 0.08 * whole.abs().max()


class Dtypes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
                self.seen.add(tensor.dtype)
        return out


def test_a_float64_model_computes_in_float64_alone(model):
    bytes = random_bytes(2, 30)
    start = torch.zeros(2, 30, dtype=torch.bool)
    start[0, [0, 7]] = True
    model.double()
    with Dtypes() as dtypes:
        cross_entropy(model(bytes, document_start=start).flatten(0, 1), bytes.flatten()).backward()
        _, state = model.prefill(bytes[:, :13])
        model.step(bytes[:, 13], state)
    assert torch.float64 in dtypes.seen
    assert dtypes.seen <= {torch.float64, torch.complex128}


def test_save_and_load(model, tmp_path):
    bytes = random_bytes(2, 20)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    description = {"format": checkpoints.FORMAT, "model": model.config.to_dict()}
    content = {"state_dict": weights, "global_step": 0, "mambabyte": description}
    checkpoints.write(content, tmp_path / "model.ckpt")
    loaded = checkpoints.load_model(tmp_path / "model.ckpt")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(bytes), model.eval()(bytes))


@torch.no_grad()
def test_a_state_is_saved_and_resumed(model, tmp_path):
    bytes = random_bytes(2, 20)
    _, state = model.prefill(bytes[:, :9])
    _, state = model.step(bytes[:, 9], state)
    torch.save(state, tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    assert torch.equal(model.prefill(bytes[:, 10:], loaded)[0], model.prefill(bytes[:, 10:], state)[0])


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("packed", [False, True])
def test_no_tensor_of_length_by_length(model, packed):
    elements = []
    for length in (512, 1024):
        bytes = random_bytes(1, length)
        start = torch.zeros(1, length, dtype=torch.bool)
        start[0, [3, length - 99]] = packed
        with LargestTensor() as largest:
            logits = model(bytes, document_start=start)
            cross_entropy(logits[0, :-1], bytes[0, 1:]).backward()
        elements.append(largest.elements)
    # L x L would be four times as large, and larger than the logits, L x 256, at both lengths
    assert elements[1] < 2.5 * elements[0]


@pytest.mark.parametrize("name", MODELS)
def test_recurrent_says_whether_the_state_grows(name):
    model = MODELS[name].build()
    sizes = []
    with torch.no_grad():
        for length in (40, 80):
            _, state = model.prefill(random_bytes(1, length))
            sizes.append(sum(tensor.numel() for layer in state for tensor in layer))
    bounded = model.recurrent or name in ("transformer-window", "hybrid-window")
    assert (sizes[0] == sizes[1]) is bounded


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("transformer", 1e-9),
        ("perceiver_ar", 1e-9),
        ("cnn", 1e-9),
        ("attention", 1e-9),
        ("cnn-mixer", 1e-9),
        ("rwkv", 0.1),  # of the recurrence and the mixing with the position before the counter sees nothing
        ("megabyte", 0.01),  # forward runs one patch more: the pad's
        ("mambabyte", 0.11),  # the scan and the convolution are no matrix products
        ("gated_s4d", 0.05),  # the counter sees the kernel's matrices, and no FFT
    ],
)
def test_flops_agree_with_pytorchs_counter(name, tolerance):
    model, length = MODELS[name].build(), 560
    # in its plain form PyTorch's attention is matrix products, which the counter knows on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(random_bytes(1, length))
    flops = model.flops_per_byte(length)
    assert flops.inference == pytest.approx(counter.get_total_flops() / length, rel=tolerance)
    assert flops.training == 3 * flops.inference


def test_the_counter_agrees_on_whole_blocks_and_plain_attention_only():
    model = MODELS["perceiver_ar"].build()
    counts = []
    for length, backend in ((560, SDPBackend.MATH), (563, SDPBackend.MATH), (560, None)):
        plain = sdpa_kernel(backend) if backend else nullcontext()
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            model(random_bytes(1, length))
        counts.append(counter.get_total_flops() / length / model.flops_per_byte(length).inference)
    assert counts[0] == pytest.approx(1, rel=1e-9)
    assert counts[1] > 1, "the last block is padded"
    assert counts[2] < 1, "fused attention on a CPU is not counted"
