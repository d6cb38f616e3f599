"""States of models that are no CRATE: those of the model itself, against its own outputs and weights."""

import pytest
import torch
from torch import nn

from opencrate.analysis.record.hooks import KNOWN_MODELS, POST_NORM, BlockHooks, blocks_of, hooks_of, principal_bases
from opencrate.analysis.record.states import LEARNED, SUBSPACES, record

from .foreign_models import MODELS, inputs_for, tiny
from .models import split, tiny_crate, tiny_images


def test_every_known_type_is_tested():
    assert MODELS.keys() == KNOWN_MODELS.keys()


@pytest.mark.parametrize("model_type", MODELS)
def test_states_are_the_models_own(model_type):
    """Block inputs and outputs are transformers' hidden states; the half-step and the MLP give the block's output."""
    model, inputs = tiny(model_type), inputs_for(model_type)
    (states,) = record(model, [inputs])
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    blocks = blocks_of(model, hooks_of(model))
    assert len(states.layers) == 3 and states.subspace_kind == SUBSPACES["values"]
    for step, block in zip(states.steps(), blocks):
        assert torch.equal(step.before, hidden[step.layer - 1])
        if step.layer < 3:  # the last hidden state may have gone through the final norm
            assert torch.equal(step.after, hidden[step.layer])
        with torch.no_grad():
            torch.testing.assert_close(after_the_half_step(model_type, block, step.compressed), step.after)
        assert step.compressed.shape == step.before.shape and not torch.equal(step.compressed, step.before)


def after_the_half_step(model_type: str, block: nn.Module, half: torch.Tensor) -> torch.Tensor:
    """The rest of a block, by its own modules."""
    if model_type == "distilbert":
        return block.output_layer_norm(block.ffn(half) + half)
    if hasattr(block, "feed_forward_chunk"):
        return block.feed_forward_chunk(half)
    branch = block.mlp(getattr(block, KNOWN_MODELS[model_type].compressed)(half))
    return half + (block.layer_scale2(branch) if hasattr(block, "layer_scale2") else branch)


@pytest.mark.parametrize("model_type", MODELS)
def test_codes_are_what_the_last_linear_map_of_the_mlp_reads(model_type):
    model, inputs = tiny(model_type), inputs_for(model_type)
    (states,) = record(model, [inputs], layers=[2])
    (step,) = states.steps()
    block = blocks_of(model, hooks_of(model))[1]
    names = KNOWN_MODELS[model_type].codes
    name = next(n for n in ([names] if isinstance(names, str) else names) if n in dict(block.named_modules()))
    read = []
    handle = block.get_submodule(name).register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    assert torch.equal(step.codes, read[0]) and step.codes.shape[-1] > 16


@pytest.mark.parametrize(("which", "index"), [("values", 2), ("keys", 1)])
@pytest.mark.parametrize("model_type", ["vit", "bert", "gpt2", "qwen3"])
def test_bases_are_the_heads_own_projections(model_type, which, index):
    """LN(Z) U_k plus the bias is what the head reads, also where GPT-2 stores its maps transposed and fused."""
    model, inputs = tiny(model_type), inputs_for(model_type)
    block = blocks_of(model, hooks_of(model))[0]
    name = getattr(hooks_of(model), which.removesuffix("s")).partition("[")[0]
    given = []
    handle = block.get_submodule(name).register_forward_hook(lambda module, args, output: given.append(output))
    (states,) = record(model, [inputs], layers=[1], subspaces=which)
    handle.remove()
    (step,) = states.steps()
    heads, head_dim = (2, 8) if model_type == "qwen3" else (4, 4)
    assert step.subspaces.shape == (heads, 16, head_dim) and states.subspace_kind == SUBSPACES[which]
    bias = getattr(block.get_submodule(name), "bias", None)
    outputs = given[0] if bias is None else given[0] - bias
    outputs = outputs.chunk(3, -1)[index] if model_type == "gpt2" else outputs
    torch.testing.assert_close(step.projected, outputs.unflatten(-1, (heads, head_dim)).transpose(1, 2))


def test_a_head_on_top_changes_nothing():
    for model_type, head in (("vit", "ForImageClassification"), ("gpt2", "LMHeadModel"), ("bert", "ForMaskedLM")):
        whole, inputs = tiny(model_type, head=head), inputs_for(model_type)
        (one,), (other,) = record(whole, [inputs]), record(whole.base_model, [inputs])
        assert all(torch.equal(a.after, b.after) for a, b in zip(one.steps(), other.steps()))


def test_padding_is_masked_and_does_not_reach_real_tokens():
    model, inputs = tiny("bert"), inputs_for("bert", padded=True)
    (states,) = record(model, [inputs])
    assert states.mask.sum().item() == 6 + 4 + 4
    (alone,) = record(model, [inputs["input_ids"][1:2, :4]])
    assert alone.mask is None
    torch.testing.assert_close(states.layers[2].after[1:2, :4], alone.layers[2].after)
    (full,) = record(model, [inputs_for("bert")])
    assert full.mask is None and full.half_step == POST_NORM


def test_large_batches_are_cut_and_layers_chosen():
    inputs = inputs_for("vit", 7)
    parts = list(record(tiny("vit"), [inputs], layers=[3, 1, 3], batch_size=3))
    assert [part.num_inputs for part in parts] == [3, 3, 1]
    assert [step.layer for step in parts[0].steps()] == [1, 3]
    (whole,) = record(tiny("vit"), [inputs])
    joined = torch.cat([part.layers[1].after for part in parts])
    torch.testing.assert_close(joined, whole.layers[2].after)


