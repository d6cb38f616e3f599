"""What makes the models fast, on any machine: few products, half a cache, whole graphs, no waiting for the device."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import GPT2Config, GPT2LMHeadModel

import opencrate as oc
from opencrate._hf import CACHE
from opencrate.operators import squared_norm_bound
from opencrate.rate_gradient import causally_whitened, whitened
from opencrate.recipe.load import load_recipe
from opencrate.training.optimizers import build_optimizer

from .wrapped import ALPHA, IMAGES, OVERCOMPLETE, SIZES, TEXT

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}
READINGS = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item, aten.nonzero, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.allclose),
}
"""What needs a number from the device before the program can go on."""


GRADIENT = {"compression": "gradient", "attention_output": "tied", "ista_step": "bounded", "learned_steps": "atom"}
BOTH, TSSA, CBSA = {"position": "both"}, {"compression": "tssa"}, {"compression": "cbsa"}


@pytest.fixture(autouse=True)
def fixed_choices(monkeypatch):
    """Whatever is fastest on this machine, the products are counted with `sdpa` and the default library."""
    monkeypatch.setenv("OPENCRATE_CALIBRATE", "0")


class Products(TorchDispatchMode):
    """Counts matrix products, and calls of fused attention, while it is entered."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in PRODUCTS:
            self.found["products"] += 1
            self.found["flops"] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        elif func._overloadpacket in ATTENTION:
            self.found["attention"] += 1
        return out


class NoReading(TorchDispatchMode):
    """Refuses operators that need a number from a device other than the CPU, where nothing waits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        elsewhere = any(torch.is_tensor(one) and one.device.type != "cpu" for one in args)
        assert not (elsewhere and func._overloadpacket in READINGS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


# --- products -----------------------------------------------------------------------------------------------------

MANY = 20  # images of 5 tokens: more than the width, so that one matrix is made for a complete ISTA step
KINDS = {
    "complete": ({}, MANY),
    "complete, two products": ({}, 1),
    "overcomplete": (OVERCOMPLETE, MANY),
    "alpha": (ALPHA, MANY),
}


def image_model(changes, depth):
    torch.manual_seed(0)
    config = oc.CrateConfig(**{**SIZES, **IMAGES, **changes, "num_hidden_layers": depth})
    return oc.CrateForImageClassification(config)


def mae_model(changes, depth):
    torch.manual_seed(0)
    return oc.CrateMAEForPreTraining(oc.CrateMAEConfig(**{**SIZES, **IMAGES, **changes, "num_hidden_layers": depth}))


def counts(model, inputs):
    """Products and attention calls of a training step's forward and of its backward."""
    model.train()
    with Products() as forward:
        loss = model(**inputs).loss
    with Products() as backward:
        loss.backward()
    return forward.found, backward.found


def per_layer(make, inputs, names=("products", "attention")):
    """Of one layer more (in an autoencoder: of one encoder and one decoder layer): forward and backward."""
    shallow, deep = (counts(make(depth), inputs) for depth in (1, 2))
    return [{name: two[name] - one[name] for name in names} for one, two in zip(shallow, deep)]


def images_and_labels(count):
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(count, 3, 8, 8), "labels": torch.zeros(count, dtype=torch.long)}


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [
        # U, the output map, and M = I + eta D - eta D^T D with the product by it
        ("complete", 4, 8),
        # U, the output map, and two products over the tokens
        ("complete, two products", 4, 8),
        # U, the output map, one product of the first step from zero, two of the second, the decode
        ("overcomplete", 6, 12),
        ("alpha", 6, 12),
    ],
)
def test_products_of_a_layer(kind, forward, backward):
    changes, count = KINDS[kind]
    found = per_layer(lambda depth: image_model(changes, depth), images_and_labels(count))
    assert found == [{"products": forward, "attention": 1}, {"products": backward, "attention": 1}]


@pytest.mark.parametrize(("count", "over_tokens", "matrices"), [(MANY, 3, 1), (1, 4, 0)])
def test_one_product_over_many_tokens_two_over_few(count, over_tokens, matrices):
    """Of U, the output map and ISTA: many tokens meet one matrix, which costs one product of the dictionary's size."""
    forward, backward = per_layer(lambda depth: image_model({}, depth), images_and_labels(count), ["flops"])
    rows, width = 5 * count, SIZES["hidden_size"]
    expected = 2 * width**2 * (over_tokens * rows + matrices * width)
    assert (forward["flops"], backward["flops"]) == (expected, 2 * expected)


