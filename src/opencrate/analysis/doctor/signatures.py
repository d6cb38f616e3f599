"""The signs that the doctor looks for: what is measured, the threshold, the reason for it, and what to do.

Every threshold is a constant below and stands, with its origin, in `CHECKS`. "Trained" numbers are of the models in
`benchmarks/doctor_study.py`, on the seeds that set the thresholds; docs/results/doctor.md has the rates on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OK, FINDING, WARN, FAIL, NOT_CHECKED = "ok", "finding", "warn", "fail", "not checked"


class Verdicts:
    """What a list of `findings` comes to, each with a `verdict`."""

    findings: tuple[Any, ...]

    def count(self, verdict: str) -> int:
        """How many checks came to this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def healthy(self, strict: bool = False) -> bool:
        """No check failed; with `strict` none warned either. Findings, and checks not made, do not count."""
        return not self.count(FAIL) and not (strict and self.count(WARN))


SCALE_WARN, SCALE_FAIL = 5.0, 20.0
FEW_VALUES, FEW_VALUES_ENTRIES = 16, 32
TWIN_COSINE = 0.95
TWINS_FAIL = 0.05
RANK_WARN, RANK_FAIL = 0.5, 0.25
OVERLAP_WARN, OVERLAP_FAIL = 0.5, 0.9
CONDITION_PER_DIM, CONDITION_FAIL = 1e3, 1e7
STEP_FINDING, STEP_FAIL = 1.0, 20.0
DEAD_WARN, DEAD_FAIL = 0.5, 0.9
TOKEN_RANK_WARN, TOKEN_RANK_FAIL = 2.0, 1.1
EFFECT_WARN, EFFECT_FAIL = 0.01, 0.003
GRADIENT_WARN, GRADIENT_FAIL = 1e2, 1e4
HALF_LIMIT = 65504.0
ACTIVATION_WARN = HALF_LIMIT / 16
SATURATED_WEIGHT = 0.999
SATURATION_WARN, SATURATION_FAIL = 0.5, 0.95
SPIKE_FACTOR, SPIKE_WINDOW = 2.0, 5
INPUT_MEAN_FAIL, INPUT_STD_LOW, INPUT_STD_HIGH = 5.0, 0.02, 5.0
VARIATION_FAIL = 0.02
UNDECIDED_WARN = 0.95
ORDER_FAIL = 1e-3
MIN_CLASS_IMAGES = 5
CLASS_CHANCE = 1e-3
REORDER_FAIL = 0.1
STORED_ACCURACY, STORED_LOSS = 0.01, 0.01
STANDARD_ERRORS = 4.0
GAP_WARN, GAP_FAIL = 0.2, 0.4
TOKEN_ORDER_FAIL = 0.02
SAME_TOKEN_FAIL = 0.95


