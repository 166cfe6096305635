"""All that the notebooks use: each begins with its first idea, and then needs one line of imports.

A script names what it needs (``import ctplab as ctp``); this list is for the notebooks alone.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from IPython.display import Markdown

import ctplab as ctp
from ctplab.atlas.questions import questions
from ctplab.compression import grid, obs
from ctplab.demo.embedded import ten_questions
from ctplab.measure.chosen import behind
from ctplab.measure.cost import costs
from ctplab.measure.stats import mcnemar, wilson
from ctplab.measure.tasks.closed_book import answers
from ctplab.measure.verdicts import marked
from ctplab.measure.worth import in_words as worth_in_words
from ctplab.models.anatomy import as_matrix, blocks, linears
from ctplab.notebook import explore
from ctplab.notebook.claims import above, all_of, below, check, larger, more_right
from ctplab.notebook.live import live_curve
from ctplab.notebook.shipped import shipped_pair
from ctplab.paper import printed as paper
from ctplab.prompts import prefix
from ctplab.prompts.wordings import WORDINGS
from ctplab.show.compression import draw_levels, draw_weights
from ctplab.show.gaps import gaps_table
from ctplab.show.healing import draw_distances
from ctplab.show.learning import draw_curve
from ctplab.show.matrices import draw_heat
from ctplab.show.nearness import draw_nearness
from ctplab.show.rows import draw_worth
from ctplab.show.shares import draw_recovery, draw_shares
from ctplab.show.tables import arms_table, fidelity_table, table

__all__ = [
    "WORDINGS",
    "Markdown",
    "Path",
    "above",
    "all_of",
    "answers",
    "arms_table",
    "as_matrix",
    "behind",
    "below",
    "blocks",
    "check",
    "costs",
    "ctp",
    "draw_curve",
    "draw_distances",
    "draw_heat",
    "draw_levels",
    "draw_nearness",
    "draw_recovery",
    "draw_shares",
    "draw_weights",
    "draw_worth",
    "explore",
    "fidelity_table",
    "gaps_table",
    "grid",
    "larger",
    "linears",
    "live_curve",
    "marked",
    "mcnemar",
    "more_right",
    "obs",
    "paper",
    "partial",
    "prefix",
    "questions",
    "replace",
    "shipped_pair",
    "table",
    "ten_questions",
    "torch",
    "wilson",
    "worth_in_words",
]  # fmt: skip