def test_products_of_an_autoencoders_layers():
    """An encoder layer's four; and D, U and the output map of a decoder layer."""
    inputs = {"pixel_values": torch.randn(MANY, 3, 8, 8), "noise": torch.rand(MANY, 4)}
    found = per_layer(lambda depth: mae_model({}, depth), inputs)
    assert found == [{"products": 7, "attention": 2}, {"products": 14, "attention": 2}]


def test_kept_matrix_leaves_three_products_in_inference():
    """U, the output map and the product by M: M is made at the first call and kept."""
    inputs = images_and_labels(MANY)
    found = []
    for depth in (1, 2):
        model = image_model({}, depth).eval()
        with torch.no_grad():
            model(**inputs)
            with Products() as products:
                model(**inputs)
        found.append(products.found["products"])
    assert found[1] - found[0] == 3


# --- the cache of generation --------------------------------------------------------------------------------------


def cache_bytes_per_token(model):
    sizes = []
    for length in (4, 5):
        with torch.no_grad():
            cache = model(torch.zeros(1, length, dtype=torch.long), use_cache=True)[CACHE]
        kept = [states for layer in cache.layers for states in (layer.keys, layer.values)]
        sizes.append(sum(states.numel() * states.element_size() for states in kept))
    return sizes[1] - sizes[0]


def test_cache_is_one_tensor_half_of_gpt2s():
    ours = oc.CrateForCausalLM(oc.CrateTextConfig(**SIZES, **TEXT)).eval()
    layers, width = SIZES["num_hidden_layers"], SIZES["hidden_size"]
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 2, "vocab_size": 30, "n_positions": 24}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    assert cache_bytes_per_token(ours) == 4 * layers * width
    assert cache_bytes_per_token(theirs) == 2 * cache_bytes_per_token(ours)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that is made or looked at while it is entered."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(one):
                self.numbers = max(self.numbers, one.numel())
        return out


LONG = {"max_position_embeddings": 512, "vocab_size": 30}


@pytest.mark.parametrize("position", ["absolute", "relative_bias", "rope"])
def test_a_token_after_many_makes_nothing_of_their_number_squared(position):
    model = text_model({**LONG, "position": position}, 2).eval()
    with torch.no_grad():
        cache = model(torch.zeros(1, 500, dtype=torch.long), use_cache=True)[CACHE]
        with Largest() as found:
            model(torch.zeros(1, 1, dtype=torch.long), **{CACHE: cache})
    assert found.numbers <= 2 * 512 * 16  # a layer's cache with spare room, against 500^2


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("changes", [TSSA, GRADIENT, {**CBSA, "is_causal": False}], ids=lambda one: one["compression"])
def test_linear_operators_make_no_map(changes, mask):
    """Nothing grows faster than the number of tokens, in training and with padding too."""
    sizes = []
    for length in (128, 256):
        cls = oc.CrateForCausalLM if changes.get("is_causal", True) else oc.CrateForMaskedLM
        torch.manual_seed(0)
        model = cls(oc.CrateTextConfig(**{**SIZES, **LONG, "num_hidden_layers": 1, "use_cache": False, **changes}))
        ids = torch.zeros(2, length, dtype=torch.long)
        kept = {"attention_mask": torch.ones_like(ids)} if mask else {}
        with Largest() as found:
            model(ids, labels=ids, **kept).loss.backward()
        sizes.append(found.numbers)
    assert sizes[1] <= 2 * sizes[0]


# --- whole graphs, and nothing read from the device ---------------------------------------------------------------


def text_model(changes, depth):
    torch.manual_seed(0)
    return oc.CrateForCausalLM(oc.CrateTextConfig(**{**SIZES, **TEXT, **changes, "num_hidden_layers": depth}))


def text_inputs():
    ids = torch.randint(30, (4, 9))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


MODELS = {
    "image": (lambda: image_model({}, 2), lambda: images_and_labels(MANY)),
    "image positions": (lambda: image_model(BOTH, 2), lambda: images_and_labels(MANY)),
    "image gradient": (lambda: image_model(GRADIENT, 2), lambda: images_and_labels(MANY)),
    "representatives": (lambda: image_model(CBSA, 2), lambda: images_and_labels(MANY)),
    "causal positions": (lambda: text_model(BOTH, 2), text_inputs),
    "causal gradient": (lambda: text_model(GRADIENT, 2), text_inputs),
    "causal statistics": (lambda: text_model(TSSA, 2), text_inputs),
    "alpha": (lambda: image_model(ALPHA, 2), lambda: images_and_labels(MANY)),
    "autoencoder": (
        lambda: mae_model({}, 2),
        lambda: {"pixel_values": torch.randn(MANY, 3, 8, 8), "noise": torch.rand(MANY, 4)},
    ),
    "causal": (lambda: text_model({}, 2), text_inputs),
    "overcomplete causal": (lambda: text_model(OVERCOMPLETE, 2), text_inputs),
}


