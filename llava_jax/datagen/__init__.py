"""Makes instruction data from captions and boxes with a language model, and filters image captions."""
