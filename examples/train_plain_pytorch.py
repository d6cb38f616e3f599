"""A CRATE trained by a plain PyTorch loop on real digits, and its coding rates before and after.

python examples/train_plain_pytorch.py [--epochs 20]        # about 30 s on two cores
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from opencrate import CrateConfig, CrateForImageClassification, subspace_coding_rate


def rates(model: CrateForImageClassification, images: torch.Tensor) -> list[float]:
    """R^c(Z^{l+1/2} | U^l) of every layer, mean over images, in nats."""
    with torch.no_grad():
        states = model(images, output_compressed_states=True).compressed_states
        bases = [layer.compress.mssa.bases() for layer in model.crate.layers]
        return [subspace_coding_rate(Z, U, eps=0.5).mean().item() for Z, U in zip(states, bases)]


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    train, test = torch.tensor(train), torch.tensor(test)

    torch.manual_seed(0)
    model = CrateForImageClassification(CrateConfig.from_size("digits"))
    before = rates(model.eval(), images[test])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * -(-len(train) // 64))
    for epoch in range(epochs):
        model.train()
        for batch in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(images[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2d}  loss {loss.item():.3f}")

    with torch.no_grad():
        accuracy = (model.eval()(images[test]).logits.argmax(-1) == labels[test]).float().mean()
    print(f"test accuracy {accuracy:.2%}")
    for layer, (start, end) in enumerate(zip(before, rates(model, images[test])), 1):
        print(f"layer {layer}: R^c {start:6.1f} nats before training, {end:6.1f} after")


if __name__ == "__main__":
    main()
