"""The fast paths behind :mod:`tersor.weights`: packed bytes in, products out, each with a plain torch twin."""
