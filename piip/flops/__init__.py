"""Counting parameters and multiply-accumulates: as the papers count (`paper`), and as a network runs (`actual`).

Nothing is imported here: the papers' convention is a matter of formulas and does without torch.
"""
