"""Loss functions: element by element, and the objectives composed of them."""
