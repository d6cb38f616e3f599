"""Continue a text, word by word.

  opencrate generate runs/shakespeare "ROMEO:" --max-new-tokens 200 --temperature 0.8 --top-k 40
  opencrate generate gpt2-folder "Once upon a time" --temperature 0
  echo "def main(" | opencrate generate runs/demo -

MODEL is a run directory, any causal language model written by save_pretrained, or hf://owner/name, which is downloaded.
`-` reads the prompt from standard input. The same seed gives the same text on one machine.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .._files import read_standard_input
from .._values import Beams, NewTokens, Temperature, TopP
from .common import Parser, number_of, positive_int, prepare_libraries, print_result, seed

HELP = "continue a text"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate generate`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, saved folder, opencrate/name or hf://owner/name")
    add("prompt", metavar="PROMPT", help="the beginning; - reads standard input")
    add("--max-new-tokens", type=number_of(NewTokens), default=100, metavar="N", help="at most (default: 100)")
    add(
        "--temperature",
        type=number_of(Temperature),
        default=1.0,
        metavar="T",
        help="0: the most probable token (default: 1)",
    )
    add("--top-k", type=positive_int, metavar="K", help="draw from the K most probable tokens")
    add("--top-p", type=number_of(TopP), metavar="P", help="draw from the most probable tokens up to this sum")
    add("--num-beams", type=number_of(Beams), default=1, metavar="N", help="beam search, printed at the end")
    add("--seed", type=seed, default=0, help="of the draws (default: 0)")
    add("--crop", action="store_true", help="continue beyond the context with its last tokens (CRATE)")
    add("--tokenizer", metavar="FOLDER", help="tokenizer, where MODEL has none")


def run(arguments: argparse.Namespace) -> int:
    """Generate and print."""
    from ..store.kinds import require_kind

    prompt = read_standard_input().rstrip("\n") if arguments.prompt == "-" else arguments.prompt
    require_kind(arguments.model, ("causal",))
    prepare_libraries(arguments.debug)
    from .._pretrained import read_generation
    from ..evaluation.generation import Sampling, generate
    from ..store.saved import open_saved

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "num_beams", "seed", "crop")
    sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    read_generation(arguments.model)
    language = open_saved(arguments.model, ("causal",), tokenizer=arguments.tokenizer)
    text = generate(language, prompt, sampling, stream=arguments.format == "text")
    document = {"model": arguments.model, "prompt": prompt, "text": text, **asdict(sampling)}
    print_result(arguments, document, lambda: None)  # each word was printed as it came
    return 0
