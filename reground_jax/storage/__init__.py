"""How a model directory is stored: its description, its arrays, and recorded facts about them."""
