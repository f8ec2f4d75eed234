"""`re4 bench train`: the speed of training steps, beside the arithmetic they owe and beside a plain step."""
