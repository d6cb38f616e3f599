"""From a path to labelled images or blocks of tokens."""
