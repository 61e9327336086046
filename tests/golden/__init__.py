"""Reference vectors, one pair of files for each method, and the adapters that hold the library against them."""
