"""What a model is taught with labels: heads, adapters, the loop, and the file that holds them."""
