"""How a model directory is stored: its description, its arrays, and what is recorded of them."""
