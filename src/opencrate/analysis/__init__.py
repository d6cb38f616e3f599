"""The white box: record a model's states once, measure them, draw them, report them.

`states` (by `foreign` for models that are no CRATE) -> `rates`, `attention_maps`; `evaluation` stands beside them.
`whitebox` puts the measures of one model together; `plots` and `findings` show and tell them; `page` makes the report
of one model or several, and `report` writes the HTML file.
"""