@pytest.mark.parametrize("build", [lambda: (tiny("gpt2"), inputs_for("gpt2", padded=True)), lambda: crate_and_images()])
def test_pca_groups_are_orthonormal_and_ordered_by_energy(build):
    model, inputs = build()
    batches = split(inputs, 2)
    passes = list(record(model, batches, subspaces="pca"))
    step = passes[0].layers[1]
    assert {states.subspace_kind for states in passes} == {"PCA of tokens"}
    U = step.subspaces.double()
    together = U.permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(together.mT @ together, torch.eye(together.shape[1]).double(), atol=1e-5, rtol=0)
    tokens = torch.cat([s.layers[1].before[s.mask if s.mask is not None else ...].flatten(0, -2) for s in passes])
    energy = (tokens.double() @ together).square().sum(0)
    assert (energy[1:] <= energy[:-1] * (1 + 1e-5) + 1e-6 * energy[0]).all()  # the last ones are rounding
    torch.testing.assert_close(step.projected, torch.einsum("bnd,kdp->bknp", step.before, step.subspaces))


def crate_and_images():
    return tiny_crate(), tiny_images(5)


def test_principal_bases_leave_out_what_does_not_fit():
    assert principal_bases(torch.eye(5).double(), 4, 2).shape == (2, 5, 2)


@pytest.mark.parametrize("decode", ["none", "untied"])
def test_crate_codes_and_kind(decode):
    options = {"dictionary_decode": decode} | ({} if decode == "none" else {"dictionary_expansion": 2})
    model = tiny_crate(**options)
    (states,) = record(model, [tiny_images(2)], layers=[2])
    (step,) = states.steps()
    assert states.subspace_kind == LEARNED and states.logits.shape == (2, 7) and step.layer == 2
    assert torch.equal(step.codes, step.after) == (decode == "none")
    assert step.codes.shape[-1] == (12 if decode == "none" else 24)


class Plain(nn.Module):
    """A transformer of another library: one tensor in, blocks under their own names."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[PlainBlock() for _ in range(2)])

    def forward(self, images):
        return self.blocks(images.flatten(2).transpose(1, 2))


class PlainBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.mlp = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, tokens):
        tokens = tokens + self.qkv(self.norm1(tokens))[..., 8:]
        return tokens + self.mlp(self.norm2(tokens))


PLAIN_HOOKS = BlockHooks("blocks", "norm2", "qkv[3/3]", "qkv[2/3]", head_dim=2)


def test_any_other_model_by_hooks():
    model = Plain()
    images = torch.randn(2, 4, 3, 3)
    (states,) = record(model, [images], hooks=PLAIN_HOOKS)
    first, last = states.steps()
    assert torch.equal(last.after, model(images)) and torch.equal(first.after, last.before)
    assert first.codes is None and first.subspaces.shape == (2, 4, 2)
    torch.testing.assert_close(first.subspaces[1], model.blocks[0].qkv.weight[10:12].mT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "stages"}, r"hooks.layers='stages': no such module in the model \(Plain has: blocks"),
        ({"layers": "blocks.0"}, "a PlainBlock, not a list of blocks"),
        ({"value": "norm1"}, "hooks.value='norm1': a LayerNorm, not a linear map"),
        ({"compressed": "norm3"}, "hooks.compressed='norm3': no such module in a block"),
        ({"codes": ("fc2", "fc3")}, "hooks.codes='fc2'"),
        ({"head_dim": 3}, "4 columns do not divide into heads of 3"),
        ({"head_dim": None}, "hooks.head_dim=None"),
    ],
)
def test_wrong_hooks_are_named(change, message):
    hooks = BlockHooks(**{**vars(PLAIN_HOOKS), **change})
    with pytest.raises(ValueError, match=message):
        next(record(Plain(), [torch.randn(1, 4, 3, 3)], hooks=hooks))


def test_an_unknown_type_says_what_to_pass():
    with pytest.raises(
        ValueError, match=r"model Plain: has no MSSA.*hooks=opencrate.BlockHooks\(layers=..., compressed"
    ):
        next(record(Plain(), [torch.randn(1, 4, 3, 3)]))
    model = tiny("vit")
    model.config.model_type = "swin"
    with pytest.raises(ValueError, match="model type 'swin': has no MSSA block and is of no known type"):
        next(record(model, [inputs_for("vit")]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [1, 9]}, r"layers=\[1, 9\]: the model has layers 1 to 3, not 9"),
        ({"layers": [0]}, "layers 1 to 3, not 0"),
        ({"layers": []}, "empty"),
        ({"subspaces": "queries"}, "subspaces='queries': must be one of values, keys, pca"),
        ({"num_inputs": 9}, "num_inputs=9: only 3 images there"),
    ],
)
@pytest.mark.parametrize("build", [lambda: (tiny_crate(), tiny_images(3)), lambda: (tiny("vit"), inputs_for("vit"))])
def test_bad_requests_are_refused(build, options, message):
    model, inputs = build()
    with pytest.raises(ValueError, match=message):
        list(record(model, [inputs], **options))


def test_bad_batches_are_refused():
    model = tiny("bert")
    with pytest.raises(ValueError, match="only once"):
        next(record(model, iter([inputs_for("bert")]), subspaces="pca"))
    with pytest.raises(ValueError, match="a text has no tokens"):
        next(record(model, [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.zeros(1, 2)}]))
    with pytest.raises(ValueError, match="only 3 texts there"):
        list(record(model, [inputs_for("bert")], num_inputs=4))
    with pytest.raises(ValueError, match="CRATE models only"):
        next(record(model, [inputs_for("bert")], attentions=True))
