"""Networks that fill object space, and the encodings of points in front of them."""
