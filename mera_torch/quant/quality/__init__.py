"""How well a quantized network follows its float network: figures, tables, plots, pages."""
