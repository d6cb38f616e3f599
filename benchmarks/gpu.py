"""OpenCRATE on one GPU: correctness, speed, memory, decoding, measuring; eager and compiled, against textbook and ViT.

    python benchmarks/gpu.py [--budget 285] [--batch 256] [--layers 12] [--out results.json] [--smoke]

Needs opencrate, torch and transformers only; about 5 minutes on one H100. Sections run in order of importance and
are left out when the budget is spent; an error ends its section alone. `--smoke` runs everything at tiny size, also on
a CPU. MFU counts the products that the maths needs (one GEMM per ISTA step, backward = 2 forwards) over the card's
dense bf16 peak. Times are medians of CUDA-event timings; variants of one comparison are timed in turns.
"""

import argparse
import contextlib
import functools
import gc
import json
import os
import statistics
import time
import traceback
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--budget", type=float, default=285)
parser.add_argument("--batch", type=int, default=256)
parser.add_argument("--layers", type=int, help="12, in the smoke form 2")
parser.add_argument("--out", default=os.path.join(os.environ.get("OUT", "."), "gpu_bench.json"))
parser.add_argument("--smoke", action="store_true")
parser.add_argument("--only", nargs="*", help="names of sections")
a = parser.parse_args()
START = time.perf_counter()
CUDA = torch.cuda.is_available()
DEV = torch.device("cuda" if CUDA else "cpu")
TINY = a.smoke
BATCH = 2 if TINY else a.batch
IMG = 32 if TINY else 224
D, L, K = (64, a.layers or 2, 4) if TINY else (768, a.layers or 12, 12)
REPS = 2 if TINY else 7
RESULTS = {}
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def left():
    return a.budget - (time.perf_counter() - START)


def sync():
    if CUDA:
        torch.cuda.synchronize()


def clean():
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def in_turns(functions, reps=REPS, warm=3, inner=1):
    """{name: median seconds of one call}, the functions called in turns."""
    times = {name: [] for name in functions}
    for f in functions.values():
        for _ in range(1 if TINY else warm):
            f()
    sync()
    for _ in range(reps):
        for name, f in functions.items():
            if CUDA:
                s, e = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                s.record()
                for _ in range(inner):
                    f()
                e.record()
                e.synchronize()
                times[name].append(s.elapsed_time(e) / 1e3 / inner)
            else:
                t = time.perf_counter()
                for _ in range(inner):
                    f()
                times[name].append((time.perf_counter() - t) / inner)
    return {name: statistics.median(t) for name, t in times.items()}


def amp(on=True):
    return torch.autocast(DEV.type, dtype=torch.bfloat16, enabled=on)


def note(section, name, **values):
    RESULTS.setdefault(section, {})[name] = values
    print(
        f"  {name:44s} " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()),
        flush=True,
    )


SECTIONS = []


def section(need):
    """Register a section that is left out with fewer than `need` seconds left."""

    def add(function):
        SECTIONS.append((function.__name__, need, function))
        return function

    return add


# --- models -----------------------------------------------------------------------------------------------------------

from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification  # noqa: E402

from opencrate import CrateConfig, CrateForCausalLM, CrateForImageClassification, CrateTextConfig  # noqa: E402
from opencrate.bench.published import PublishedLayer as TextbookLayer  # noqa: E402
from opencrate.objective import coding_rate  # noqa: E402


def crate(**more):
    torch.manual_seed(0)
    size = dict(
        hidden_size=D, num_hidden_layers=L, num_attention_heads=K, image_size=IMG, patch_size=16, num_labels=1000
    )
    return CrateForImageClassification(CrateConfig(**{**size, **more}))


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=K,
        intermediate_size=4 * D,
        image_size=IMG,
        patch_size=16,
        num_labels=1000,
    )
    config._attn_implementation = "sdpa"
    return ViTForImageClassification(config)


def textbook():
    model = crate()
    model.crate.layers = nn.ModuleList([TextbookLayer(layer, model.config) for layer in model.crate.layers])
    return model


