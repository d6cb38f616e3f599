"""The converted language models against numbers from the research fork, tensor by tensor."""

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opencrate import CrateForCausalLM, CrateTextConfig, load_official, to_official
from opencrate.conversion import official_name
from opencrate.operators import ista
from tests.golden import FIXTURES, golden_meta, golden_root, load_golden, sub_dict

from .common import STATES, compare, present

SET = "crate_lm"
FAMILIES = {"complete": "crate_lm", "overcomplete": "crate_lm_overcomplete"}
FILES = present(SET)
MAIN = [file for file in FILES if file in FAMILIES]


def main_of(file: str) -> str:
    """The file that holds the weights and tokens a file is about."""
    return file.removeprefix("layernorm_eps_probe_")


def weights(file: str) -> dict[str, Tensor]:
    """The official state dict of a golden file, whose fixture may leave out what is regenerated."""
    main = load_golden(SET, main_of(file))
    official = sub_dict(main, "state_dict.") | sub_dict(load_golden(SET, file), "override.")
    official["lm_head.weight"] = official["transformer.wte.weight"]
    if main_of(file) == "complete":
        mask = torch.ones(1, 1, 32, 32).tril()
        official |= {f"transformer.h.{layer}.attn.bias": mask for layer in range(3)}
    return official  # one layer in the overcomplete fixture, else three


def model_of(file: str, dtype: torch.dtype = torch.float32, **overrides) -> CrateForCausalLM:
    official = {name: value.to(dtype) for name, value in weights(file).items()}
    return load_official(official, FAMILIES[main_of(file)], num_attention_heads=4, **overrides)


def tokens_of(file: str) -> tuple[Tensor, Tensor]:
    """Token ids, and the golden targets with transformers' word for "ignored"."""
    main = load_golden(SET, main_of(file))
    return main["idx"], main["targets"].masked_fill(main["targets"] == -1, -100)


def state_tensors(model: CrateForCausalLM, outputs) -> dict:
    computed = {"tokens_embedded": outputs.hidden_states[0], "logits": outputs.logits}
    for layer in range(model.config.num_hidden_layers):
        half, before = outputs.compressed_states[layer], outputs.hidden_states[layer]
        computed |= {
            f"layer{layer}.projected": outputs.projected_states[layer].transpose(1, 2).flatten(2),
            f"layer{layer}.half": half,
            f"layer{layer}.mssa_out": half - before,
            f"layer{layer}.out": outputs.hidden_states[layer + 1],
        }
    first = model.crate.layers[0].sparsify
    computed["layer0.code2"] = outputs.sparse_codes[0]
    computed["layer0.code1"] = ista(first.norm(outputs.compressed_states[0]), first.ista.dictionary, 0.1, 0.1, 1)
    return {name: functools.partial(lambda x: x, value) for name, value in computed.items()}


def gradients(model: CrateForCausalLM, loss: Tensor, family: str) -> dict:
    """``grad.<official name>`` -> gradient, as the fork lays the tensor out."""
    model.zero_grad()
    loss.backward()
    computed = {}
    for name, parameter in model.named_parameters():
        official, grad = official_name(name, family), parameter.grad
        assert grad is not None, name
        transposed = family == "crate_lm_overcomplete" and official.endswith("ista.weight")
        computed[f"grad.{official}"] = functools.partial(lambda g: g, grad.T if transposed else grad)
    return computed


def test_every_golden_file_is_covered():
    probes = {f"layernorm_eps_probe_{name}" for name in FAMILIES}
    assert set(FILES) == {*FAMILIES, *(probes if golden_root() != FIXTURES else ())}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("file", FILES)
def test_forward_loss_and_gradients(file, dtype, attention):
    golden, (ids, targets) = load_golden(SET, file), tokens_of(file)
    model = model_of(file, dtype, attn_implementation=attention)
    outputs = model(ids, shift_labels=targets, **{f"output_{name}": True for name in STATES})
    final = model.crate(ids).last_hidden_state
    computed = state_tensors(model, outputs) | {
        "final_norm": lambda: final,
        "loss": lambda: outputs.loss[None],
        "logits_last_only": lambda: model(ids, logits_to_keep=1).logits,
    }
    if file in MAIN:
        computed |= gradients(model, outputs.loss, FAMILIES[file])
    generated = {name for name in golden if name.startswith("generate.")}
    compare(f"{SET}/{file} {dtype} {attention}", golden, computed, inputs=["idx", "targets", *generated])


