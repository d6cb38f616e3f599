"""FLOPs and bytes per CRATE layer on an accelerator, and the training rate they allow (bf16 autocast).

    python roofline.py [--batch 256] [--tokens 197] [--width 768] [--heads 12] [--layers 12]

Two machines, two ways to run the pointwise kernels: eager (each torch kernel reads and writes memory) and fused
(torch.compile). A kernel takes max(FLOPs / rate, bytes / bandwidth) + launch. All numbers are computed, none measured.
"""

import argparse

a = argparse.ArgumentParser()
for n, d in (("batch", 256), ("tokens", 197), ("width", 768), ("heads", 12), ("layers", 12)):
    a.add_argument("--" + n, type=int, default=d)
a = a.parse_args()
B, N, d, K, L = a.batch, a.tokens, a.width, a.heads, a.layers
p, R = d // K, B * N
E = R * d  # elements of one token tensor
GPU = {  # dense bf16 peak, share of it that large GEMMs reach, flash rate fwd/bwd (hd 64, FA2 in torch), HBM, its share
    "H100 SXM": dict(peak=989e12, gemm=0.68, ff=330e12, fb=260e12, bw=3.35e12, eff=0.85),
    "H200": dict(peak=989e12, gemm=0.70, ff=335e12, fb=265e12, bw=4.8e12, eff=0.85),
}
LAUNCH = 4e-6


def layer(kind, ln_fp32, fused):
    """[(name, flops, bytes, unit)] of forward and of backward; unit: gemm | ff | fb | mem"""

    def g(name, m, n, k):
        return name, 2 * m * n * k, 2 * (m * k + k * n + m * n), "gemm"

    f, b = [], []
    ista = {"ours": 1, "textbook": 3, "vit": 0}[kind]
    # pointwise bytes per element of (rows, d)
    if fused:  # LN+cast: read bf16 write bf16; add fused into the next LN; relu/sub into one kernel
        ln, lnb = 4, 8
    else:  # CUDA autocast: layer_norm runs in float32: cast in (2+4), LN (4+4), cast out (4+2)
        ln, lnb = (20, 4 * 3 + 12) if ln_fp32 else (4, 6)
    att = 4 * R * N * d
    if kind == "vit":
        f += [
            ("LN x2", 0, 2 * ln * E, "mem"),
            g("qkv", R, 3 * d, d),
            ("flash", att, 8 * E, "ff"),
            g("out", R, d, d),
            ("add x2", 0, (6 if not fused else 2) * 2 * E, "mem"),
            g("up", R, 4 * d, d),
            ("gelu", 0, 4 * 4 * E if not fused else 16 * E, "mem"),
            g("down", R, d, 4 * d),
        ]
        b += [
            g("qkv dx", R, d, 3 * d),
            g("qkv dw", 3 * d, d, R),
            ("flash bwd", 2.5 * att, 16 * E, "fb"),
            g("out dx", R, d, d),
            g("out dw", d, d, R),
            g("up dx", R, d, 4 * d),
            g("up dw", 4 * d, d, R),
            g("down dx", R, 4 * d, d),
            g("down dw", d, 4 * d, R),
            ("LN bwd x2", 0, 2 * lnb * E, "mem"),
            ("gelu bwd", 0, 6 * 4 * E, "mem"),
            ("grad adds", 0, 2 * 6 * E, "mem"),
            ("bias sums", 0, 2 * 9 * E, "mem"),
        ]
    else:
        f += [
            ("LN x2", 0, 2 * ln * E, "mem"),
            g("U", R, d, d),
            g("out W", R, d, d),
            ("residual add", 0, (6 if not fused else 2) * E, "mem"),
        ]
        f += (
            [("flash q=k=v", att, 8 * E, "ff")]
            if kind == "ours"
            else [
                g("scores", R * K, N, p),
                ("scale+softmax f32", 0, B * K * N * N * ((2 + 2) + (2 + 4) + 8 + 6 if not fused else 6), "mem"),
                g("maps V", R * K, p, N),
            ]
        )
        if kind == "ours":
            f += [
                ("M = I+eta(D-D'D)", 2 * d**3, 30 * d * d, "gemm"),
                g("ISTA X M", R, d, d),
                ("ReLU", 0, (4 if not fused else 2) * E, "mem"),
            ]
        else:
            f += [g("ISTA", R, d, d)] * 3 + [
                ("sub, scale, add, relu", 0, (6 + 4 + 4 + 6 + 4 if not fused else 8) * E, "mem")
            ]
        b += [g("U dx", R, d, d), g("U dw", d, d, R), g("W dx", R, d, d), g("W dw", d, d, R)] + [
            g("ISTA dx", R, d, d),
            g("ISTA dw", d, d, R),
        ] * ista
        b += (
            [("flash bwd", 2.5 * att, 16 * E, "fb"), ("dq+dk+dv", 0, (12 if not fused else 8) * E, "mem")]
            if kind == "ours"
            else [g("att bwd", R * K, N, p)] * 4
            + [("softmax bwd", 0, B * K * N * N * (30 if not fused else 12), "mem"), ("dv sums", 0, 12 * E, "mem")]
        )
        if kind == "ours":
            b += [("M bwd (2 products of d^3)", 4 * d**3, 40 * d * d, "gemm")]
        b += [
            ("LN bwd x2", 0, 2 * lnb * E, "mem"),
            ("ReLU bwd", 0, (6 if not fused else 2) * E, "mem"),
            ("residual grad add", 0, (6 if not fused else 0) * E, "mem"),
            ("bias sum", 0, 2 * E, "mem"),
        ]
        if kind == "textbook":
            b += [("pointwise bwd", 0, (20 if not fused else 8) * E, "mem")]
    return f, b