class HalfNorm(nn.LayerNorm):
    """Proposal: LayerNorm that stays in the tokens' dtype under autocast (its statistics are float32 in the kernel)."""

    def forward(self, X):
        with torch.autocast(X.device.type, enabled=False):
            return F.layer_norm(X, self.normalized_shape, self.weight.to(X.dtype), self.bias.to(X.dtype), self.eps)


def half_norms(model):
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = HalfNorm
    return model


def flops(kind, batch, train):
    """Of the products that the maths needs."""
    n = 1 + (IMG // 16) ** 2
    rows = batch * n
    layer = {"crate": 6 * rows * D * D, "vit": 24 * rows * D * D}[kind] + 4 * rows * n * D
    return (L * layer + 2 * rows * D * 768) * (3 if train else 1)


def logits(m, x):
    return m(x).logits


def inference(m, x, half=True):
    def call():
        with torch.no_grad(), amp(half):
            return logits(m, x)

    return call


def training(m, x, y, half=True):
    m.train()
    opt = torch.optim.AdamW(m.parameters(), lr=1e-5, fused=CUDA)

    def call():
        with amp(half):
            out = logits(m, x)
        F.cross_entropy(out.float(), y).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    return call


def images(batch=BATCH):
    return torch.randn(batch, 3, IMG, IMG, device=DEV), torch.randint(1000, (batch,), device=DEV)


PEAK = None


def peak_of_card():
    name = torch.cuda.get_device_name() if CUDA else "cpu"
    return next((p for n, p in PEAKS.items() if n in name), None), name


# --- sections ---------------------------------------------------------------------------------------------------------


@section(10)
def machine():
    global PEAK
    PEAK, name = peak_of_card()
    rates, n = {}, 1 + (IMG // 16) ** 2
    for label, (m, k, o) in {
        "4096^3": (4096,) * 3,
        "rows x d x d": (BATCH * n, D, D),
        "rows x d x 4d": (BATCH * n, D, 4 * D),
        "dW: d x rows x d": (D, BATCH * n, D),
    }.items():
        if TINY:
            m, k, o = min(m, 256), min(k, 256), min(o, 256)
        for dtype in (torch.bfloat16, torch.float32):
            x, w = torch.randn(m, k, device=DEV, dtype=dtype), torch.randn(o, k, device=DEV, dtype=dtype)
            t = in_turns({"g": functools.partial(F.linear, x, w)}, inner=5)["g"]
            rates[f"{label} {str(dtype)[6:]}"] = 2 * m * k * o / t / 1e12
    PEAK = PEAK or max(rates.values()) * 1e12
    x = torch.empty((64 if not TINY else 1) << 20, device=DEV)
    t = in_turns({"copy": lambda: x.add_(1)})["copy"]
    note(
        "machine",
        name,
        torch=torch.__version__,
        peak_TF=PEAK / 1e12,
        **{k + " TF/s": v for k, v in rates.items()},
        memory_GBps=8 * x.numel() / t / 1e9,
    )


@section(15)
def correctness():
    cpu = crate().double().eval()
    x = torch.randn(4, 3, IMG, IMG)
    with torch.no_grad():
        ref = cpu(x.double()).logits
        scale = ref.abs().max().item()
        f32 = cpu.float()(x).logits
    gpu = crate().to(DEV).eval()
    gpu.load_state_dict(cpu.float().state_dict())
    tb = textbook().to(DEV).eval()
    errors = {"CPU fp32": f32}
    with torch.no_grad():
        xd = x.to(DEV)
        errors["GPU fp32"] = gpu(xd).logits
        if CUDA:
            torch.backends.cuda.matmul.allow_tf32 = True
            errors["GPU tf32"] = gpu(xd).logits
            torch.backends.cuda.matmul.allow_tf32 = False
        with amp():
            errors["GPU bf16 autocast"] = gpu(xd).logits
            errors["GPU bf16 autocast textbook"] = tb(xd).logits
            errors["GPU bf16 autocast, LN in bf16"] = half_norms(crate().to(DEV).eval())(xd).logits
        errors["GPU bf16 weights"] = crate().to(DEV, torch.bfloat16).eval()(xd.bfloat16()).logits
        large = xd.repeat(64 if not TINY else 2, 1, 1, 1)
        errors["GPU fp32, batch of copies (one-matrix form)"] = gpu(large).logits[:4]
    for name, out in errors.items():
        note(
            "correctness",
            name,
            max_error=(out.double().cpu() - ref).abs().max().item() / scale,
            rms=((out.double().cpu() - ref).norm() / ref.norm()).item(),
        )
    y = torch.tensor([1, 2, 3, 4])
    grads = []
    for m, xx, yy in ((cpu.float().train(), x, y), (gpu.train(), xd, y.to(DEV))):
        F.cross_entropy(m(xx).logits, yy).backward()
        grads.append(torch.cat([p.grad.double().flatten().cpu() for p in m.parameters()]))
    note(
        "correctness",
        "gradient, GPU fp32 against CPU fp32",
        rms=((grads[0] - grads[1]).norm() / grads[0].norm()).item(),
    )


@section(30)
def eager():
    x, y = images()
    made = {"ours": crate, "ours, LN in bf16": lambda: half_norms(crate()), "textbook": textbook, "ViT": vit}
    fs, mem = {}, {}
    for mode in ("infer", "train"):
        models = {n: m().to(DEV).eval() for n, m in made.items()}
        fs = {n: (inference(m, x) if mode == "infer" else training(m, x, y)) for n, m in models.items()}
        for n, f in fs.items():
            f()
            clean()
            before = torch.cuda.memory_allocated() if CUDA else 0
            f()
            sync()
            mem[n] = (torch.cuda.max_memory_allocated() - before) / 2**30 if CUDA else 0.0
        t = in_turns(fs, reps=REPS)
        for n, s in t.items():
            kind = "vit" if n == "ViT" else "crate"
            note(
                "eager bf16 autocast, " + mode,
                n,
                img_s=BATCH / s,
                ms=1e3 * s,
                MFU=flops(kind, BATCH, mode == "train") / s / PEAK,
                peak_GiB=mem[n],
                x_ours=s / t["ours"],
            )
        del models, fs
        clean()


@section(10)
def syncs():
    """Waits for the GPU that inference or a training step forces (0 expected), and kernels per step."""
    if not CUDA:
        return print("  (needs CUDA)")
    m = crate().to(DEV)
    x, y = images(8)
    for name, f in {"inference": inference(m.eval(), x), "training step": training(m, x, y)}.items():
        f()
        sync()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            f()
        torch.cuda.set_sync_debug_mode("default")
        found = [str(w.message)[:80] for w in caught if "synchron" in str(w.message)]
        note("syncs", name, count=len(found), where="; ".join(sorted(set(found)))[:200])


@section(60)
def compiled():
    x, y = images()
    for mode in ("infer", "train"):
        took = {}
        for n, make in {"ours": crate, "ViT": vit, "textbook": textbook}.items():
            if left() < 45:
                continue
            m = make().to(DEV).eval() if mode == "infer" else make().to(DEV).train()
            torch._dynamo.reset()
            c = torch.compile(m)
            f = inference(c, x) if mode == "infer" else training(c, x, y)
            t = time.perf_counter()
            f()
            sync()
            took[n] = time.perf_counter() - t
            clean()
            before = torch.cuda.memory_allocated() if CUDA else 0
            f()
            sync()
            mem = (torch.cuda.max_memory_allocated() - before) / 2**30 if CUDA else 0.0
            s = in_turns({n: f})[n]
            kind = "vit" if n == "ViT" else "crate"
            breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
            note(
                "compiled bf16 autocast, " + mode,
                n,
                img_s=BATCH / s,
                ms=1e3 * s,
                MFU=flops(kind, BATCH, mode == "train") / s / PEAK,
                peak_GiB=mem,
                compile_s=took[n],
                graph_breaks=breaks,
            )
            del m, c, f
            clean()


@section(20)
def kernels():
    """The CUDA kernels of one eager training step of ours, by time."""
    from torch.profiler import ProfilerActivity, profile

    m = crate().to(DEV)
    x, y = images()
    f = training(m, x, y)
    f(), f()
    with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as p:
        f()
        sync()
    key = (lambda e: e.self_device_time_total) if CUDA else (lambda e: e.self_cpu_time_total)
    events = sorted(p.key_averages(), key=key, reverse=True)
    total = sum(map(key, events)) or 1
    for e in events[:14]:
        note("kernels of a training step", e.key[:44], ms=key(e) / 1e3, share=key(e) / total, calls=e.count)
    note("kernels of a training step", "all", ms=total / 1e3, calls=sum(e.count for e in events))


@section(20)
def attention():
    """Forward and backward of softmax(V V') V by backend, and of the model by implementation."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    b = 2 if TINY else 64
    for n in (1 + (IMG // 16) ** 2, 64 if TINY else 1025):
        base = torch.randn(b, n, K, D // K, device=DEV, dtype=torch.bfloat16)
        fs = {}
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            backend = getattr(SDPBackend, name)

            def call(back=backend, base=base):
                V = base.detach().requires_grad_().transpose(1, 2)
                with sdpa_kernel(back):
                    F.scaled_dot_product_attention(V, V, V).sum().backward()

            fs[name] = call

        def plain(base=base):
            V = base.detach().requires_grad_().transpose(1, 2)
            ((V @ V.mT * (D // K) ** -0.5).softmax(-1) @ V).sum().backward()

        fs["two products"] = plain
        for name, f in fs.items():
            try:
                note(f"attention forward+backward, {b} x {n}", name, ms=1e3 * in_turns({name: f})[name])
            except Exception as e:
                print("  ", name, "not here:", str(e)[:80].replace("\n", " "))
        clean()
    x, _ = images()
    for name in ("sdpa", "eager", "flex_attention"):
        if left() < 30:
            return
        try:
            m = crate().to(DEV).eval()
            m.set_attn_implementation(name)
            note("model inference by attention", name, img_s=BATCH / in_turns({name: inference(m, x)}, reps=3)[name])
        except Exception as e:
            print("  ", name, "fails:", type(e).__name__, str(e)[:120].replace("\n", " "))
        clean()


@section(25)
def small_batches():
    """Latency: building M = I + eta (D - D'D) anew costs 2 d^3 per layer whatever the batch; CUDA launches dominate."""
    m, v = crate().to(DEV).eval(), vit().to(DEV).eval()
    for b in (1, 4, 16):
        x, _ = images(b)
        t = in_turns({"ours": inference(m, x), "ViT": inference(v, x)}, inner=3)
        note("latency, eager bf16", f"batch {b}", ours_ms=1e3 * t["ours"], ViT_ms=1e3 * t["ViT"])
    if CUDA:
        x, _ = images(1)
        for name, model in (("ours", m), ("ViT", v)):
            with contextlib.suppress(Exception), torch.no_grad(), amp():
                for _ in range(3):
                    model(x)
                graph = torch.cuda.CUDAGraph()
                sync()
                with torch.cuda.graph(graph):
                    model(x)
                note("latency, CUDA graph", name, ms=1e3 * in_turns({"g": graph.replay})["g"])


@section(35)
def decoding():
    sizes = dict(
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=K,
        vocab_size=50304 if not TINY else 100,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    ours = CrateForCausalLM(CrateTextConfig(**sizes)).to(DEV, torch.bfloat16).eval()
    config = GPT2Config(
        n_embd=D,
        n_layer=L,
        n_head=K,
        vocab_size=sizes["vocab_size"],
        n_positions=1024,
        bos_token_id=None,
        eos_token_id=None,
    )
    other = GPT2LMHeadModel(config).to(DEV, torch.bfloat16).eval()
    prompt, new = (8, 8) if TINY else (256, 256)
    for b in (1, 8, 64):
        ids = torch.randint(sizes["vocab_size"], (b, prompt), device=DEV)
        fs = {
            n: functools.partial(
                m.generate, ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
            )
            for n, m in (("ours", ours), ("GPT-2", other))
        }
        t = in_turns(fs, reps=1 if TINY else 2, warm=1)

        def anew(b=b, n=prompt + new // 2):
            with torch.no_grad():
                ours(torch.zeros(b, n, dtype=torch.long, device=DEV), use_cache=False, logits_to_keep=1)

        whole = in_turns({"anew": anew}, reps=3)["anew"]
        note(
            f"decoding bf16, prompt + new = {prompt} + {new}",
            f"batch {b}",
            ours_tok_s=b * new / t["ours"],
            GPT2_tok_s=b * new / t["GPT-2"],
            whole_context_anew_tok_s=b / whole,
        )
        if left() < 15:
            return
    with torch.no_grad():
        for n, m in (("ours", ours), ("GPT-2", other)):
            cache = m(ids[:1], use_cache=True).past_key_values
            note(
                "cache",
                n,
                bytes_per_token=sum(
                    s.numel() * s.element_size() for layer in cache.layers for s in (layer.keys, layer.values)
                )
                / prompt,
            )


@section(25)
def measuring():
    """Coding rates on the GPU against the published form, and layer measures against bare forwards."""
    n, p = 1 + (IMG // 16) ** 2, D // K
    V = torch.randn(2 if TINY else 32, K, n, p, device=DEV)

    def published():
        W = V / V.norm(dim=-1, keepdim=True)
        return torch.logdet(torch.eye(n, device=DEV) + p / (n * 0.01) * W @ W.mT).sum(-1) / 2

    def ours():
        return coding_rate(F.normalize(V, dim=-1), 0.1).sum(-1)

    note("coding rate", "difference", relative=((published() - ours()).abs().max() / ours().abs().max()).item())
    t = in_turns({"published, N x N": published, "ours": ours}, reps=3)
    for name, s in t.items():
        note("coding rate", name, ms=1e3 * s)
    from opencrate.analysis.layers.result import layer_measures

    m = crate().to(DEV).eval()
    count = 4 if TINY else 128
    batches = [torch.randn(min(32, count), 3, IMG, IMG) for _ in range(max(1, count // 32))]

    def bare():
        with torch.no_grad():
            for batch in batches:
                m(batch.to(DEV))

    t = in_turns({"bare forward": bare, "basic": lambda: layer_measures(m, batches)}, reps=2, warm=1)
    for name, s in t.items():
        note("layer measures fp32", name, img_s=count / s, x_bare=s / t["bare forward"])


@section(15)
def optimizers():
    from opencrate.training.muon import MuonAdamW
    from opencrate.training.optimizers import muon_groups

    m = crate().to(DEV)
    for q in m.parameters():
        q.grad = torch.randn_like(q)
    opts = {
        "AdamW fused": torch.optim.AdamW(m.parameters(), lr=0.0, fused=CUDA),
        "AdamW": torch.optim.AdamW(m.parameters(), lr=0.0),
        "Muon": MuonAdamW(muon_groups(m, 0.0), lr=0.0),
    }
    for name, s in in_turns({n: o.step for n, o in opts.items()}, reps=3).items():
        note("optimizer step", name, ms=1e3 * s)


@section(40)
def long_context():
    """Inference with tokens 197 -> 4096, batch scaled to keep the tokens equal."""
    global IMG
    before = IMG
    for size in (32, 64) if TINY else (224, 512, 1024):
        if left() < 15:
            break
        IMG = size
        b = max(1, BATCH * 197 // (1 + (size // 16) ** 2))
        x, _ = images(b)
        t = in_turns({"ours": inference(crate().to(DEV).eval(), x), "ViT": inference(vit().to(DEV).eval(), x)}, reps=3)
        note("tokens", f"{1 + (size // 16) ** 2} (batch {b})", ours_img_s=b / t["ours"], ViT_img_s=b / t["ViT"])
        clean()
    IMG = before


for name, need, function in SECTIONS:
    if a.only and name not in a.only:
        continue
    if left() < need and not TINY:
        print(f"== {name}: left out, {left():.0f} s left", flush=True)
        continue
    print(f"== {name}  ({time.perf_counter() - START:.0f} s)", flush=True)
    try:
        function()
    except Exception:
        traceback.print_exc()
    clean()
    with open(a.out, "w") as file:
        json.dump(RESULTS, file, indent=1)
print(f"done in {time.perf_counter() - START:.0f} s; {a.out}")
