"""Ceilings: how well one could do, under stated assumptions, as rows of role `ceiling` beside the baselines.

Each row says in `transductive` what it knows. A section without truth simply has no such row; counting noise needs
nothing but counts and stands in every table of predicted expression.
"""