def seconds(ops, m, fused):
    t = {}
    for name, fl, by, unit in ops:
        rate = {"gemm": m["peak"] * m["gemm"], "ff": m["ff"], "fb": m["fb"], "mem": 1e30}[unit]
        t[name] = (
            t.get(name, 0) + max(fl / rate, by / (m["bw"] * m["eff"])) + LAUNCH * (0 if fused and unit == "mem" else 1)
        )
    return t


for gpu, m in GPU.items():
    print(f"== {gpu}, batch {B}, N {N}, d {d}, L {L}")
    for kind in ("ours", "textbook", "vit"):
        for fused, ln32 in ((False, True), (False, False), (True, True)):
            f, b = layer(kind, ln32, fused)
            tf, tb = seconds(f, m, fused), seconds(b, m, fused)
            fl = sum(o[1] for o in f) * L + 2 * R * d * d
            tot = sum(o[1] for o in f + b) * L + 6 * R * d * d
            params = {"ours": 3 * d * d, "textbook": 3 * d * d, "vit": 12 * d * d}[kind] * L
            opt = params * 28 / (m["bw"] * m["eff"])
            emb = 3 * 2 * R * d * d / (m["peak"] * m["gemm"]) + 60 * E / (m["bw"] * m["eff"])
            T, Ti = L * (sum(tf.values()) + sum(tb.values())) + opt + emb, L * sum(tf.values()) + emb / 3
            useful = 3 * (L * (sum(o[1] for o in f if o[3] != "mem" and not o[0].startswith("M "))))
            if kind == "textbook":
                useful = 3 * L * sum(o[1] for o in layer("ours", True, fused)[0] if not o[0].startswith("M "))
            form = "fused" if fused else "eager" if ln32 else "eager, LN in bf16"
            rates = f"train {B / T:7.0f} img/s ({1e3 * T:6.1f} ms, MFU {useful / T / m['peak']:.0%})"
            print(f"  {kind:9s} {form}: {rates}, infer {B / Ti:7.0f} img/s")
            if kind == "ours":
                for title, t in (("fwd", tf), ("bwd", tb)):
                    print("      " + title + " us/layer: " + ", ".join(f"{k} {1e6 * v:.0f}" for k, v in t.items()))
f, b = layer("ours", True, False)
print(
    "ours, per layer: forward GFLOP",
    round(sum(o[1] for o in f) / 1e9, 1),
    "of them M",
    round(2 * d**3 / 1e9, 2),
    "| backward GFLOP",
    round(sum(o[1] for o in b) / 1e9, 1),
    "| forward GB",
    round(sum(o[2] for o in f) / 1e9, 2),
    "of them pointwise",
    round(sum(o[2] for o in f if o[3] == "mem") / 1e9, 2),
    "| backward GB",
    round(sum(o[2] for o in b) / 1e9, 2),
    "of them pointwise",
    round(sum(o[2] for o in b if o[3] == "mem") / 1e9, 2),
)
