"""The failure signatures that the doctor looks for: what is looked at, which threshold and why, what to do.

Every threshold is a constant below and stands, with its reason, in `CHECKS`.
"""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL, NOT_CHECKED = "ok", "warn", "fail", "not checked"

RANK_WARN, RANK_FAIL = 0.5, 0.25
OVERLAP_WARN, OVERLAP_FAIL = 0.5, 0.9
CONDITION_WARN_PER_DIM, CONDITION_FAIL = 1e3, 1e7
STEP_WARN, STEP_FAIL = 1.0, 2.0
DEAD_WARN, DEAD_FAIL = 0.1, 0.5
TOKEN_RANK_WARN, TOKEN_RANK_FAIL = 2.0, 1.1
GRADIENT_WARN, GRADIENT_FAIL = 1e2, 1e4
HALF_LIMIT = 65504.0
ACTIVATION_WARN = HALF_LIMIT / 16
SATURATED_WEIGHT = 0.999
SATURATION_WARN, SATURATION_FAIL = 0.5, 0.95
SPIKE_FACTOR, SPIKE_WINDOW = 2.0, 5
MIN_CLASS_IMAGES = 5
GAP_WARN, GAP_FAIL = 0.1, 0.3


@dataclass(frozen=True)
class Check:
    """One failure signature.

    Attributes:
        what: is looked at.
        threshold: when it warns and when it fails.
        reason: why the threshold lies there.
        advice: what to do about a warning or a failure.
    """

    what: str
    threshold: str
    reason: str
    advice: str


