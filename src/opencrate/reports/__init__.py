"""Results as pages, figures, tables and sentences."""