@pytest.mark.parametrize("file", MAIN)
def test_labels_are_shifted_inside(file):
    ids, targets = tokens_of(file)
    model = model_of(file)
    ids, shifted = F.pad(ids, (0, 1)), F.pad(targets, (0, 1), value=-100)
    labels = F.pad(targets, (1, 0), value=-100)  # one place later: what the model shifts back
    assert torch.equal(model(ids, labels=labels).loss, model(ids, shift_labels=shifted).loss)
    assert not torch.equal(model(ids, labels=labels).loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("file", MAIN)
def test_greedy_generation_beyond_the_context(file, use_cache):
    """24 tokens and 10 new ones in a context of 32: the tenth step sees the last 32 only."""
    golden, (ids, _) = load_golden(SET, file), tokens_of(file)
    if "generate.greedy_top1.idx" not in golden:
        pytest.skip("of this file, the committed fixtures hold the first layer only")
    model = model_of(file)
    out = model.generate(
        ids,
        max_new_tokens=10,
        do_sample=False,
        use_cache=use_cache,
        context_overflow="crop",
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, golden["generate.greedy_top1.idx"])
    if "generate.greedy_top1.step_logits" in golden:
        steps = golden["generate.greedy_top1.step_logits"]
        torch.testing.assert_close(torch.stack(out.logits, 1), steps, atol=2e-5 * steps.abs().max().item(), rtol=0)


@pytest.mark.parametrize("name, top_k, temperature", [("top5_t0.8", 5, 0.8), ("full_t1.0", 0, 1.0)])
@pytest.mark.parametrize("file", MAIN)
def test_sampling_draws_the_same_tokens(file, name, top_k, temperature):
    golden, (ids, _) = load_golden(SET, file), tokens_of(file)
    if f"generate.{name}.idx" not in golden:
        pytest.skip("the committed fixtures hold the greedy sequences only")
    model, meta = model_of(file), golden_meta(SET)["files"][f"{file}.safetensors"]
    torch.manual_seed(meta["seeds"]["generate_torch_manual_seed"])
    settings = {"do_sample": True, "top_k": top_k, "temperature": temperature, "context_overflow": "crop"}
    assert torch.equal(model.generate(ids, max_new_tokens=10, **settings), golden[f"generate.{name}.idx"])


@pytest.mark.parametrize("file", MAIN)
def test_the_norms_eps_is_the_forks(file):
    model = model_of(file)
    eps = [m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(eps) == 2 * model.config.num_hidden_layers + (file == "overcomplete") and set(eps) == {1e-5}


PUBLISHED_COUNTS = {
    "gpt-base": ("crate-lm complete (vocab 50304, block 1024)", "base 12L 12H 768"),
    "gpt-1-layer": ("crate-lm complete (vocab 50304, block 1024)", "config/train_gpt2.py 1L n_head=4 n_embd=512"),
    "lm-base": ("crate-lm overcomplete (vocab 50304, block 1024)", "base 12L 12H 768"),
    "lm-1-layer": ("crate-lm overcomplete (vocab 50304, block 1024)", "config/train_gpt2.py 1L n_head=4 n_embd=512"),
}


@pytest.mark.parametrize("size", PUBLISHED_COUNTS)
def test_named_sizes_have_the_forks_counts(size):
    family, name = PUBLISHED_COUNTS[size]
    expected = golden_meta("param_counts")["counts"][family][name]
    with torch.device("meta"):
        model = CrateForCausalLM(CrateTextConfig.from_size(size))
        official = to_official(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (count, len(official)) == (expected["parameters"], expected["state_dict_entries"])
    positions = model.crate.embeddings.position_embeddings.weight.numel()
    assert count - positions == expected["get_num_params_non_embedding"]


# --- names in and out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("file", MAIN)
def test_round_trip_is_key_for_key_and_bit_for_bit(file, dtype):
    official = {name: value.to(dtype) for name, value in weights(file).items()}
    back = to_official(load_official(official, FAMILIES[file], num_attention_heads=4))
    assert back.keys() == official.keys()
    assert all(value.dtype == back[name].dtype and torch.equal(value, back[name]) for name, value in official.items())


def training_dictionary(official: dict[str, Tensor]) -> dict:
    """What the fork's training loop writes (nanoGPT's words)."""
    return {
        "model": {f"_orig_mod.{name}": value for name, value in official.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 6e-4, "params": [0]}]},
        "model_args": {"n_head": 4, "n_embd": 48, "block_size": 32, "bias": True, "vocab_size": 97},
        "iter_num": 600000,
        "best_val_loss": torch.tensor(3.4),
        "config": {"dataset": "pile", "learning_rate": 6e-4, "compile": True},
    }


@pytest.mark.parametrize("file", MAIN)
def test_the_training_dictionary_says_how_many_heads(file, tmp_path):
    path, official = tmp_path / "ckpt.pt", weights(file)
    torch.save(training_dictionary(official), path)
    model = load_official(path, FAMILIES[file])
    assert (model.config.num_attention_heads, model.config.max_position_embeddings) == (4, 32)
    assert all(torch.equal(value, official[name]) for name, value in to_official(model).items())
    with pytest.raises(ValueError, match="num_attention_heads cannot be inferred"):
        load_official(official, FAMILIES[file])


@pytest.mark.parametrize("missing", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_copy_may_be_left_out(missing):
    official = weights("complete")
    model = load_official({n: v for n, v in official.items() if n != missing}, "crate_lm", num_attention_heads=4)
    assert torch.equal(to_official(model)[missing], official[missing])
    assert model.lm_head.weight is model.crate.embeddings.token_embeddings.weight


def changed(file: str, **changes) -> dict[str, Tensor]:
    official = {**weights(file), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in official.items() if value is not None}


@pytest.mark.parametrize(
    "official, family, options, message",
    [
        (weights("overcomplete"), "crate_lm", {}, "unexpected keys .*ln_f"),
        (weights("complete"), "crate_lm_overcomplete", {}, r"missing .*ln_f|dictionary_expansion"),
        (changed("complete", lm_head__weight=torch.ones(97, 48)), "crate_lm", {}, "differ, but .* ties them"),
        (
            changed("complete", transformer__h__0__attn__bias=torch.ones(1, 1, 32, 32)),
            "crate_lm",
            {},
            "not a causal mask",
        ),
        (changed("complete", transformer__wpe__weight=None), "crate_lm", {}, "'transformer.wpe.weight' is missing"),
        (changed("complete", transformer__h__1__ista__weight=None), "crate_lm", {}, "missing .*h.1.ista.weight"),
        (changed("complete", lm_head__weight=None, transformer__wte__weight=None), "crate_lm", {}, "wte.* is missing"),
        (weights("complete"), "crate_lm", {"num_attention_heads": 5}, "does not divide K p = 48"),
        (weights("complete"), "crate_lm", {"image_size": 32}, "for images; family 'crate_lm' reads text"),
        (weights("complete"), "crate", {}, "does not look like family 'crate'"),
        ({"cls_token": torch.ones(1, 1, 48)}, "crate_lm", {}, "does not look like family 'crate_lm'"),
    ],
)
def test_what_does_not_fit_is_refused(official, family, options, message):
    with pytest.raises(ValueError, match=message):
        load_official(official, family, **{"num_attention_heads": 4, **options})


@pytest.mark.parametrize(
    "change", [{"final_norm": True}, {"tie_word_embeddings": False}, {"ista_step_size": 0.2}, {"type_vocab_size": 2}]
)
def test_settings_the_fork_does_not_have_are_not_exported(change):
    config = model_of("complete").config
    model = CrateForCausalLM(type(config)(**{**config.to_dict(), **change}))
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.* no counterpart"):
        to_official(model)
