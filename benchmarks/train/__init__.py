"""`re4 bench train`: the speed of training steps, compared with their arithmetic and with a textbook step."""