CHECKS: dict[str, Check] = {
    "finite": Check(
        "weights, states and outputs are numbers",
        "fails at the first NaN or infinity",
        "no later number means anything",
        "training diverged or the file is damaged: go back to the last good checkpoint, lower the learning rate, or "
        "clip gradients",
    ),
    "rate-trend": Check(
        "R^c(Z^{ℓ+½} | U^ℓ) over the layers",
        "warns if it rises at some layer, fails if the last layer is not below the first",
        "the layers are derived as steps that lower it; trained models are known not to do so at every layer, but the "
        "published ones do overall",
        "train longer, or add the sparse rate reduction as a regulariser; `opencrate analyze` shows the curve",
    ),
    "l0-trend": Check(
        "fraction of non-zero entries of the sparse codes over the layers",
        "warns if it rises at some layer, fails if the last layer is not below the first",
        "sparsification is the second half of every layer, and published models get sparser with depth overall",
        "raise model.config.ista_lambda, or train longer",
    ),
    "l1-trend": Check(
        "ℓ1 norm of the sparse codes, per token, over the layers",
        "warns if the last layer is not below the first; never fails",
        "the LASSO step lowers ℓ1, but every layer starts with a LayerNorm, so its scale is free",
        "look at the ℓ0 curve beside it before changing anything",
    ),
    "dead-atoms": Check(
        "atoms of D that no token of any image uses",
        f"warns above {100 * DEAD_WARN:g} % in a layer, fails above {100 * DEAD_FAIL:g} %",
        "an atom that is never used gets no gradient through the ReLU; a tenth is wasted width, a half is a collapse",
        "lower model.config.ista_lambda or the learning rate, lengthen the warm-up; few or uniform images also do this",
    ),
    "collapsed-subspaces": Check(
        "effective rank of each U_k against its dimension p",
        f"warns below {RANK_WARN:g} p, fails below {RANK_FAIL:g} p",
        "a random U_k has more than 0.9 p for K >= 4; below a half most of the head's columns repeat one another",
        "lower weight decay on U, raise model.config.subspace_penalty, or use fewer dimensions per head",
    ),
    "correlated-subspaces": Check(
        "overlap of two subspaces (mean squared cosine of their principal angles), beyond chance: 0 for random ones, "
        "which overlap by p/d, 1 for equal ones",
        f"warns above {OVERLAP_WARN:g}, fails above {OVERLAP_FAIL:g}",
        "R^c counts a shared direction once per subspace; at a half two heads share most of what they see, above "
        "nine tenths one of them is a copy",
        "raise model.config.subspace_penalty, set subspace_constraint=joint, or use fewer heads",
    ),
    "dictionary-condition": Check(
        "condition number of D (of the smaller side)",
        f"warns above {CONDITION_WARN_PER_DIM:g} d, fails above {CONDITION_FAIL:.0e}",
        "a square Gaussian D exceeds x d with probability about 2/x [Edelman 1988]: one untrained layer in 500 warns; "
        "at 1e7 the weakest direction drowns in float32's rounding",
        "raise model.config.dictionary_penalty or set dictionary_constraint=orthonormal",
    ),
    "ista-step": Check(
        "η ‖D‖² of the ISTA step",
        f"warns above {STEP_WARN:g}, fails from {STEP_FAIL:g} on",
        "up to 1 ISTA's rate of convergence is proven and below 2 a step still descends; from 2 on it can raise its "
        "LASSO objective, and repeated steps diverge",
        "lower model.config.ista_step_size or raise the weight decay of D",
    ),
    "token-rank": Check(
        "effective rank of an image's tokens after each layer, mean over images",
        f"warns below {TOKEN_RANK_WARN:g}, fails below {TOKEN_RANK_FAIL:g}",
        "at 1 all tokens are multiples of one vector and attention has nothing left to tell apart",
        "fewer layers, a smaller learning rate or a residual; the last layers of a mean-pooled classifier come closest",
    ),
    "gradient-depth": Check(
        "gradient norm over weight norm of every layer, largest against smallest, one backward pass",
        f"warns above {GRADIENT_WARN:g}, fails above {GRADIENT_FAIL:g} or where a layer gets none",
        "one learning rate serves layers within about two orders of magnitude; beyond four some do not learn",
        "lengthen the warm-up, clip gradients, lower the depth, or check for layers that are cut off",
    ),
    "half-precision": Check(
        "largest |entry| of any state",
        f"warns above {ACTIVATION_WARN:g} (1/16 of float16's limit {HALF_LIMIT:g}), fails above the limit if the model "
        "is float16",
        "products of two such states overflow float16; bfloat16 and float32 have the range",
        "use bf16 instead of fp16, or raise the weight decay",
    ),
    "softmax-saturation": Check(
        f"attention rows whose largest weight is above {SATURATED_WEIGHT:g}",
        f"warns above {100 * SATURATION_WARN:g} % of a layer's rows, fails above {100 * SATURATION_FAIL:g} %",
        "a saturated row copies one token and passes no gradient to its scores",
        "lower the learning rate, raise the weight decay of U, or set model.config.attention_scale lower",
    ),
    "loss-curve": Check(
        "training loss in the log",
        f"fails on NaN or infinity; warns where it is above {SPIKE_FACTOR:g} times the median of the {SPIKE_WINDOW} "
        "entries before it, or does not end below its start",
        "noise between epochs stays well below a doubling",
        "lower the learning rate, lengthen the warm-up, clip gradients (training.max_grad_norm)",
    ),
    "class-collapse": Check(
        "which classes are predicted",
        f"fails if all images get one class though the labels have several; warns if a class with at least "
        f"{MIN_CLASS_IMAGES} images is never predicted",
        "a constant prediction is what is left when the states carry nothing",
        "look at the class balance of the training data and at the checks above",
    ),
    "above-chance": Check(
        "accuracy against naming the most frequent class",
        "fails if the 95 % interval does not lie above",
        "a model at chance has learnt nothing that its other numbers could describe",
        "train longer or with another learning rate; check that labels and classes belong together",
    ),
    "generalisation-gap": Check(
        "accuracy on training images (no augmentation) minus on held-out images",
        f"warns above {100 * GAP_WARN:g} %, fails above {100 * GAP_FAIL:g} %, where the 95 % intervals do not overlap",
        "a tenth is the size of what regularisation usually changes; at a third most of what was learnt is memory",
        "more data or augmentation, weight decay, a smaller model, fewer epochs",
    ),
}
"""Every check by its id, in the order of the output."""
