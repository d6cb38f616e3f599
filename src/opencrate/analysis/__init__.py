"""The white box: record a model's states once, measure them, draw them, report them.

`states` -> `rates`, `attention_maps`; `evaluation` stands beside them; `plots` draws their dataclasses;
`classifier` puts the pieces together for one trained classifier and `report` writes the HTML file.
"""
