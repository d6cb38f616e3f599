"""The recipe: one strict YAML file that states a whole run; no torch."""
