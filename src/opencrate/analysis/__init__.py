"""The white box: record a model's states once, and measure them."""