@dataclass(frozen=True)
class Check:
    """One sign of a failed training or of damage after it.

    Attributes:
        what: is looked at.
        threshold: from where on it speaks, and with which verdict.
        reason: where the threshold comes from.
        advice: what to do about it.
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
    "fresh-parameters": Check(
        "gains, biases and other vectors that are exactly 1 or exactly 0, as they are before training",
        "fails where all gains are, or where those of some layers are and those of most others are not; warns where a "
        "classifier's bias is",
        "one step of training moves every entry; no trained model here has one such layer",
        "these layers were not trained: check that the optimiser gets them, that the right weights were loaded, and "
        "that nothing re-initialised them",
    ),
    "layer-scale": Check(
        "root mean square of each matrix and gain against the same one in the other layers (largest distance from "
        "their median, as a factor)",
        f"warns above {SCALE_WARN:g}, fails above {SCALE_FAIL:g}",
        "trained models stay below the first",
        "look at the named layer: a gain or matrix that was zeroed, scaled, or loaded from elsewhere",
    ),
    "few-values": Check(
        f"distinct values of every matrix of at least {FEW_VALUES_ENTRIES} entries",
        f"fails at {FEW_VALUES} or fewer",
        "a trained matrix has about as many values as entries; 16 values are 4 bits, one is a blank",
        "the matrix was zeroed, never trained, or rounded: load the original weights",
    ),
    "duplicate-atoms": Check(
        f"atoms of D with another atom at a |cosine| above {TWIN_COSINE:g}",
        f"warns at the first, fails above {100 * TWINS_FAIL:g} % of a layer's",
        "no trained model here has one; between random atoms of width 96 the largest is about 0.45",
        "atoms were copied, or training pushed them together: raise model.config.dictionary_penalty",
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
        f"a finding above {CONDITION_PER_DIM:g} d, fails above {CONDITION_FAIL:.0e}",
        "a square Gaussian D exceeds x d with probability about 2/x [Edelman 1988]: one untrained layer in 500 does; "
        "at 1e7 the weakest direction drowns in float32's rounding",
        "raise model.config.dictionary_penalty or set dictionary_constraint=orthonormal",
    ),
    "ista-step": Check(
        "η ‖D‖² of the ISTA step",
        f"a finding above {STEP_FINDING:g}; fails above {STEP_FAIL:g}, and where η is not positive",
        "up to 1 ISTA's rate of convergence is proven and below 2 a step descends; good models trained with a larger η "
        "leave that range, so that alone is no fault",
        "lower model.config.ista_step_size or raise the weight decay of D; model.config.ista_step=bounded keeps η ‖D‖² "
        "below ista_step_size",
    ),
    "rate-trend": Check(
        "R^c(Z^{ℓ+½} | U^ℓ) over the layers",
        "a finding where it rises at some layer; never fails",
        "the layers are derived as steps that lower it; good models do not do so at every layer, some not at all",
        "nothing has to be done; the sparse rate reduction as a regulariser changes it, `opencrate analyze` shows it",
    ),
    "l0-trend": Check(
        "fraction of non-zero entries of the sparse codes over the layers",
        "a finding where it rises at some layer; never fails",
        "sparsification is the second half of every layer; good models do not get sparser at every layer",
        "nothing has to be done; model.config.ista_lambda changes it",
    ),
    "l1-trend": Check(
        "ℓ1 norm of the sparse codes, per token, over the layers",
        "a finding where the last layer is not below the first; never fails",
        "the LASSO step lowers ℓ1, but every layer starts with a LayerNorm, so its scale is free",
        "look at the ℓ0 curve beside it before changing anything",
    ),
    "certificate": Check(
        "R^c and the LASSO objective before and after each step of each layer, on each input",
        "fails where a step that must descend, by how its layer is built, rises by more than rounding; a finding where "
        "another one rises",
        "an exact gradient step of R^c within its bound, and ISTA steps with η below 2/‖D‖² from a start that the "
        "problem allows, descend whatever the weights are (docs/theory.md proves it); no other form promises it",
        "the layer does not compute what its weights say: look for hooks, quantised or merged weights, a step size or "
        "bound that was changed in the code, and states in half precision",
    ),
    "dead-atoms": Check(
        "atoms of D that no token of any input uses",
        f"warns above {100 * DEAD_WARN:g} % in a layer, fails above {100 * DEAD_FAIL:g} %",
        "an atom that is never used gets no gradient through the ReLU; at nine tenths hardly a code is left",
        "lower model.config.ista_lambda or the learning rate, lengthen the warm-up; few or uniform images also do this",
    ),
    "token-rank": Check(
        "effective rank of an input's tokens after each layer, mean over inputs",
        f"warns below {TOKEN_RANK_WARN:g}, fails below {TOKEN_RANK_FAIL:g}",
        "at 1 all tokens are multiples of one vector and attention cannot distinguish them",
        "fewer layers, a smaller learning rate or a residual; the last layers of a mean-pooled classifier come closest",
    ),
    "attention-effect": Check(
        "what attention adds to the tokens, as its deviation from its mean over tokens and inputs, against that of the "
        "tokens it is added to",
        f"warns below {EFFECT_WARN:g} in a layer, fails below {EFFECT_FAIL:g}",
        "a layer that adds nothing, or the same to every token, could as well be left out; trained models add more",
        "look at the named layer's attention: zeroed output, gain of 0, equal subspaces, or never trained",
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
        f"fails on NaN or infinity, or where it does not end below its start; warns where it is above "
        f"{SPIKE_FACTOR:g} times the median of the {SPIKE_WINDOW} entries before it",
        "noise between epochs stays well below a doubling",
        "lower the learning rate, lengthen the warm-up, clip gradients (training.max_grad_norm)",
    ),
    "self-supervision": Check(
        "the last readings of self-supervised training in the log (docs/self_supervision.md)",
        "fails where the training had collapsed; warns where a reading was outside its healthy range",
        "a collapsed model gives every image the same features; the ranges are those of the training's monitors",
        "change what the evidence names, and train again",
    ),
    "input-scale": Check(
        "mean and deviation of the pixels that the model reads",
        f"fails for a mean beyond ±{INPUT_MEAN_FAIL:g} or a deviation outside {INPUT_STD_LOW:g} to {INPUT_STD_HIGH:g}",
        "normalised images have a mean near 0 and a deviation near 1; 0 to 255, or dividing by 255 twice, is far off",
        "give the image processor the rescaling, mean and deviation of the training",
    ),
    "output-variation": Check(
        "how much the logits differ between inputs, against how much they differ between classes; and the mean entropy "
        "of the predictions, 1 for no preference at all",
        f"fails where they differ by less than {VARIATION_FAIL:g}; warns at an entropy above {UNDECIDED_WARN:g}",
        "an answer that is the same for every input does not look at the input; needs no labels",
        "look at the checks above for the layer where inputs become equal, and at the head; images of one kind only, "
        "or unlike those of the training, also do this",
    ),
    "order": Check(
        "whether the order of an image's patches, or of a text's tokens, matters: change of the logits when patches "
        "are shuffled, against their deviation; loss with the tokens shuffled minus loss, nats",
        f"fails below {ORDER_FAIL:g} for patches, {TOKEN_ORDER_FAIL:g} nats for tokens",
        "every trained model here uses positions; without them it sees a bag of patches or of words",
        "look at the position embeddings: zeroed, or not loaded",
    ),
    "class-collapse": Check(
        "how many of a class's images are predicted correctly, and which classes are never predicted",
        f"fails if all images get one class though {MIN_CLASS_IMAGES} are of others, or a class of at least "
        f"{MIN_CLASS_IMAGES} images is predicted so seldom that half of the model's accuracy would give it with a "
        f"probability below {CLASS_CHANCE:g} in all; for text, if one token is predicted at more than "
        f"{100 * SAME_TOKEN_FAIL:g} % of the places",
        "an exact binomial test, divided by the number of classes",
        "look at the class balance of the training data, at the head's row of the class, and at the order of the names",
    ),
    "class-order": Check(
        "accuracy if classes were renamed as suits the model best",
        f"fails if it is more than {100 * REORDER_FAIL:g} points above the accuracy, where the 95 % intervals do not "
        "overlap",
        "renaming cannot help a model whose classes are in order, as long as the right class is its most frequent one",
        "labels and classes are in different orders: set id2label, or name the folders as in training",
    ),
    "above-chance": Check(
        "accuracy against naming the most frequent class, and against the nearest class mean of the raw pixels (each "
        "image left out of its own class's mean)",
        "fails if the 95 % interval holds or lies below the first and ends below half way from there to 1, or lies "
        "below the interval of the second; warns where it holds the first and is wider, as with few images",
        "a model at chance has learnt nothing, and one below class means nothing that pixels do not say by themselves",
        "train longer or with another learning rate; check that labels and classes belong together",
    ),
    "reconstruction": Check(
        "squared error on masked patches against copying the nearest visible patch, and against a flat mean colour",
        "fails if its mean is not below both",
        "copying needs no learning; every trained autoencoder here is far below it",
        "train longer or with another learning rate; look at the decoder, the positions and the normalisation",
    ),
    "perplexity": Check(
        "loss on text, nats per token, against the text's own token frequencies (unigram) and against all tokens alike",
        "fails if it is not below both",
        "the frequencies of the very text are the best that can be said without looking at other tokens",
        "train longer; check that this is the tokenizer that the model was trained with",
    ),
    "dead-tokens": Check(
        "rows of the token embedding, for tokens of the text, and of the position embedding, that are zero or equal to "
        "another row",
        "fails at the first",
        "nothing that follows can distinguish equal rows",
        "load the original embeddings; tokens that were added later have to be trained",
    ),
    "stored-score": Check(
        "loss and accuracy on the held-out data against those that the run wrote down after its training",
        f"fails if the accuracy differs by more than {100 * STORED_ACCURACY:g} points, or the loss by more than "
        f"{100 * STORED_LOSS:g} %; where only a part is measured, by {STANDARD_ERRORS:g} standard errors more",
        "the same model on the same data gives the same numbers to rounding",
        "weights, configuration, processor or data were changed after the training: take the run's own files again",
    ),
    "generalisation-gap": Check(
        "accuracy on training images (no augmentation) minus on held-out images",
        f"warns above {100 * GAP_WARN:g} points, fails above {100 * GAP_FAIL:g}, where the 95 % intervals do not "
        "overlap",
        "trained models stay below the first; at the second most of what was learnt is memory",
        "more data or augmentation, weight decay, a smaller model, fewer epochs",
    ),
}
"""Every check by its id, in the order of the output."""
