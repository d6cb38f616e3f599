"""The `opencrate` command: one thin module per sub-command."""
