"""Small language models and tokenizers for the tests of this package and of the commands."""

import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from opencrate import CrateForCausalLM, CrateTextConfig
from opencrate.data.text.tokenizers import train_tokenizer
from opencrate.store.saved import SavedModel

STORY = "".join(f"The cat number {n} saw the dog and ran to tree {n * 7 % 5}.\n" for n in range(60))


def fit(model, ids, steps, learning_rate=1e-2):
    """A few steps on random blocks of 32 tokens of one text, so that the model knows something."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(ids) - 32, (16,), generator=generator)
        batch = torch.stack([ids[start : start + 32] for start in starts.tolist()])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


def causal(kind="gpt2", tokenizer=None, context=32, steps=0, dictionary=None):
    """A causal model: GPT-2, or CRATE (`dictionary`: further fields of its configuration)."""
    tokenizer = tokenizer or train_tokenizer("characters", [STORY])
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "gpt2":
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=context, n_embd=32, n_layer=2, n_head=2, **ends)
        model = GPT2LMHeadModel(config)
    else:
        size = {"vocab_size": len(tokenizer), "max_position_embeddings": context, **ends}
        model = CrateForCausalLM(CrateTextConfig.from_size("tiny", hidden_size=32, **size, **(dictionary or {})))
    if steps:
        fit(model, torch.tensor(tokenizer(STORY)["input_ids"]), steps)
    return SavedModel(kind, model.eval(), "causal", tokenizer)


def masked():
    """A BERT with the characters of STORY."""
    tokenizer = train_tokenizer("characters", [STORY], "masked")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, pad_token_id=0, **size)
    return SavedModel("bert", BertForMaskedLM(config).eval(), "masked", tokenizer)


def saved(language, folder):
    """The folder, with the model and its tokenizer in it."""
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    return folder
