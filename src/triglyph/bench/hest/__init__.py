"""HEST-Benchmark to the letter, and beside it the choices that are argued about."""
