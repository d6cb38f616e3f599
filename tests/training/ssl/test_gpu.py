"""On an accelerator the objectives give what a CPU gives, also under autocast in half precision."""

import pytest
import torch

from .common import GLOBAL, OBJECTIVES, views


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_cuda_equals_the_cpu(name):
    found = []
    for device in ("cpu", "cuda"):
        z = views().to(device).float().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            loss, parts = OBJECTIVES[name](z, views(GLOBAL, seed=1).to(device).float())
        loss.backward()
        found.append([loss.detach().cpu(), z.grad.cpu(), *(part.cpu() for part in parts.values())])
    for on_cpu, on_cuda in zip(*found):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-4, atol=1e-5)
