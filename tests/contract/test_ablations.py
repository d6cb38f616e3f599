"""Ordinary attention, an MLP, or nothing in place of a CRATE layer's two steps: same states, same rules."""

import pytest
import torch
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from opencrate import CrateForImageClassification, operators, to_official
from opencrate.analysis.record.states import describe_states, record
from opencrate.blocks import CrateLayer

from .common import ALL_STATES, config_of, gradients_of, images_of, model_of

close = torch.testing.assert_close
ARMS = {
    "attention": {"compression": "attention", "head_dim": 4},
    "mlp": {"sparsification": "mlp", "mlp_ratio": 0.5},
    "both": {"compression": "attention", "sparsification": "mlp"},
    "attention only": {"sparsification": "none"},
}
every_arm = pytest.mark.parametrize("arm", ARMS)


def multi_head_attention(Z, Q, K, V, W, b=None, mask=None):
    """``W [head_1; ...; head_K] + b`` with ``head_k = softmax(Z Q_k (Z K_k)^T / sqrt(p)) Z V_k``; Q, K, V (K, d, p)."""
    project = operators.project
    heads = operators.attention_maps(project(Z, Q), mask=mask, keys=project(Z, K)) @ project(Z, V)
    return torch.nn.functional.linear(heads.transpose(-3, -2).flatten(-2), W, b)


def vit_layer(config) -> ViTLayer:
    """transformers' own, without biases of queries, keys and values (the key's has no effect anyway)."""
    sizes = {
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.mlp_size,
        "layer_norm_eps": config.layer_norm_eps,
    }
    return ViTLayer(ViTConfig(**sizes, qkv_bias=False, hidden_act="gelu", attn_implementation="sdpa")).double().eval()


def test_attention_and_mlp_are_transformers_vit_layer():
    torch.manual_seed(0)
    config = config_of(**ARMS["both"], attn_implementation="sdpa")
    ours, theirs = CrateLayer(config).double().eval(), vit_layer(config)
    attention, mlp = ours.compress.attention, ours.sparsify.mlp
    pairs = {
        "attention.q_proj": attention.queries,
        "attention.k_proj": attention.keys,
        "attention.v_proj": attention.subspaces,
        "attention.o_proj": attention.output,
        "layernorm_before": ours.compress.norm,
        "layernorm_after": ours.sparsify.norm,
        "mlp.fc1": mlp.up,
        "mlp.fc2": mlp.down,
    }
    weights = {f"{name}.{key}": torch.randn_like(v) for name, m in pairs.items() for key, v in m.state_dict().items()}
    theirs.load_state_dict(weights, strict=True)
    for name, module in pairs.items():
        module.load_state_dict({key: weights[f"{name}.{key}"] for key in module.state_dict()})
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    expected = theirs(tokens)
    close(ours(tokens), expected if isinstance(expected, torch.Tensor) else expected[0], rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@every_arm
def test_states_follow_the_formulas(arm):
    model = model_of(**ARMS[arm]).double()
    images = images_of(model)
    outputs, c = model(images, **ALL_STATES), model.config
    assert len(outputs.sparse_codes or ()) == (0 if arm == "attention only" else 2)
    for layer, block in enumerate(model.crate.layers):
        before, half = outputs.hidden_states[layer : layer + 2][0], outputs.compressed_states[layer]
        normed = block.compress.norm(before)
        attend = block.compress.attention if c.compression == "attention" else block.compress.mssa
        V = attend.bases()
        close(outputs.projected_states[layer], operators.project(normed, V))
        Q, K = (
            (linear.weight.unflatten(0, (2, c.head_dim)).mT for linear in (attend.queries, attend.keys))
            if c.compression == "attention"
            else (V, V)
        )
        update = multi_head_attention(normed, Q, K, V, attend.output.weight, attend.output.bias)
        close(half, before + update)
        maps = operators.attention_maps(operators.project(normed, Q), keys=operators.project(normed, K))
        close(outputs.attentions[layer], maps)
        after = outputs.hidden_states[layer + 1]
        if c.sparsification == "none":
            close(after, half, rtol=0, atol=0)
        elif c.sparsification == "mlp":
            up, down = block.sparsify.mlp.up, block.sparsify.mlp.down
            hidden = torch.nn.functional.gelu(up(block.sparsify.norm(half)))
            close(outputs.sparse_codes[layer], hidden)
            close(after, half + down(hidden))
        else:
            close(after, outputs.sparse_codes[layer])


def test_attention_with_one_projection_is_mssa():
    torch.manual_seed(0)
    Z, U, W = torch.randn(2, 5, 8).double(), torch.randn(2, 8, 3).double(), torch.randn(8, 6).double()
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    close(multi_head_attention(Z, U, U, U, W, mask=mask), operators.mssa(Z, U, W, mask=mask))
    Q, K = torch.randn(2, 8, 3).double(), torch.randn(2, 8, 3).double()
    heads = []
    for k in range(2):
        scores = (Z @ Q[k]) @ (Z @ K[k]).mT / 3**0.5
        heads.append(scores.softmax(-1) @ (Z @ U[k]))
    close(multi_head_attention(Z, Q, K, U, W), torch.cat(heads, -1) @ W.T)


@every_arm
def test_saving_backends_and_gradients(arm, tmp_path):
    model = model_of(**ARMS[arm])
    images = images_of(model, batch=4)
    model.save_pretrained(tmp_path)
    loaded = CrateForImageClassification.from_pretrained(tmp_path)
    close(loaded(images).logits, model(images).logits, rtol=0, atol=0)
    gradients = gradients_of(model, images)
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients.values())
    model.set_attn_implementation("eager")
    for name, gradient in gradients_of(model, images).items():
        close(gradient, gradients[name], rtol=1e-4, atol=1e-5)


@every_arm
def test_recorded_states_say_what_the_subspaces_are(arm):
    model = model_of(**ARMS[arm])
    (states,) = record(model, [images_of(model)], attentions=True)
    kind = "value projections per head" if "compression" in ARMS[arm] else "learned U"
    assert states.subspace_kind == kind == describe_states(model)[0]
    assert all((step.codes is None) == (arm == "attention only") for step in states.steps())


@every_arm
def test_ablations_have_no_official_names(arm):
    with pytest.raises(ValueError, match="no counterpart in the published code"):
        to_official(model_of(**ARMS[arm]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compression": "none"}, "compression"),
        ({"sparsification": "gelu"}, "sparsification"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"mlp_ratio": 0.01}, "mlp_ratio=0.01"),
        ({"sparsification": "mlp", "dictionary_penalty": 0.1}, "sparsification='mlp' .* 'ista' when the dictionary"),
        ({"sparsification": "none", "dictionary_constraint": "orthonormal"}, "sparsification='none'"),
    ],
)
def test_what_cannot_be_built_says_why(changes, message):
    with pytest.raises(Exception, match=message):
        config_of(**changes)