GRAPH_MODELS = {
    "image": lambda: image_model({}, 1),
    "autoencoder": lambda: mae_model({}, 1),
    "causal": lambda: text_model({}, 1),
    "image positions": lambda: image_model(BOTH, 1),
    "image gradient": lambda: image_model(GRADIENT, 1),
    "image guard": lambda: image_model({"compression_guard": "length"}, 1),
    "representatives": lambda: image_model(CBSA, 1),
    "causal positions": lambda: text_model(BOTH, 1),
    "causal gradient": lambda: text_model(GRADIENT, 1),
    "causal statistics": lambda: text_model(TSSA, 1),
}
GRAPHS = [  # of each model one by default: a graph takes seconds
    pytest.param(name, half, training, marks=() if half and training else pytest.mark.slow)
    for name in GRAPH_MODELS
    for half in (False, True)
    for training in (False, True)
]


@pytest.mark.parametrize(("name", "half", "training"), GRAPHS)
def test_no_graph_break(name, half, training):
    make, inputs = GRAPH_MODELS[name](), MODELS.get(name, MODELS["image"])[1]()
    torch._dynamo.reset()
    compiled = torch.compile(make.train(training), fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(training):
        outputs = compiled(**inputs)
    assert outputs.loss.isfinite()
    if training:
        outputs.loss.backward()


def optimizer_of(kind, model):
    """AdamW, or the optimizer of a shipped recipe."""
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    return build_optimizer(model, load_recipe("digits", [f"optimiser.optim={kind}"]))


def train_step(model, inputs, optimizer):
    """As a trainer does: forward, loss, backward, clipping, update, gradients away."""
    model(**inputs).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


META = "meta"
"""torch's device without numbers to read: an accelerator, as the models see it."""


def moved(inputs, move):
    return {name: move(value) if torch.is_tensor(value) else value for name, value in inputs.items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in MODELS if "gradient" not in name])  # without numbers: offloaded
def test_nothing_is_read_from_the_device(name, dtype, training):
    make, inputs = (one() for one in MODELS[name])
    model = make.to(META, dtype).train(training)
    inputs = moved(inputs, lambda value: value.to(META, dtype if value.is_floating_point() else None))
    optimizer = optimizer_of("adamw", model)
    with NoReading():
        for _ in range(2):
            if training:
                train_step(model, inputs, optimizer)
            else:
                with torch.no_grad():
                    assert model(**inputs).loss.device.type == META


def test_the_exact_gradient_reads_nothing_from_the_device():
    V = torch.randn(2, 3, 100, 4, device=META, requires_grad=True)
    with NoReading():
        for heads in (whitened(V, 0.5), causally_whitened(V, 0.5)):
            heads.sum().backward()
        squared_norm_bound(V[0, 0]).backward()
    assert V.grad is not None


@pytest.mark.parametrize("kind", ["muon", "lion", "sgd", "adamw_torch"])
def test_optimizers_read_nothing_from_the_device(kind):
    make, inputs = (one() for one in MODELS["image"])
    model = make.to(META).train()
    inputs = moved(inputs, lambda value: value.to(META))
    optimizer = optimizer_of(kind, model)
    with NoReading():
        for _ in range(2):
            train_step(model, inputs, optimizer)


def test_guard_against_reading_can_fail():
    number = torch.ones(1, device="meta")
    for read in (lambda: number.item(), lambda: torch.equal(number, number), lambda: bool(number), number.nonzero):
        with NoReading(), pytest.raises(AssertionError, match="waits for the device"):
            read()
    with NoReading():
        torch.ones(1).item()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_nothing_waits_on_a_gpu(name):
    """torch's own watch: an error at the first synchronisation of a step or of a forward."""
    make, inputs = (one() for one in MODELS[name])
    model, inputs = make.cuda().train(), moved(inputs, torch.Tensor.cuda)
    optimizer = optimizer_of("adamw", model)
    train_step(model, inputs, optimizer)  # the first call of a library may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, inputs, optimizer)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model.eval()(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
